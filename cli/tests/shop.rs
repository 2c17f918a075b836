//! The shop in a real browser, through gateway and sidecars: search, product page, stock, reviews.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use support::{MESHWORK, PATIENCE, command, until};
use tempfile::TempDir;

/// A loopback address with fifteen more behind it that no other test has.
fn base(number: u8) -> Ipv4Addr {
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 150 + (low >> 4), high, (low & 0x0f) << 4 | number)
}

struct Platform {
    base: Ipv4Addr,
    data: TempDir,
}

impl Platform {
    /// Starts the platform with the shop; `import` names published files for every instance.
    fn up(number: u8, import: Option<&Path>) -> Self {
        let this = Self { base: base(number), data: tempfile::tempdir().unwrap() };
        let mut up = command(&["up", "--detach", "--workers", "1", "--base-address", &this.base.to_string()]);
        if let Some(file) = import {
            up.env("COMMERCE_IMPORT", file);
        }
        let output = up.stdin(Stdio::null()).arg("--data-dir").arg(this.data.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        this
    }

    fn page(&self, path: &str) -> String {
        format!("http://{}:8080{path}", self.base)
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        drop(command(&["down"]).stdin(Stdio::null()).arg("--data-dir").arg(self.data.path()).output());
    }
}

/// Chromium, driven by the W3C WebDriver protocol.
struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    profile: TempDir,
}

const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

impl Browser {
    fn start(chromium: &Path, chromedriver: &Path) -> Self {
        // It can choose a port itself, but then now and then says nothing of it.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let mut driver = Command::new(chromedriver);
        driver.arg(format!("--port={port}")).stdout(Stdio::null()).stderr(Stdio::null());
        let driver = driver.spawn().unwrap();
        until("chromedriver listens", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok());
        let profile = tempfile::tempdir().unwrap();
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &format!("--user-data-dir={}", profile.path().display()),
        ];
        let options = json!({"binary": chromium, "args": arguments});
        let mut this =
            Self { driver, address: (Ipv4Addr::LOCALHOST, port).into(), session: String::new(), profile };
        let capabilities = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}});
        let value = this.call("POST", "/session", &capabilities);
        this.session = format!("/session/{}", value["sessionId"].as_str().expect("a session"));
        this
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_call(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    fn try_call(&self, method: &str, path: &str, body: &Value) -> Result<Value, Value> {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        );
        let value: Value = serde_json::from_str(&answer(self.address, &request)).expect("JSON");
        let value = value["value"].clone();
        if value.get("error").is_some() { Err(value) } else { Ok(value) }
    }

    fn open(&self, url: &str) {
        self.call("POST", &format!("{}/url", self.session), &json!({"url": url}));
    }

    /// The first element of that test id; waits for it, since a click begins a navigation.
    fn find(&self, id: &str) -> String {
        let by = json!({"using": "css selector", "value": format!("[data-testid=\"{id}\"]")});
        until(&format!("`{id}` is on the page"), || {
            let found = self.try_call("POST", &format!("{}/element", self.session), &by).ok()?;
            Some(format!("{}/element/{}", self.session, found[ELEMENT].as_str()?))
        })
    }

    fn count(&self, id: &str) -> usize {
        let by = json!({"using": "css selector", "value": format!("[data-testid=\"{id}\"]")});
        self.call("POST", &format!("{}/elements", self.session), &by).as_array().unwrap().len()
    }

    fn text(&self, id: &str) -> String {
        self.call("GET", &format!("{}/text", self.find(id)), &Value::Null).as_str().unwrap().to_owned()
    }

    fn write(&self, id: &str, text: &str) {
        self.call("POST", &format!("{}/value", self.find(id)), &json!({"text": text}));
    }

    /// Clicks through a script: labels and cards lie over what they pass clicks on to, and smooth scrolling moves the rest.
    fn click(&self, id: &str) {
        self.find(id);
        let script = format!("document.querySelector('[data-testid=\"{id}\"]').click()");
        let body = json!({"script": script, "args": []});
        self.call("POST", &format!("{}/execute/sync", self.session), &body);
    }
}

/// The body of chromedriver's answer; it takes its time, and keeps connections open.
fn answer(address: SocketAddr, request: &str) -> String {
    let mut tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    tcp.write_all(request.as_bytes()).unwrap();
    let mut lines = BufReader::new(tcp);
    let mut length = 0;
    loop {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    lines.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            drop(self.try_call("DELETE", &self.session, &Value::Null));
        }
        drop(self.driver.kill());
        drop(self.driver.wait());
        // Also a browser whose session broke off ends with its test.
        let profile = format!("user-data-dir={}", self.profile.path().display());
        drop(Command::new("pkill").args(["-9", "-f", &profile]).status());
    }
}

fn tools() -> Option<(PathBuf, PathBuf)> {
    let chromium = meshwork_testkit::tool("chromium")?;
    let chromedriver = meshwork_testkit::tool("chromedriver")?;
    if !Path::new(MESHWORK).with_file_name("commerce-storefront").is_file() {
        meshwork_testkit::skip("the shop is not built (cargo build -p commerce)");
        return None;
    }
    Some((chromium, chromedriver))
}

/// Searches, opens the first result, and sees its stock.
fn search_and_open(browser: &Browser, platform: &Platform, words: &str) {
    browser.open(&platform.page("/"));
    browser.write("search-input", words);
    browser.click("search-submit");
    browser.find("result-count");
    assert!(browser.count("product-card") > 0, "`{words}` finds something");
    browser.click("product-link");
    browser.find("product");
    assert!(!browser.text("product-name").is_empty());
    let quantity = browser.text("stock-quantity");
    assert!(quantity.bytes().any(|b| b.is_ascii_digit()), "stock comes from inventory: {quantity}");
}

#[test]
fn a_customer_searches_looks_and_writes_a_review() {
    let Some((chromium, chromedriver)) = tools() else { return };
    let platform = Platform::up(1, None);
    let browser = Browser::start(&chromium, &chromedriver);
    search_and_open(&browser, &platform, "tent");
    browser.find("reviews");
    browser.write("review-input-author", "A. Walker");
    browser.click("review-stars-4");
    browser.write("review-input-title", "Stood the storm");
    browser.write("review-input-body", "Three nights of wind and it never moved.");
    browser.click("review-submit");
    browser.find("review-posted");
    assert!(browser.text("review-list").contains("Stood the storm"));
}

#[test]
fn the_published_products_are_sold_too() {
    let Some((chromium, chromedriver)) = tools() else { return };
    let Some(data) = std::env::var_os("MESHWORK_DATA") else {
        meshwork_testkit::skip("MESHWORK_DATA does not name the published data");
        return;
    };
    let platform = Platform::up(8, Some(&Path::new(&data).join("online-retail/products.csv")));
    let browser = Browser::start(&chromium, &chromedriver);
    search_and_open(&browser, &platform, "union jack");
    browser.open(&platform.page("/products"));
    let count = browser.text("result-count");
    let digits: String = count.chars().filter(char::is_ascii_digit).collect();
    assert!(digits.contains("4100"), "200 of our own and 3,900 published products: {count}");
}
