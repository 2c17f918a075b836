//! The catalog as its clients see it.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod common;

use common::{CATALOG, PATIENCE, Service, get, post, post_json};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn starts_with_its_own_catalogue_and_finds_things_in_it() {
    let catalog = Service::start(CATALOG, &[]);
    let url = catalog.url();
    assert_eq!(get(&format!("{url}/healthz")).await.json(), json!({"status": "ok", "products": 200}));
    let found = get(&format!("{url}/search?q=storm+kettles")).await.json();
    let mut names: Vec<&str> =
        found["items"].as_array().unwrap().iter().take(2).map(|p| p["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["Storm Kettle 1 L", "Storm Kettle 1.5 L"]);
    assert_eq!(found["allWords"], true);
    let by_code = get(&format!("{url}/search?q=sl1016m")).await.json();
    assert_eq!(by_code["items"][0]["sku"], "SL1016M", "{by_code}");
    let categories = get(&format!("{url}/categories")).await.json();
    let total: u64 =
        categories["items"].as_array().unwrap().iter().map(|c| c["products"].as_u64().unwrap()).sum();
    assert_eq!(total, 200);
}

#[tokio::test]
async fn a_log_that_cannot_be_written_costs_no_answer() {
    let catalog = Service::start_unheard(CATALOG);
    for _ in 0..2 {
        let page = get(&format!("{}/products?size=1", catalog.url())).await.json();
        assert_eq!(page["total"].as_u64(), Some(200));
    }
}

#[tokio::test]
async fn pages_join_without_gap_or_overlap() {
    let catalog = Service::start(CATALOG, &[]);
    let mut skus = Vec::new();
    for number in 1..=7 {
        let page = get(&format!("{}/products?sort=-price&size=30&page={number}", catalog.url())).await.json();
        assert_eq!((page["total"].as_u64(), page["pages"].as_u64()), (Some(200), Some(7)));
        skus.extend(page["items"].as_array().unwrap().iter().map(|p| p["sku"].as_str().unwrap().to_owned()));
    }
    assert_eq!(skus.len(), 200);
    skus.sort();
    skus.dedup();
    assert_eq!(skus.len(), 200);
}

#[tokio::test]
async fn creates_and_replaces_products_and_keeps_them_over_a_restart() {
    let data = tempfile::tempdir().unwrap();
    let mut catalog = Service::start_in(CATALOG, data.path(), &[]);
    let rope = json!({"sku": "99001X", "name": "Climbing Rope", "category": "Walking & Navigation", "pricePence": 8900});
    let url = catalog.url();
    let created = post_json(&format!("{url}/products"), &rope).await;
    assert_eq!(
        (created.status.as_u16(), created.headers["location"].to_str().unwrap()),
        (201, "/products/99001X")
    );
    let mut changed = rope.clone();
    changed["name"] = json!("Climbing Rope 60 m");
    changed["description"] = json!("Dynamic, dry-treated.");
    assert_eq!(post_json(&format!("{url}/products"), &changed).await.status.as_u16(), 200);
    assert_eq!(post_json(&format!("{url}/products"), &changed).await.status.as_u16(), 200);
    catalog.terminate();
    assert!(catalog.ended().await.success());

    let catalog = Service::start_in(CATALOG, data.path(), &[]);
    let kept = get(&format!("{}/products/99001X", catalog.url())).await.json();
    assert_eq!(kept, changed);
    let found = get(&format!("{}/search?q=dynamic", catalog.url())).await.json();
    assert_eq!(found["items"][0]["sku"], "99001X");
    assert_eq!(found["items"][0]["snippet"][0], json!({"text": "Dynamic", "match": true}));
}

#[tokio::test]
async fn refuses_with_problem_documents_that_say_what_is_wrong() {
    let catalog = Service::start(CATALOG, &[]);
    let url = catalog.url();
    get(&format!("{url}/products/NONE1")).await.problem(404);
    get(&format!("{url}/nowhere")).await.problem(404);
    post_json(&format!("{url}/categories"), &json!({})).await.problem(405);
    for query in ["page=0", "size=0", "size=101", "page=x", "sort=colour", "colour=red"] {
        get(&format!("{url}/products?{query}")).await.problem(400);
    }
    get(&format!("{url}/search")).await.problem(400);
    get(&format!("{url}/search?q={}", "a".repeat(201))).await.problem(400);
    post(&format!("{url}/products"), "application/json", "{").await.problem(400);
    post(&format!("{url}/products"), "text/plain", "{}").await.problem(415);
    let wrong = json!({"sku": "A 1", "name": "x", "category": "c", "pricePence": 1});
    let problem = post_json(&format!("{url}/products"), &wrong).await.problem(422);
    assert_eq!(problem["errors"][0]["field"], "sku");
    let good = json!({"sku": "B1", "name": "x", "category": "c", "pricePence": 1});
    let batch = json!({"products": [good, wrong]});
    let problem = post_json(&format!("{url}/products/batch"), &batch).await.problem(422);
    assert_eq!(problem["errors"][0]["field"], "products[1].sku");
    get(&format!("{url}/products/B1")).await.problem(404);
}

#[tokio::test]
async fn a_request_in_flight_is_finished_after_sigterm() {
    let mut catalog = Service::start(CATALOG, &[]);
    let body = json!({"sku": "LATE1", "name": "Late", "category": "c", "pricePence": 1}).to_string();
    let mut stream = TcpStream::connect(&catalog.address).await.unwrap();
    let head = format!(
        "POST /products HTTP/1.1\r\nhost: catalog\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         expect: 100-continue\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The interim answer proves that the handler waits for the body.
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    catalog.terminate();
    let refused = async {
        while TcpStream::connect(&catalog.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("still listening after SIGTERM");
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert!(catalog.ended().await.success());
}

#[tokio::test]
async fn a_bad_import_file_stops_the_start_and_is_named() {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("wrong.csv");
    std::fs::write(&file, "a,b\n1,2\n").unwrap();
    let output = std::process::Command::new(CATALOG)
        .env("DATA_DIR", data.path())
        .env("COMMERCE_IMPORT", &file)
        .env("PORT", "0")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("wrong.csv"));
}
