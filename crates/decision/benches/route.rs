//! Nanoseconds per routing decision at 1, 100 and 5,000 routes, the time of one edit among them, and of a pick.
//! `cargo bench -p meshwork-decision`; numbers are for people, nothing fails by time.

use std::hint::black_box;
use std::io::Write;
use std::sync::Arc;

use meshwork_base::{Clock, SeededRng, SystemClock, Tick};
use meshwork_decision::{Change, NoReasons, OwnedRequest, Routed, Snapshot, SnapshotBuilder};
use meshwork_messages::v1;

fn main() -> std::io::Result<()> {
    let clock = SystemClock::new();
    let mut out = std::io::stdout().lock();
    for count in [1, 100, 5_000] {
        for (layout, one_host) in [("one host", true), ("a host each", false)] {
            bench(&mut out, &clock, count, layout, one_host)?;
        }
    }
    Ok(())
}

fn bench(
    out: &mut impl Write,
    clock: &SystemClock,
    count: usize,
    layout: &str,
    one_host: bool,
) -> std::io::Result<()> {
    let mut builder = SnapshotBuilder::new();
    let start = clock.now();
    let rejections = builder.apply(world(count, one_host));
    assert!(rejections.is_empty(), "{rejections:?}");
    let snapshot = builder.build();
    let built = clock.now().since(start);

    let requests: Vec<_> =
        (0..count.min(1000)).map(|i| request(i * count / count.min(1000), one_host)).collect();
    let route = per_call(clock, 2_000_000, |i| {
        black_box(find(&snapshot, &requests[i % requests.len()]));
    });
    let warm = per_call(clock, 2_000_000, |_| {
        black_box(find(&snapshot, &requests[0]));
    });

    let mut rng = SeededRng::new(1);
    let cluster = snapshot.clusters().next().expect("the world has a service");
    let pick = per_call(clock, 2_000_000, |_| drop(black_box(cluster.pick(Tick::ZERO, &mut rng, &[]))));

    let edits = 100.min(count);
    let edit = per_call(clock, edits, |i| {
        builder.apply([route_change(i, one_host, "/edited")]);
        black_box(builder.build());
    });
    writeln!(
        out,
        "{count:>5} routes, {layout:<11}: route {route:>4} ns ({warm} ns the same again), pick {pick} ns, \
         edit {} µs, build from nothing {built:?}",
        edit / 1000
    )
}

fn per_call(clock: &SystemClock, times: usize, mut call: impl FnMut(usize)) -> u128 {
    let start = clock.now();
    for i in 0..times {
        call(i);
    }
    clock.now().since(start).as_nanos() / times as u128
}

fn find(snapshot: &Arc<Snapshot>, request: &OwnedRequest) -> usize {
    match snapshot.bindings()[0].route(request, None, &mut NoReasons) {
        Routed::Matched(matched) => matched.rule_index(),
        Routed::NotFound { cause, .. } => panic!("{cause}"),
    }
}

fn host(i: usize, one_host: bool) -> String {
    if one_host { "shop.example.com".into() } else { format!("shop-{i}.example.com") }
}

fn request(i: usize, one_host: bool) -> OwnedRequest {
    OwnedRequest::get(&host(i, one_host), &format!("/service-{i}/items/42?page=2"))
        .with_header("user-agent", "bench")
        .with_header("x-canary", "yes")
}

fn route_change(i: usize, one_host: bool, suffix: &str) -> Change {
    use v1::string_match::Kind;
    let text = |kind| Some(v1::StringMatch { kind: Some(kind) });
    let prefix = format!("/service-{i}{}", if suffix.is_empty() { "" } else { "/items" });
    let canary = v1::FieldMatch { name: "x-canary".into(), value: text(Kind::Exact("yes".into())) };
    let plain = v1::Match { path: text(Kind::Prefix(prefix)), ..Default::default() };
    let with_header = v1::Match { headers: vec![canary], ..plain.clone() };
    let backend = v1::Backend { service: "ns/a".into(), port: 80, weight: 1, ..Default::default() };
    let rule = |matched| v1::Rule {
        matches: vec![matched],
        backends: vec![backend.clone()],
        request_timeout_ms: 15_000,
        ..Default::default()
    };
    let message = v1::Route {
        source: Some(v1::Source {
            kind: "HTTPRoute".into(),
            namespace: "ns".into(),
            name: format!("r{i}"),
            file: "routes.yaml".into(),
            line: 1,
            ..Default::default()
        }),
        attachments: vec![v1::route::Attachment {
            parent: Some(v1::route::attachment::Parent::Listener("ns/gw/web".into())),
            service_port: 0,
            hostnames: vec![host(i, one_host)],
        }],
        rules: vec![rule(plain), rule(with_header)],
    };
    Change::upsert(&format!("HTTPRoute/ns/r{i}"), "1", &message)
}

fn world(count: usize, one_host: bool) -> Vec<Change> {
    let listener =
        v1::Listener { port: 8080, protocol: v1::listener::Protocol::Http.into(), ..Default::default() };
    let service = v1::Service {
        ports: vec![v1::ServicePort { name: "http".into(), port: 80, protocol: 0 }],
        ..Default::default()
    };
    let endpoint = |i| v1::Endpoint {
        addresses: vec![format!("10.0.0.{i}")],
        health: v1::endpoint::Health::Healthy.into(),
        weight: 1,
        ..Default::default()
    };
    let slice = v1::EndpointSlice {
        service: "ns/a".into(),
        ports: vec![v1::EndpointPort { name: "http".into(), port: 8080 }],
        endpoints: (1..=10).map(endpoint).collect(),
        ..Default::default()
    };
    let mut changes = vec![
        Change::upsert("ns/gw/web", "1", &listener),
        Change::upsert("ns/a", "1", &service),
        Change::upsert("ns/a-1", "1", &slice),
    ];
    changes.extend((0..count).map(|i| route_change(i, one_host, "")));
    changes
}
