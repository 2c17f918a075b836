use std::io::Write as _;

use super::*;

const PRODUCTS: &str = "stock_code,description,unit_price_gbp,order_lines,units_sold,first_sold,last_sold\n\
    10123C,HEARTS WRAPPING TAPE,0.65,3,5,2010-12-03,2011-03-31\n\
    21228,\"POCKET MIRROR \"\"GLAMOROUS\"\"\",1.25,2,5000,2011-02-08,2011-03-09\n\
    15056bl,EDWARDIAN PARASOL BLACK,5.9,1,1,2011-02-08,2011-02-08\n";

fn parse(text: &str) -> Result<Published, PublishedError> {
    Published::parse(Path::new("sample"), text.as_bytes())
}

fn products(text: &str) -> Vec<RetailProduct> {
    match parse(text).unwrap() {
        Published::Products(products) => products,
        other => panic!("{other:?}"),
    }
}

#[test]
fn reads_products_with_quotes_letters_and_short_prices() {
    let products = products(PRODUCTS);
    let sold: Vec<Product> = products.iter().map(RetailProduct::to_product).collect();
    assert_eq!((sold[0].sku.as_str(), sold[0].price_pence), ("10123C", 65));
    assert_eq!(sold[0].category, "Cards & Wrap");
    assert_eq!((sold[1].name.as_str(), sold[1].price_pence), ("POCKET MIRROR \"GLAMOROUS\"", 125));
    assert_eq!((sold[2].sku.as_str(), sold[2].price_pence), ("15056bl", 590));
    assert!(sold.iter().all(|p| p.validate("").is_empty() && p.attribution.is_some()));
}

#[test]
fn stock_is_two_weeks_of_sales_or_what_was_ordered() {
    let products = products(PRODUCTS);
    let by_rate = stock_levels(&products, None);
    assert_eq!((by_rate["10123C"], by_rate["21228"]), (1, 188));
    let orders = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n\
        576080,21228,X,12,2011-11-14 08:10:00,1.65,18211.0,United Kingdom\n\
        C576081,21228,X,-5,2011-11-14 08:11:00,1.65,,United Kingdom\n\
        576082,15056bl,X,-3,2011-11-14 08:12:00,5.9,,United Kingdom\n\
        576083,POST,POSTAGE,1,2011-11-14 08:12:00,18.0,,Germany\n";
    let Published::Orders(demand) = parse(orders).unwrap() else { panic!("not read as orders") };
    let ordered = stock_levels(&products, Some(&demand));
    assert_eq!(
        ordered.into_iter().collect::<Vec<_>>(),
        [("10123C".into(), 0), ("15056bl".into(), 0), ("21228".into(), 7)]
    );
}

#[test]
fn a_bad_line_refuses_the_file_and_is_named() {
    for (bad, line) in [
        ("1 1,X,0.65,3,5,2010-12-03,2011-03-31\n", 5),
        ("11,X,0.655,3,5,2010-12-03,2011-03-31\n", 5),
        ("11,X,-1,3,5,2010-12-03,2011-03-31\n", 5),
        ("11,X,0.65,3,many,2010-12-03,2011-03-31\n", 5),
        ("11,X,0.65,3,5,yesterday,2011-03-31\n", 5),
        ("11,,0.65,3,5,2010-12-03,2011-03-31\n", 5),
        ("11,X,0.65\n", 5),
    ] {
        let error = parse(&format!("{PRODUCTS}{bad}")).unwrap_err();
        assert!(matches!(error, PublishedError::Line { line: l, .. } if l == line), "{bad}: {error}");
    }
    assert!(matches!(parse("a,b,c\n1,2,3\n").unwrap_err(), PublishedError::Layout { .. }));
    assert!(matches!(parse("").unwrap_err(), PublishedError::Layout { .. }));
}

#[test]
fn reviews_match_their_product_and_no_other() {
    let text = "{\"product\": \"Canon G3\", \"title\": \"good\", \"body\": \"b\", \"stars\": 4, \"features\": []}\n\n";
    let Published::Reviews(reviews) = parse(text).unwrap() else { panic!("not read as reviews") };
    assert!(reviews[0].is_about("CANON  g3"));
    for other in ["Canon G3 case", "Canon", "Canon S100", "CanonG3", ""] {
        assert!(!reviews[0].is_about(other), "{other}");
    }
    let stars = text.replace("4", "6");
    assert!(matches!(parse(&stars).unwrap_err(), PublishedError::Line { line: 1, .. }));
}

#[test]
fn several_files_join_and_gzip_is_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, packed) = (folder.path().join("products.csv"), folder.path().join("products.csv.gz"));
    std::fs::write(&plain, PRODUCTS).unwrap();
    let mut gz =
        flate2::write::GzEncoder::new(std::fs::File::create(&packed).unwrap(), flate2::Compression::fast());
    gz.write_all(PRODUCTS.replace("10123C", "10124G").as_bytes()).unwrap();
    gz.finish().unwrap();
    let imports = Imports::read([&plain, &packed].into_iter()).unwrap();
    assert_eq!(imports.products().len(), 6);
    assert_eq!(imports.stock().len(), 4);
    let again = Imports::read([&plain, &packed].into_iter()).unwrap();
    assert_eq!(imports.digest(), again.digest());
    assert_ne!(imports.digest(), Imports::read([&plain].into_iter()).unwrap().digest());
    let missing = folder.path().join("none.csv");
    assert!(Imports::read([&missing].into_iter()).unwrap_err().to_string().contains("none.csv"));
}
