//! What keeps a caller's requests together: consistent hashing and session persistence at work.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;

use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::hash_rule::Kind;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_messages::v1::traffic_policy::Algorithm;
use meshwork_proxy::Settings;
use support::{Harness, Upstream, exchange, is_head, rule, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Upstreams that say who they are.
async fn named(count: usize) -> Vec<Upstream> {
    let mut all = Vec::new();
    for name in 0..count {
        let answer = format!("HTTP/1.1 200 OK\r\nx-name: {name}\r\ncontent-length: 0\r\n\r\n").into_bytes();
        all.push(upstream(move |got| is_head(got).then(|| answer.clone())).await);
    }
    all
}

async fn hashing(algorithm: Algorithm, rules: Vec<Kind>) -> (Harness, Vec<Upstream>, SocketAddr) {
    let upstreams = named(5).await;
    let mut harness = Harness::start(Settings::default());
    let addresses: Vec<_> = upstreams.iter().map(|upstream| upstream.address).collect();
    harness.service("web", AppProtocol::Http1, &addresses).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let hash_policy = rules.into_iter().map(|kind| v1::HashRule { kind: Some(kind), terminal: true });
    let load_balancer = v1::LoadBalancer { hash_policy: hash_policy.collect(), ..Default::default() };
    let spec = v1::TrafficPolicy {
        algorithm: algorithm.into(),
        load_balancer: Some(load_balancer),
        ..Default::default()
    };
    let target =
        v1::policy::Target { kind: "Service".into(), name: "default/web".into(), section: String::new() };
    let spec = Some(v1::policy::Spec::Traffic(spec));
    let policy = v1::Policy { source: None, targets: vec![target], spec };
    harness.change([Change::upsert("default/p", "1", &policy)]).await;
    (harness, upstreams, address)
}

/// The value of a field in a response's head.
fn field<'r>(response: &'r str, name: &str) -> Option<&'r str> {
    response.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

async fn get(address: SocketAddr, path: &str, fields: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n");
    let response = exchange(address, request.as_bytes()).await;
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    response
}

async fn name(address: SocketAddr, path: &str, fields: &str) -> String {
    field(&get(address, path, fields).await, "x-name").unwrap().to_owned()
}

#[tokio::test]
async fn requests_that_are_alike_go_to_one_endpoint() {
    for algorithm in [Algorithm::RingHash, Algorithm::Maglev] {
        let rules = vec![Kind::Header("x-user".into()), Kind::QueryParameter("user".into())];
        let (_harness, _upstreams, address) = hashing(algorithm, rules).await;
        let mut seen = std::collections::BTreeSet::new();
        for user in 0..20 {
            let header = format!("X-User: {user}\r\n");
            let first = name(address, "/", &header).await;
            assert_eq!(name(address, "/other?user=no", &header).await, first, "the header is terminal");
            assert_eq!(name(address, &format!("/?a=b&user={user}"), "").await, first, "one value, one hash");
            seen.insert(first);
        }
        assert!(seen.len() >= 3, "{algorithm:?}: twenty users at {seen:?}");
    }
}

#[tokio::test]
async fn of_one_address_all_goes_to_one_endpoint() {
    let (_harness, _upstreams, address) = hashing(Algorithm::Maglev, vec![Kind::SourceAddress(true)]).await;
    let first = name(address, "/", "").await;
    for _ in 0..10 {
        assert_eq!(name(address, "/x", "").await, first);
    }
}

#[tokio::test]
async fn a_caller_without_the_cookie_gets_one_that_leads_back() {
    let cookie = v1::HashCookie { name: "lb".into(), ttl_seconds: Some(60), path: "/".into() };
    let (_harness, _upstreams, address) = hashing(Algorithm::RingHash, vec![Kind::Cookie(cookie)]).await;
    for _ in 0..8 {
        let response = get(address, "/", "Cookie: other=1\r\n").await;
        let set = field(&response, "set-cookie").unwrap();
        let (pair, attributes) = set.split_once("; ").unwrap();
        assert_eq!(attributes, "Max-Age=60; Path=/; HttpOnly", "{set}");
        let again = get(address, "/", &format!("Cookie: other=1; {pair}\r\n")).await;
        assert_eq!(field(&again, "x-name"), field(&response, "x-name"));
        assert_eq!(field(&again, "set-cookie"), None, "it has one already");
    }
}

/// Two services of three upstreams each share the requests; the rule keeps sessions.
async fn keeping(
    session: v1::SessionPersistence,
    weights: (u32, u32),
) -> (Harness, Vec<Upstream>, SocketAddr) {
    let upstreams = named(6).await;
    let mut harness = Harness::start(Settings::default());
    let addresses: Vec<_> = upstreams.iter().map(|upstream| upstream.address).collect();
    harness.service("one", AppProtocol::Http1, &addresses[..3]).await;
    harness.service("two", AppProtocol::Http1, &addresses[3..]).await;
    let backends = [("one", weights.0), ("two", weights.1)];
    let rule = v1::Rule { session: Some(session), ..rule(&backends, vec![]) };
    let address = harness.route(vec![rule]).await;
    (harness, upstreams, address)
}

fn cookies() -> v1::SessionPersistence {
    v1::SessionPersistence { name: "sid".into(), ..Default::default() }
}

#[tokio::test]
async fn a_caller_stays_with_who_answered_also_across_services_that_share_a_rule() {
    let (_harness, upstreams, address) = keeping(cookies(), (1, 1)).await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..12 {
        let first = get(address, "/", "").await;
        let set = field(&first, "set-cookie").unwrap();
        let (pair, attributes) = set.split_once("; ").unwrap();
        assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Strict");
        let tells = |upstream: &Upstream| pair.contains(&upstream.address.port().to_string());
        assert!(!upstreams.iter().any(tells), "an address in {pair}");
        for _ in 0..5 {
            let again = get(address, "/", &format!("Cookie: {pair}\r\n")).await;
            assert_eq!(field(&again, "x-name"), field(&first, "x-name"));
            assert_eq!(field(&again, "set-cookie"), None, "the session goes on");
        }
        seen.insert(field(&first, "x-name").unwrap().to_owned());
    }
    assert!(seen.len() > 2, "new callers are balanced: {seen:?}");
}

#[tokio::test]
async fn a_session_goes_before_a_weight_of_none_and_by_header_too() {
    let header = v1::SessionPersistence {
        name: "x-session".into(),
        carrier: v1::session_persistence::Carrier::Header.into(),
        ..Default::default()
    };
    let (mut harness, _upstreams, address) = keeping(header.clone(), (1, 0)).await;
    let first = get(address, "/", "").await;
    let token = field(&first, "x-session").unwrap().to_owned();
    let rule = v1::Rule { session: Some(header), ..rule(&[("one", 0), ("two", 1)], vec![]) };
    let address = harness.route(vec![rule]).await;
    let again = get(address, "/", &format!("X-Session: {token}\r\n")).await;
    assert_eq!(field(&again, "x-name"), field(&first, "x-name"), "though its weight is 0 now");
    let new = name(address, "/", "").await;
    assert!(["3", "4", "5"].contains(&new.as_str()), "a new caller goes by weight: {new}");
}

/// What a caller brings who has had this cookie or header for some milliseconds more.
fn older(value: &str, millis: u64) -> String {
    let (before, used) = value.rsplit_once('.').unwrap();
    format!("{before}.{:x}", u64::from_str_radix(used, 16).unwrap() - millis)
}

#[tokio::test]
async fn a_session_that_is_used_is_told_anew_and_one_that_was_not_begins_anew() {
    use v1::session_persistence::Carrier;
    for carrier in [Carrier::SessionCookie, Carrier::Header] {
        let session =
            v1::SessionPersistence { carrier: carrier.into(), idle_timeout_ms: 3_600_000, ..cookies() };
        let (_harness, _upstreams, address) = keeping(session, (1, 1)).await;
        let told = |response: &str| match carrier {
            Carrier::Header => field(response, "sid").map(str::to_owned),
            _ => {
                let pair = field(response, "set-cookie")?.split_once(';')?.0;
                Some(pair.strip_prefix("sid=")?.to_owned())
            }
        };
        let brings = |value: &str| match carrier {
            Carrier::Header => format!("Sid: {value}\r\n"),
            _ => format!("Cookie: sid={value}\r\n"),
        };
        let first = get(address, "/", "").await;
        let value = told(&first).unwrap();
        let again = get(address, "/", &brings(&value)).await;
        assert_eq!(
            (told(&again), field(&again, "x-name")),
            (None, field(&first, "x-name")),
            "a moment later"
        );
        let older = older(&value, 1_800_000);
        let later = get(address, "/", &brings(&older)).await;
        assert_eq!(field(&later, "x-name"), field(&first, "x-name"), "half an hour later");
        let anew = told(&later).unwrap();
        let (is_same, is_later) = (anew[..16] == value[..16], anew > older);
        assert!(is_same && is_later, "{anew} for {older}");
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..24 {
            let late = get(address, "/", &brings(&self::older(&value, 3_660_000))).await;
            assert!(told(&late).is_some(), "it is over");
            seen.insert(field(&late, "x-name").unwrap().to_owned());
        }
        assert!(seen.len() > 1, "they are new callers: {seen:?}");
    }
}

#[tokio::test]
async fn a_caller_whose_endpoint_cannot_be_reached_has_a_new_session_with_who_has_answered() {
    // It answers one connection and is gone.
    let once = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stays = named(1).await;
    let mut harness = Harness::start(Settings::default());
    let addresses = [once.local_addr().unwrap(), stays[0].address];
    harness.service("web", AppProtocol::Http1, &addresses).await;
    let rule = v1::Rule { session: Some(cookies()), ..rule(&[("web", 1)], vec![]) };
    let address = harness.route(vec![rule]).await;
    let serving = tokio::spawn(async move {
        let (mut tcp, _) = once.accept().await.unwrap();
        let mut got = Vec::new();
        while !is_head(&got) {
            tcp.read_buf(&mut got).await.unwrap();
        }
        tcp.write_all(b"HTTP/1.1 200 OK\r\nx-name: once\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            .await
            .unwrap();
    });
    let first = loop {
        let first = get(address, "/", "").await;
        if field(&first, "x-name") == Some("once") {
            break first;
        }
    };
    serving.await.unwrap();
    let pair = field(&first, "set-cookie").unwrap().split_once(';').unwrap().0;
    let second = get(address, "/", &format!("Cookie: {pair}\r\n")).await;
    assert_eq!(field(&second, "x-name"), Some("0"));
    let anew = field(&second, "set-cookie").expect("a new session").split_once(';').unwrap().0;
    assert_ne!(anew, pair);
}

#[tokio::test]
async fn the_session_of_an_endpoint_that_is_gone_begins_anew() {
    let (mut harness, _upstreams, address) = keeping(cookies(), (1, 0)).await;
    let first = get(address, "/", "").await;
    let pair = field(&first, "set-cookie").unwrap().split_once(';').unwrap().0.to_owned();
    let gone: usize = field(&first, "x-name").unwrap().parse().unwrap();
    harness.change([Change::remove::<v1::EndpointSlice>(&format!("default/one-{gone}"))]).await;
    let second = get(address, "/", &format!("Cookie: {pair}\r\n")).await;
    let heir = field(&second, "x-name").unwrap();
    assert_ne!(heir, gone.to_string());
    let anew = field(&second, "set-cookie").unwrap().split_once(';').unwrap().0.to_owned();
    assert_ne!(anew, pair);
    for _ in 0..5 {
        assert_eq!(name(address, "/", &format!("Cookie: {anew}\r\n")).await, heir);
    }
}
