//! A decision about an ordinary request allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use meshwork_base::{SeededRng, Tick};
use meshwork_decision::{
    Answer, AttemptOutcome, Change, Limited, NoReasons, OwnedRequest, Retry, Routed, SnapshotBuilder,
};
use meshwork_messages::v1;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[expect(unsafe_code, reason = "an allocator cannot be written without; it counts and passes everything on")]
// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the contract of `dealloc`, and `alloc` took the memory from there.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn prefix(text: &str) -> Option<v1::StringMatch> {
    Some(v1::StringMatch { kind: Some(v1::string_match::Kind::Prefix(text.into())) })
}

fn world() -> Vec<Change> {
    let listener = |protocol: v1::listener::Protocol, port| v1::Listener {
        port,
        protocol: protocol.into(),
        hostname: "*.example.com".into(),
        tls: (protocol == v1::listener::Protocol::Https).then(v1::TlsTermination::default),
        ..Default::default()
    };
    let service = v1::Service {
        ports: vec![v1::ServicePort { name: "http".into(), port: 80, protocol: 0 }],
        ..Default::default()
    };
    let endpoint = |i, weight| v1::Endpoint {
        addresses: vec![format!("10.0.0.{i}")],
        health: v1::endpoint::Health::Healthy.into(),
        weight,
        ..Default::default()
    };
    let slice = v1::EndpointSlice {
        service: "ns/a".into(),
        ports: vec![v1::EndpointPort { name: "http".into(), port: 8080 }],
        endpoints: vec![endpoint(1, 1), endpoint(2, 3)],
        ..Default::default()
    };
    let canary = v1::string_match::Kind::Exact("yes".into());
    let header =
        v1::FieldMatch { name: "x-canary".into(), value: Some(v1::StringMatch { kind: Some(canary) }) };
    let backend = |weight| v1::Backend { service: "ns/a".into(), port: 80, weight, ..Default::default() };
    let rule = |matched| v1::Rule {
        matches: vec![matched],
        backends: vec![backend(1), backend(2)],
        retry: Some(v1::Retry {
            attempts: Some(2),
            budget: Some(v1::RetryBudget::default()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let plain = v1::Match { path: prefix("/items"), ..Default::default() };
    let constrained = v1::Match { headers: vec![header], method: "GET".into(), ..plain.clone() };
    let at = |name: &str| v1::route::Attachment {
        parent: Some(v1::route::attachment::Parent::Listener(name.into())),
        ..Default::default()
    };
    let route = v1::Route {
        attachments: vec![at("ns/gw/http"), at("ns/gw/https")],
        rules: vec![rule(plain), rule(constrained)],
        ..Default::default()
    };
    vec![
        Change::upsert("ns/gw/http", "1", &listener(v1::listener::Protocol::Http, 8080)),
        Change::upsert("ns/gw/https", "1", &listener(v1::listener::Protocol::Https, 8443)),
        Change::upsert("ns/a", "1", &service),
        Change::upsert("ns/a-1", "1", &slice),
        Change::upsert("HTTPRoute/ns/r", "1", &route),
    ]
}

#[test]
fn an_ordinary_request_is_decided_on_without_allocating() {
    let mut builder = SnapshotBuilder::new();
    assert_eq!(builder.apply(world()), []);
    let snapshot = builder.build();
    let request =
        OwnedRequest::get("Shop.Example.com:8080", "/items/42?page=1").with_header("x-canary", "yes");
    let mut rng = SeededRng::new(1);
    let mut decide = || {
        for binding in snapshot.bindings() {
            let routed = binding.route(&request, Some("shop.example.com"), &mut NoReasons);
            let Routed::Matched(matched) = routed else { panic!("the route takes it") };
            assert_eq!(matched.rule_index(), 1);
            assert!(matched.policy().authorization.check(&request, &mut NoReasons).is_ok());
            let (_, cluster) = matched.rule().choose_backend(&mut rng, &mut NoReasons).expect("two backends");
            let _times = matched.policy().timeouts(Some(cluster));
            let retry = Retry::begin(matched.policy().retry(cluster), cluster, Tick::ZERO);
            let _permit = cluster.admit(Limited::Request).expect("no limit");
            let endpoint = cluster.pick(Tick::ZERO, &mut rng, retry.tried()).expect("two endpoints");
            let _in_flight = endpoint.begin();
            let answer = Answer::new(AttemptOutcome::Success, Duration::from_millis(3));
            assert!(cluster.record(&endpoint, &answer, Tick::ZERO).is_empty());
        }
    };
    decide(); // once, since a thread's first read of a shared pointer makes its place
    let before = ALLOCATIONS.with(Cell::get);
    for _ in 0..100 {
        decide();
    }
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
}
