//! `commerce-import`, on a small sample in the published layout and on the published files themselves.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod common;

use std::path::Path;
use std::process::{Command, Output};

use commerce::inventory::proto::inventory as pb;
use commerce::inventory::proto::inventory::inventory_client::InventoryClient;
use common::{CATALOG, IMPORT, INVENTORY, STOREFRONT, Service, get, published, python, reviews_script};

const PRODUCTS: &str = "stock_code,description,unit_price_gbp,order_lines,units_sold,first_sold,last_sold\n\
    10123C,HEARTS WRAPPING TAPE,0.65,3,5,2010-12-03,2011-03-31\n\
    15056BL,EDWARDIAN PARASOL BLACK,5.95,300,3740,2010-12-01,2011-12-09\n\
    15056bl,EDWARDIAN PARASOL BLACK,12.46,2,2,2010-12-01,2011-12-09\n\
    85123A,\"WHITE HANGING HEART, T-LIGHT HOLDER\",2.55,2000,35000,2010-12-01,2011-12-09\n";
const ORDERS: &str = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n\
    576080,85123A,X,12,2011-11-14 08:10:00,2.55,18211.0,United Kingdom\n\
    C576090,85123A,X,-2,2011-11-14 09:10:00,2.55,18211.0,United Kingdom\n\
    576091,POST,POSTAGE,1,2011-11-14 09:10:00,18.0,12345.0,France\n";

async fn import(arguments: &[&str]) -> Output {
    let mut command = Command::new(IMPORT);
    command.args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

async fn on_hand(inventory: &Service, sku: &str) -> Option<u32> {
    let mut client = InventoryClient::connect(inventory.url()).await.unwrap();
    client.get_stock(pb::GetStockRequest { sku: sku.into() }).await.ok().map(|l| l.into_inner().on_hand)
}

#[tokio::test]
async fn a_sample_goes_into_every_instance_and_a_second_run_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let products = write(folder.path(), "products.csv", PRODUCTS);
    let orders = write(folder.path(), "orders.csv", ORDERS);
    let (one, two) = (Service::start(CATALOG, &[]), Service::start(CATALOG, &[]));
    let inventory = Service::start(INVENTORY, &[]);
    let arguments =
        [&products, "--catalog", &one.url(), "--catalog", &two.url(), "--inventory", &inventory.url()];
    let first = said(&import(&arguments).await);
    assert_eq!(first.matches("4 products created, 0 updated, 0 unchanged").count(), 2, "{first}");
    assert!(first.contains("4 levels created"), "{first}");
    let second = said(&import(&arguments).await);
    assert_eq!(second.matches("0 products created, 0 updated, 4 unchanged").count(), 2, "{second}");
    assert!(second.contains("0 levels created, 0 updated, 4 unchanged"), "{second}");
    assert_eq!(on_hand(&inventory, "15056BL").await, Some(140));
    for catalog in [&one, &two] {
        let found = get(&format!("{}/search?q=10123c", catalog.url())).await.json();
        assert_eq!(found["items"][0]["sku"], "10123C");
        let lower = get(&format!("{}/products/15056bl", catalog.url())).await.json();
        assert_eq!(lower["pricePence"], 1246);
    }
    // What was ordered decides, where an orders file is given.
    let with_orders = said(&import(&[&products, &orders, "--inventory", &inventory.url()]).await);
    assert!(with_orders.contains("4 updated"), "{with_orders}");
    assert_eq!(
        (on_hand(&inventory, "85123A").await, on_hand(&inventory, "10123C").await),
        (Some(10), Some(0))
    );
}

#[tokio::test]
async fn instances_started_with_the_same_files_show_the_same_shelves() {
    let folder = tempfile::tempdir().unwrap();
    let products = write(folder.path(), "products.csv", PRODUCTS);
    let orders = write(folder.path(), "orders.csv", ORDERS);
    let both = format!("{products}:{orders}");
    let env = [("COMMERCE_IMPORT", both.as_str())];
    let (one, two) = (Service::start(CATALOG, &env), Service::start(CATALOG, &env));
    for path in ["/products?size=100&page=1", "/search?q=white+heart", "/categories"] {
        let (a, b) = (get(&format!("{}{path}", one.url())).await, get(&format!("{}{path}", two.url())).await);
        assert_eq!(a.body, b.body);
    }
    assert_eq!(get(&format!("{}/healthz", one.url())).await.json()["products"], 204);
    let inventory = Service::start(INVENTORY, &env);
    assert_eq!(on_hand(&inventory, "85123A").await, Some(10));
}

#[tokio::test]
async fn database_files_take_an_import_before_their_service_starts() {
    let folder = tempfile::tempdir().unwrap();
    let products = write(folder.path(), "products.csv", PRODUCTS);
    let file = folder.path().join("catalog.sqlite");
    let first = said(&import(&[&products, "--catalog-db", file.to_str().unwrap()]).await);
    assert!(first.contains("4 products created"), "{first}");
    let catalog = Service::start_in(CATALOG, folder.path(), &[]);
    assert_eq!(get(&format!("{}/healthz", catalog.url())).await.json()["products"], 204);
}

#[tokio::test]
async fn refuses_bad_files_and_missing_targets_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let products = write(folder.path(), "products.csv", PRODUCTS);
    let bad = write(folder.path(), "bad.csv", &format!("{PRODUCTS}12,X,free,1,1,2010-12-01,2010-12-01\n"));
    let catalog = Service::start(CATALOG, &[]);
    let refused = import(&[&products, &bad, "--catalog", &catalog.url()]).await;
    assert_eq!(refused.status.code(), Some(1));
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(why.contains("bad.csv, line 6") && why.contains("free"), "{why}");
    assert_eq!(get(&format!("{}/healthz", catalog.url())).await.json()["products"], 200);
    let nowhere = import(&[&products]).await;
    assert!(String::from_utf8(nowhere.stderr).unwrap().contains("--catalog URL"));
    assert_eq!(import(&[]).await.status.code(), Some(2));
}

#[tokio::test]
async fn reviews_come_only_to_the_product_they_are_about() {
    if !python("reviews_come_only_to_the_product_they_are_about") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let line = |product: &str, title: &str| {
        format!(
            "{{\"product\": \"{product}\", \"title\": \"{title}\", \"body\": \"b\", \"stars\": 4, \"score\": 1}}\n"
        )
    };
    let text = line("boot jack oak", "mine") + &line("Boot Jack", "not mine") + &line("Canon G3", "nobody's");
    let file = write(folder.path(), "reviews.jsonl", &text);
    let (catalog, reviews) = (Service::start(CATALOG, &[]), Service::start(&reviews_script(), &[]));
    for _ in 0..2 {
        let report = said(&import(&[&file, "--catalog", &catalog.url(), "--reviews", &reviews.url()]).await);
        assert!(report.contains("1 about products of the catalog, 2 about others left out"), "{report}");
        let stored = get(&format!("{}/reviews?sku=HH1017", reviews.url())).await.json();
        assert_eq!((stored["count"].as_u64(), stored["items"][0]["title"].as_str()), (Some(2), Some("mine")));
    }
}

#[tokio::test]
async fn the_published_files_load_whole() {
    let Some(data) = published("the_published_files_load_whole") else { return };
    let at = |path: &str| data.join(path).to_str().unwrap().to_owned();
    let (products, orders) =
        (at("online-retail/products.csv"), at("online-retail/orders-2011-11-14_2011-11-27.csv.gz"));
    let both = format!("{products}:{orders}");
    let env = [("COMMERCE_IMPORT", both.as_str())];
    let (catalog, inventory) = (Service::start(CATALOG, &env), Service::start(INVENTORY, &env));
    assert_eq!(get(&format!("{}/healthz", catalog.url())).await.json()["products"], 4100);
    for line in std::fs::read_to_string(&products).unwrap().lines().skip(1) {
        let sku = line.split(',').next().unwrap();
        if sku.ends_with(|c: char| c.is_ascii_alphabetic()) {
            let found = get(&format!("{}/products/{sku}", catalog.url())).await.json();
            assert_eq!(found["sku"], sku);
        }
    }
    let found = get(&format!("{}/search?q=10123c", catalog.url())).await.json();
    assert_eq!(
        (&found["items"][0]["sku"], &found["items"][0]["name"]),
        (&"10123C".into(), &"HEARTS WRAPPING TAPE".into())
    );
    assert!(on_hand(&inventory, "22465").await.is_some_and(|units| units > 0));
    // Neither shop sells the reviewed cameras and routers, so nobody is told about them.
    if python("the_published_files_load_whole (reviews)") {
        let service = Service::start(&reviews_script(), &[]);
        let file = at("reviews/customer-reviews.jsonl");
        let report = said(&import(&[&file, "--catalog", &catalog.url(), "--reviews", &service.url()]).await);
        assert!(report.contains(" 0 about products of the catalog, 639 about others left out"), "{report}");
    }
    let env = [("CATALOG_URL", catalog.url()), ("INVENTORY_URL", inventory.url())];
    let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let storefront = Service::start(STOREFRONT, &env);
    let page = get(&format!("{}/products/10123C", storefront.url())).await;
    assert_eq!(
        (page.text("product-name").unwrap().as_str(), page.text("product-price").unwrap().as_str()),
        ("HEARTS WRAPPING TAPE", "£0.65")
    );
    assert!(page.text("product-attribution").unwrap().contains("CC BY 4.0"));
    assert!(
        get(&format!("{}/products", storefront.url()))
            .await
            .text("result-count")
            .unwrap()
            .starts_with("4100")
    );
}
