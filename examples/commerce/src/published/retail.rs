//! UCI *Online Retail* (Chen 2015): a year of a British giftware shop.

use std::collections::BTreeMap;

use super::Demand;
use crate::product::{MAX_PRICE_PENCE, Product, valid_sku};

pub(super) const PRODUCTS: [&str; 7] =
    ["stock_code", "description", "unit_price_gbp", "order_lines", "units_sold", "first_sold", "last_sold"];
pub(super) const ORDERS: [&str; 8] = [
    "InvoiceNo",
    "StockCode",
    "Description",
    "Quantity",
    "InvoiceDate",
    "UnitPrice",
    "CustomerID",
    "Country",
];

/// The credit that the file's licence asks for; it goes wherever a product is shown.
const ATTRIBUTION: &str = "Product data: Chen, D. (2015), Online Retail, UCI Machine Learning Repository, \
                           doi:10.24432/C5BW33, CC BY 4.0; category derived from the name.";

/// Days that the file covers, 2010-12-01 to 2011-12-09, and days of sales that a shelf should hold.
const DAYS: u64 = 374;
const COVER_DAYS: u64 = 14;

/// A row of `products.csv`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetailProduct {
    /// Stock code, in the case it was published.
    pub stock_code: String,
    /// Description, as published (in capitals).
    pub description: String,
    /// Price in pence.
    pub price_pence: u32,
    /// Units sold in the year.
    pub units_sold: u64,
    /// First day sold, as published.
    pub first_sold: String,
    /// Last day sold, as published.
    pub last_sold: String,
}

impl RetailProduct {
    /// The product as the shop sells it. The file has neither category nor prose: the category is derived from the name,
    /// the prose states the sales.
    #[must_use]
    pub fn to_product(&self) -> Product {
        let (units, first, last) = (self.units_sold, &self.first_sold, &self.last_sold);
        let unit = if units == 1 { "unit" } else { "units" };
        Product {
            sku: self.stock_code.clone(),
            name: self.description.clone(),
            description: format!("{units} {unit} sold between {first} and {last}."),
            category: category(&self.description).to_owned(),
            brand: None,
            price_pence: self.price_pence,
            attribution: Some(ATTRIBUTION.to_owned()),
        }
    }
}

/// The first rule with a word of the name wins, so that a Christmas candle is for Christmas.
const CATEGORIES: [(&str, &[&str]); 11] = [
    (
        "Christmas & Easter",
        &["CHRISTMAS", "XMAS", "EASTER", "ADVENT", "SANTA", "REINDEER", "BAUBLE", "SNOWFLAKE"],
    ),
    (
        "Jewellery & Hair",
        &["NECKLACE", "BRACELET", "EARRINGS", "RING", "BROOCH", "HAIR", "BANGLE", "JEWELLERY"],
    ),
    (
        "Candles & Lanterns",
        &["CANDLE", "CANDLES", "T-LIGHT", "T-LIGHTS", "LANTERN", "CANDLEHOLDER", "INCENSE"],
    ),
    ("Bags & Purses", &["BAG", "BAGS", "PURSE", "SHOPPER", "RUCKSACK", "LUGGAGE", "WALLET", "SHOULDER"]),
    (
        "Cards & Wrap",
        &["CARD", "CARDS", "WRAP", "RIBBON", "RIBBONS", "STICKER", "STICKERS", "WRAPPING", "TAPE"],
    ),
    (
        "Stationery",
        &["NOTEBOOK", "PENCIL", "PENCILS", "PEN", "JOURNAL", "ERASER", "RUBBER", "CHALK", "STAMP"],
    ),
    (
        "Kitchen & Baking",
        &[
            "MUG", "CUP", "TEA", "BOWL", "PLATE", "CAKE", "JAR", "TRAY", "BOTTLE", "CUTLERY", "TEAPOT",
            "EGG", "LUNCH", "JUG", "TIN", "TINS", "APRON", "COASTER", "COASTERS", "PANTRY", "BAKING",
            "KITCHEN", "SPOON", "TOWEL",
        ],
    ),
    (
        "Toys & Party",
        &["TOY", "GAME", "DOLL", "DOLLY", "PARTY", "BALLOON", "BALLOONS", "PUZZLE", "SKIPPING", "KNITTING"],
    ),
    (
        "Outdoors",
        &["GARDEN", "PLANT", "WATERING", "PARASOL", "UMBRELLA", "BIRD", "PICNIC", "FLOWERPOT", "TROWEL"],
    ),
    (
        "Furnishing",
        &["CUSHION", "DOORMAT", "CLOCK", "FRAME", "MIRROR", "HOOK", "DRAWER", "CABINET", "STOOL", "KNOB"],
    ),
    (
        "Decoration",
        &["DECORATION", "SIGN", "GARLAND", "BUNTING", "HANGING", "HEART", "WREATH", "WALL", "FLOWER"],
    ),
];

fn category(description: &str) -> &'static str {
    let upper = description.to_uppercase();
    let words: Vec<&str> =
        upper.split(|c: char| !c.is_alphanumeric() && c != '-').filter(|w| !w.is_empty()).collect();
    CATEGORIES
        .iter()
        .find(|(_, keys)| keys.iter().any(|key| words.contains(key)))
        .map_or("Giftware", |(category, _)| category)
}

/// Units on hand for products whose file states none: two weeks of sales, so that what sells well is well stocked. With
/// `demand`, the net units really ordered in the weeks of the orders file; without, the year's rate, rounded up. A code
/// that nobody ordered is sold out.
#[must_use]
pub fn stock_levels(products: &[RetailProduct], demand: Option<&Demand>) -> BTreeMap<String, u32> {
    let level = |product: &RetailProduct| match demand {
        Some(demand) => {
            demand.get(&product.stock_code).map_or(0, |&units| clamp(units.max(0).unsigned_abs()))
        }
        None => clamp((product.units_sold * COVER_DAYS).div_ceil(DAYS)),
    };
    products.iter().map(|product| (product.stock_code.clone(), level(product))).collect()
}

fn clamp(units: u64) -> u32 {
    u32::try_from(units).unwrap_or(u32::MAX)
}

pub(super) fn products(text: &[u8]) -> Result<Vec<RetailProduct>, (u64, String)> {
    rows(text, |row| {
        let stock_code = row[0].to_owned();
        if !valid_sku(&stock_code) {
            return Err(format!("stock_code {stock_code:?} is none"));
        }
        let price = &row[2];
        let price_pence = pence(price)
            .filter(|pence| (1..=MAX_PRICE_PENCE).contains(pence))
            .ok_or_else(|| format!("unit_price_gbp {price:?} is no price in pounds, 0.01 to 10000"))?;
        let product = RetailProduct {
            stock_code,
            description: row[1].to_owned(),
            price_pence,
            units_sold: row[4].parse().map_err(|_| format!("units_sold {:?} is no whole number", &row[4]))?,
            first_sold: date(&row[5])?,
            last_sold: date(&row[6])?,
        };
        let errors = product.to_product().validate("");
        errors.first().map_or(Ok(product), |e| Err(format!("description {}", e.message)))
    })
}

pub(super) fn orders(text: &[u8]) -> Result<Demand, (u64, String)> {
    let lines = rows(text, |row| {
        let quantity: i64 =
            row[3].parse().map_err(|_| format!("Quantity {:?} is no whole number", &row[3]))?;
        Ok((row[1].to_owned(), quantity))
    })?;
    let mut demand = Demand::new();
    for (code, quantity) in lines {
        let units = demand.entry(code).or_default();
        *units = units.saturating_add(quantity);
    }
    Ok(demand)
}

fn rows<T>(
    text: &[u8],
    read: impl Fn(&csv::StringRecord) -> Result<T, String>,
) -> Result<Vec<T>, (u64, String)> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text);
    let mut rows = Vec::new();
    let mut record = csv::StringRecord::new();
    loop {
        let line = reader.position().line();
        // The reader refuses a row with another number of fields than the header, and text that is not UTF-8.
        if !reader.read_record(&mut record).map_err(|e| (line, e.to_string()))? {
            return Ok(rows);
        }
        let line = record.position().map_or(line, csv::Position::line);
        rows.push(read(&record).map_err(|reason| (line, reason))?);
    }
}

/// `12.5` as 1250: by digits, because binary fractions are no money.
fn pence(pounds: &str) -> Option<u32> {
    let (whole, part) = pounds.split_once('.').unwrap_or((pounds, "0"));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 2 {
        return None;
    }
    let scale = if part.len() == 1 { 10 } else { 1 };
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(part.parse::<u32>().ok()? * scale)
}

fn date(text: &str) -> Result<String, String> {
    let shape = text.len() == 10
        && text
            .bytes()
            .enumerate()
            .all(|(i, b)| if i == 4 || i == 7 { b == b'-' } else { b.is_ascii_digit() });
    if shape { Ok(text.to_owned()) } else { Err(format!("{text:?} is no date, YYYY-MM-DD")) }
}
