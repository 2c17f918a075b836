//! Starts the shop's real processes on ephemeral ports and talks to them.

#![allow(dead_code, unreachable_pub, reason = "every test file uses a part of it")]

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// Whoever waits longer than this for something that should come at once has found a bug.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const CATALOG: &str = env!("CARGO_BIN_EXE_commerce-catalog");
pub const INVENTORY: &str = env!("CARGO_BIN_EXE_commerce-inventory");
pub const STOREFRONT: &str = env!("CARGO_BIN_EXE_commerce-storefront");
pub const IMPORT: &str = env!("CARGO_BIN_EXE_commerce-import");

/// A running service; killed when dropped.
pub struct Service {
    child: Child,
    pub address: String,
    _data: Option<tempfile::TempDir>,
}

impl Service {
    /// Starts `program` with a data directory of its own, and waits until it says where it listens.
    pub fn start(program: &str, env: &[(&str, &str)]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut service = Self::start_in(program, data.path(), env);
        service._data = Some(data);
        service
    }

    /// The same, but nobody reads its log from then on, and what it writes there is an error.
    pub fn start_unheard(program: &str) -> Self {
        let data = tempfile::tempdir().unwrap();
        let (mut service, _log) = Self::begin(program, data.path(), &[]);
        service._data = Some(data);
        service
    }

    pub fn start_in(program: &str, data: &Path, env: &[(&str, &str)]) -> Self {
        let (service, mut log) = Self::begin(program, data, env);
        // A full pipe would stop the service.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        service
    }

    fn begin(program: &str, data: &Path, env: &[(&str, &str)]) -> (Self, BufReader<ChildStderr>) {
        let mut command = if program.ends_with(".py") {
            let mut python = Command::new("python3");
            python.arg(program);
            python
        } else {
            Command::new(program)
        };
        for variable in ["MESHWORK_OUTBOUND", "COMMERCE_IMPORT", "HTTP_PROXY", "RUST_LOG"] {
            command.env_remove(variable);
        }
        command.env("HOST", "127.0.0.1").env("PORT", "0").env("DATA_DIR", data).envs(env.iter().copied());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let address = loop {
            let begin = said.len();
            assert!(log.read_line(&mut said).unwrap() > 0, "{program} ended before it listened:\n{said}");
            let line: serde_json::Value = serde_json::from_str(&said[begin..])
                .unwrap_or_else(|e| panic!("a log line of {program} is no JSON ({e}): {}", &said[begin..]));
            if line["message"] == "listening" {
                break line["address"].as_str().unwrap().to_owned();
            }
        };
        (Self { child, address, _data: None }, log)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn terminate(&self) {
        let kill = format!("kill -TERM {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// The exit status, once the process has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let wait = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the process does not end")
    }

    pub async fn kill(&mut self) {
        self.child.kill().unwrap();
        self.ended().await;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub fn reviews_script() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/reviews/server.py").to_owned()
}

/// Whether the Python service can run; without it the test is skipped, which `MESHWORK_REQUIRE=all` forbids.
pub fn python(test: &str) -> bool {
    let found = Command::new("python3").arg("--version").output().is_ok_and(|o| o.status.success());
    found || skip(test, "python3 is not installed")
}

/// The folder of published data, if there is one.
pub fn published(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("MESHWORK_DATA").map(PathBuf::from).filter(|f| f.is_dir());
    if folder.is_none() {
        skip(test, "MESHWORK_DATA names no folder of published data");
    }
    folder
}

/// Says that a test is skipped, and notes it where `tests/run` counts. The shop imports no Meshwork crate, so this is a
/// twin of `meshwork_testkit::skip`.
fn skip(test: &str, why: &str) -> bool {
    assert!(std::env::var("MESHWORK_REQUIRE").as_deref() != Ok("all"), "{test} must not be skipped: {why}");
    let line = format!("skipped: {} {test}: {why}\n", file!());
    // Past the test harness's capture: a skip that nobody sees is a silent gap.
    drop(std::io::stderr().write_all(line.as_bytes()));
    if let Some(list) = std::env::var_os("MESHWORK_SKIPPED")
        && let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(list)
    {
        drop(file.write_all(line.as_bytes()));
    }
    false
}

/// An HTTP answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    pub fn problem(&self, status: u16) -> serde_json::Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["status"], status);
        assert!(problem["detail"].as_str().is_some_and(|d| !d.is_empty()), "{problem}");
        problem
    }

    /// Text of the first element with this `data-testid`, tags taken out.
    pub fn text(&self, id: &str) -> Option<String> {
        let at = self.body.find(&format!("data-testid=\"{id}\""))?;
        let open = self.body[..at].rfind('<')? + 1;
        let name = &self.body[open..open + self.body[open..].find([' ', '>'])?];
        let begin = at + self.body[at..].find('>')? + 1;
        let end = begin + self.body[begin..].find(&format!("</{name}>"))?;
        let (mut text, mut inside) = (String::new(), true);
        for c in self.body[begin..end].chars() {
            match c {
                '<' => inside = false,
                '>' => inside = true,
                c if inside => text.push(c),
                _ => {}
            }
        }
        Some(text)
    }

    pub fn has(&self, id: &str) -> bool {
        self.body.contains(&format!("data-testid=\"{id}\""))
    }

    pub fn count(&self, id: &str) -> usize {
        self.body.matches(&format!("data-testid=\"{id}\"")).count()
    }
}

pub type HttpClient = Client<HttpConnector, Full<Bytes>>;

pub fn http_client() -> HttpClient {
    Client::builder(TokioExecutor::new()).build_http()
}

pub async fn send(request: Request<Full<Bytes>>) -> Answer {
    let exchange = async {
        let response = http_client().request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("no answer")
}

pub async fn get(url: &str) -> Answer {
    send(Request::get(url).body(Full::default()).unwrap()).await
}

pub async fn post(url: &str, kind: &str, body: impl Into<Bytes>) -> Answer {
    let request = Request::post(url).header("content-type", kind);
    send(request.body(Full::new(body.into())).unwrap()).await
}

pub async fn post_json(url: &str, body: &serde_json::Value) -> Answer {
    post(url, "application/json", body.to_string()).await
}
