//! What a message keeps and loses between versions, over generated exchanges: HTTP/1.1 and HTTP/2 on both sides.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod h1;
mod h2;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::Settings;
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::{Harness, rule};
use tokio::sync::mpsc;

/// What a message is made of, as it was sent or as it arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// Fields that begin with `x-`, in order.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) cookie: Option<String>,
    pub(crate) te: Option<String>,
    pub(crate) length: Option<String>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// It had an end, and did not only stop.
    pub(crate) whole: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) host: String,
    pub(crate) message: Message,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) interim: Vec<u16>,
    pub(crate) status: u16,
    pub(crate) message: Message,
}

/// One exchange.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) cookies: Vec<String>,
    pub(crate) te: bool,
    pub(crate) request: Body,
    pub(crate) hints: bool,
    pub(crate) status: u16,
    pub(crate) response: Body,
}

/// A body as its sender sends it.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    pub(crate) chunks: Vec<Vec<u8>>,
    pub(crate) declared: bool,
    pub(crate) trailers: Vec<(String, String)>,
    /// Its sender breaks off before the end.
    pub(crate) cut: bool,
}

impl Body {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.chunks.concat()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    H1,
    H2,
}

fn fields() -> impl Strategy<Value = Vec<(String, String)>> {
    proptest::collection::vec(("x-[a-c]", "([!-~]([ -~]{0,20}[!-~])?)?"), 0..5)
}

fn body() -> impl Strategy<Value = Body> {
    let chunk = (any::<u8>(), 1usize..40_000).prop_map(|(byte, len)| vec![byte; len]);
    let chunks = proptest::collection::vec(chunk, 0..4);
    (chunks, any::<bool>(), fields(), 0..6u8).prop_map(|(chunks, declared, trailers, cut)| Body {
        cut: cut == 0 && !chunks.is_empty(),
        chunks,
        declared,
        trailers,
    })
}

fn plan() -> impl Strategy<Value = Plan> {
    let method = prop_oneof![Just(Method::GET), Just(Method::HEAD), Just(Method::POST)];
    let status = prop_oneof![4 => Just(200u16), 1 => Just(204), 1 => Just(304), 1 => Just(404)];
    let cookies = proptest::collection::vec("[a-z]=[0-9]{1,3}", 0..4);
    let head = (method, "/[a-z]{0,9}(\\?[a-z=&]{0,9})?", fields(), cookies, any::<bool>());
    (head, body(), any::<bool>(), status, body()).prop_map(|(head, mut request, hints, status, response)| {
        let (method, target, fields, cookies, te) = head;
        if method != Method::POST {
            request = Body { chunks: vec![], declared: false, trailers: vec![], cut: false };
        }
        request.cut = false;
        Plan { method, target, fields, cookies, te, request, hints, status, response }
    })
}

/// What must arrive of a body that went from one version to another, if it has one at all.
fn arrived(body: &Body, from: Version, to: Version) -> (Vec<u8>, Vec<(String, String)>) {
    // HTTP/1.1 has trailers behind chunks only.
    let lost = body.declared && (from == Version::H1 || to == Version::H1);
    (body.bytes(), if lost { vec![] } else { body.trailers.clone() })
}

fn check_request(plan: &Plan, from: Version, to: Version, asked: &Asked) {
    let sent = &asked.message;
    assert_eq!((&asked.method, &asked.target, &asked.host[..]), (&plan.method, &plan.target, "shop"));
    assert_eq!(by_name(&sent.fields), by_name(&plan.fields));
    let cookie = (!plan.cookies.is_empty()).then(|| plan.cookies.join("; "));
    assert_eq!(sent.cookie, cookie, "crumbs are one field");
    let te = (plan.te && to == Version::H2).then(|| "trailers".to_owned());
    assert_eq!(sent.te, te, "it is of one connection: between proxies it is said anew");
    let (body, trailers) = arrived(&plan.request, from, to);
    assert!(sent.whole && sent.body == body, "{} of {} bytes", sent.body.len(), body.len());
    // A request that declares to have no bytes is done with its head.
    let done = plan.request.declared && body.is_empty();
    if plan.method == Method::POST && !done {
        assert_eq!(by_name(&sent.trailers), by_name(&trailers));
    }
}

fn check(plan: &Plan, from: Version, to: Version, asked: &Asked, got: &Answered) {
    check_request(plan, from, to, asked);
    let bodiless = plan.method == Method::HEAD || matches!(plan.status, 204 | 304);
    let answer = &got.message;
    if plan.response.cut && !bodiless {
        // A break may overtake the head: then the caller is told so.
        let told = got.status == 503 && plan.status != 503;
        assert!(!answer.whole || told, "a truncated body never has a clean end: {got:?}");
        return;
    }
    assert_eq!((got.status, answer.whole), (plan.status, true));
    assert_eq!(got.interim, if plan.hints { vec![103] } else { vec![] });
    let (body, trailers) = arrived(&plan.response, to, from);
    if bodiless {
        assert!(answer.body.is_empty() && answer.trailers.is_empty());
        return;
    }
    assert!(answer.body == body, "{} of {} bytes", answer.body.len(), body.len());
    assert_eq!(by_name(&answer.trailers), by_name(&trailers));
    if plan.response.declared {
        assert_eq!(answer.length, Some(body.len().to_string()));
    }
}

/// The order of fields of one name counts, that of names does not.
fn by_name(fields: &[(String, String)]) -> Vec<(String, String)> {
    let mut fields = fields.to_vec();
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    fields
}

/// An upstream that answers each request by the plan of the moment, and tells what it was asked.
struct Upstream {
    address: SocketAddr,
    plan: Arc<Mutex<Plan>>,
    asked: mpsc::Receiver<Asked>,
}

async fn exchange(plan: &Plan, from: Version, to: Version, edge: SocketAddr, up: &mut Upstream) {
    *up.plan.lock() = plan.clone();
    let got = async {
        match from {
            Version::H1 => h1::call(edge, plan).await,
            Version::H2 => h2::call(edge, plan).await,
        }
    };
    let (got, asked) = tokio::join!(got, up.asked.recv());
    check(plan, from, to, &asked.expect("the upstream lives"), &got);
    // What broke off before its response began was tried once more, where that may be done.
    while let Ok(again) = up.asked.try_recv() {
        assert_ne!(plan.method, Method::POST, "it may have been done already");
        check_request(plan, from, to, &again);
    }
}

fn crossing(from: Version, to: Version) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let empty = Body { chunks: vec![], declared: false, trailers: vec![], cut: false };
    let idle = Plan {
        method: Method::GET,
        target: "/".into(),
        fields: vec![],
        cookies: vec![],
        te: false,
        request: empty.clone(),
        hints: false,
        status: 200,
        response: empty,
    };
    let (_harness, edge, up) = runtime.block_on(async {
        let (tell, asked) = mpsc::channel(4);
        let plan = Arc::new(Mutex::new(idle));
        let address = match to {
            Version::H1 => h1::upstream(Arc::clone(&plan), tell).await,
            Version::H2 => h2::upstream(Arc::clone(&plan), tell).await,
        };
        let protocol = if to == Version::H1 { AppProtocol::Http1 } else { AppProtocol::Http2 };
        let mut harness = Harness::start(Settings::default());
        harness.service("web", protocol, &[address]).await;
        let edge = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
        (harness, edge, Upstream { address, plan, asked })
    });
    let up = std::cell::RefCell::new(up);
    assert!(up.borrow().address.port() > 0);
    let mut runner = TestRunner::new(Config { cases: 48, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&plan(), |plan| {
        let mut up = up.borrow_mut();
        let exchanged = exchange(&plan, from, to, edge, &mut up);
        let timely = async { tokio::time::timeout(Duration::from_secs(20), exchanged).await };
        runtime.block_on(timely).expect("nothing hangs");
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn from_http1_to_http1() {
    crossing(Version::H1, Version::H1);
}

#[test]
fn from_http1_to_http2() {
    crossing(Version::H1, Version::H2);
}

#[test]
fn from_http2_to_http1() {
    crossing(Version::H2, Version::H1);
}

#[test]
fn from_http2_to_http2() {
    crossing(Version::H2, Version::H2);
}
