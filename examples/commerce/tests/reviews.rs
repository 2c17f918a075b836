//! The reviews service, in Python, as its clients see it.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod common;

use common::{PATIENCE, Service, get, post, post_json, python, reviews_script};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn review(title: &str) -> Value {
    json!({"sku": "TE1001", "author": "Una", "stars": 4, "title": title, "body": "Good.\nVery — good."})
}

#[tokio::test]
async fn stores_shows_and_keeps_reviews() {
    if !python("stores_shows_and_keeps_reviews") {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let mut service = Service::start_in(&reviews_script(), data.path(), &[]);
    let url = service.url();
    let before = get(&format!("{url}/reviews?sku=TE1001")).await.json();
    let created = post_json(&format!("{url}/reviews"), &review("First")).await;
    assert_eq!(created.status, 201);
    let location = created.headers["location"].to_str().unwrap().to_owned();
    assert_eq!(get(&format!("{url}{location}")).await.json(), created.json());
    // The same words again are the same review, as after a retry.
    let again = post_json(&format!("{url}/reviews"), &review("First")).await;
    assert_eq!((again.status.as_u16(), again.json()), (200, created.json()));
    post_json(&format!("{url}/reviews"), &review("Second")).await;
    let page = get(&format!("{url}/reviews?sku=TE1001&limit=1&offset=1")).await.json();
    assert_eq!(page["count"].as_u64().unwrap(), before["count"].as_u64().unwrap() + 2);
    assert_eq!((page["items"].as_array().unwrap().len(), &page["items"][0]["title"]), (1, &json!("First")));
    service.terminate();
    assert!(service.ended().await.success());
    let service = Service::start_in(&reviews_script(), data.path(), &[]);
    let after = get(&format!("{}/reviews?sku=TE1001", service.url())).await.json();
    assert_eq!((&after["count"], &after["items"][0]["title"]), (&page["count"], &json!("Second")));
    let health = get(&format!("{}/healthz", service.url())).await.json();
    assert_eq!(health, json!({"status": "ok", "reviews": 44}));
}

#[tokio::test]
async fn refuses_with_problem_documents() {
    if !python("refuses_with_problem_documents") {
        return;
    }
    let service = Service::start(&reviews_script(), &[]);
    let url = format!("{}/reviews", service.url());
    for (field, value) in [
        ("sku", json!("A 1")),
        ("stars", json!(0)),
        ("stars", json!(6)),
        ("stars", json!(4.5)),
        ("stars", json!(true)),
        ("author", json!("  ")),
        ("title", json!("x".repeat(121))),
        ("title", json!("a\u{1}b")),
        ("body", Value::Null),
        ("colour", json!("red")),
    ] {
        let mut wrong = review("Wrong");
        wrong[field] = value;
        let problem = post_json(&url, &wrong).await.problem(422);
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
    post(&url, "application/json", "{\"sku\": \"\\ud800\", \"\\udfff\": 1}").await.problem(400);
    post(&url, "application/json", "[]").await.problem(422);
    post(&url, "application/json", "{").await.problem(400);
    post(&url, "application/json", "[".repeat(60_000)).await.problem(400);
    post(&url, "application/json", "x".repeat(70_000)).await.problem(413);
    post(&url, "text/plain", "{}").await.problem(415);
    for query in ["", "?sku=", "?sku=A%201", "?sku=A1&limit=0", "?sku=A1&limit=101", "?sku=A1&page=2"] {
        get(&format!("{url}{query}")).await.problem(400);
    }
    get(&format!("{url}/999999")).await.problem(404);
    post_json(&format!("{url}/1"), &json!({})).await.problem(405);
}

/// Reads one answer with a Content-Length from a connection that stays open.
async fn answer(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let read = async {
        loop {
            let head = text.windows(4).position(|w: &[u8]| w == b"\r\n\r\n");
            if let Some(head) = head {
                let lower = String::from_utf8_lossy(&text[..head]).to_lowercase();
                let length = lower
                    .split("content-length: ")
                    .nth(1)
                    .map_or(0, |l| l.lines().next().unwrap().trim().parse::<usize>().unwrap());
                if text.len() >= head + 4 + length {
                    return;
                }
            }
            assert!(
                stream.read_buf(&mut text).await.unwrap() > 0,
                "closed: {}",
                String::from_utf8_lossy(&text)
            );
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("no answer");
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn keeps_connections_takes_chunks_and_answers_an_expectation() {
    if !python("keeps_connections_takes_chunks_and_answers_an_expectation") {
        return;
    }
    let service = Service::start(&reviews_script(), &[]);
    let mut stream = TcpStream::connect(&service.address).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: reviews\r\n\r\n").await.unwrap();
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200"));
    stream.write_all(b"GET http://[ HTTP/1.1\r\nHost: reviews\r\n\r\n").await.unwrap();
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 400"));
    let body = review("Chunked").to_string();
    let (one, two) = body.split_at(10);
    let chunks =
        format!("{:x}\r\n{one}\r\n{:X};x=y\r\n{two}\r\n0\r\nTrailer: 1\r\n\r\n", one.len(), two.len());
    let head = "POST /reviews HTTP/1.1\r\nHost: reviews\r\nContent-Type: application/json\r\n";
    stream.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}").as_bytes()).await.unwrap();
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 201"));
    let body = review("Expected").to_string();
    let expect = format!("{head}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(expect.as_bytes()).await.unwrap();
    assert_eq!(answer(&mut stream).await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body.as_bytes()).await.unwrap();
    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 201"));
    let both = "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n";
    stream.write_all(format!("{head}{both}").as_bytes()).await.unwrap();
    let refused = answer(&mut stream).await;
    assert!(refused.starts_with("HTTP/1.1 400") && refused.contains("Connection: close"), "{refused}");
}

#[tokio::test]
async fn sigterm_finishes_the_request_in_flight_and_leaves_no_idle_connection() {
    if !python("sigterm_finishes_the_request_in_flight_and_leaves_no_idle_connection") {
        return;
    }
    let mut service = Service::start(&reviews_script(), &[]);
    let mut idle = TcpStream::connect(&service.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: reviews\r\n\r\n").await.unwrap();
    answer(&mut idle).await;
    let mut busy = TcpStream::connect(&service.address).await.unwrap();
    let body = review("Late").to_string();
    let head = format!(
        "POST /reviews HTTP/1.1\r\nHost: reviews\r\nContent-Type: application/json\r\n\
         Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    busy.write_all(head.as_bytes()).await.unwrap();
    answer(&mut busy).await;
    service.terminate();
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, idle.read_to_end(&mut rest)).await;
    assert_eq!(closed.expect("an idle connection is kept").unwrap(), 0);
    busy.write_all(body.as_bytes()).await.unwrap();
    let last = answer(&mut busy).await;
    assert!(last.starts_with("HTTP/1.1 201") && last.contains("Connection: close"), "{last}");
    assert!(service.ended().await.success());
}
