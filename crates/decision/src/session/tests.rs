use meshwork_messages::v1;

use super::*;
use crate::builder::{Change, SnapshotBuilder};
use crate::request::OwnedRequest;
use crate::tests::{
    backend, build, key, path, policy_change, prefix, route, rule, service, service_change, slice, snapshot,
    wire_endpoint,
};

const WALL: Duration = Duration::from_secs(1_800_000_000);

fn kept(carrier: Carrier, absolute_timeout: Option<Duration>) -> SessionPersistence {
    SessionPersistence { name: "sid".into(), carrier, absolute_timeout, idle_timeout: None, salt: 7 }
}

impl SessionPersistence {
    fn first(&self, request: &OwnedRequest, wall: Duration) -> Option<Brought> {
        self.brought(request, wall).next()
    }
}

fn back(session: &NewSession) -> OwnedRequest {
    let get = OwnedRequest::get("h", "/");
    match session {
        NewSession::Cookie(cookie) => {
            get.with_header("cookie", &format!("a=b; {}={}", cookie.name, cookie.value))
        }
        NewSession::Header(name, value) => get.with_header(name, value),
    }
}

#[test]
fn what_is_answered_leads_back_in_each_carrier() {
    let (one, other) = (crate::tests::endpoint(1, 1), crate::tests::endpoint(2, 1));
    for carrier in [Carrier::SessionCookie, Carrier::PermanentCookie, Carrier::Header] {
        let session = kept(carrier, Some(Duration::from_secs(60)));
        let brought =
            session.first(&back(&session.begin(&one, "/", WALL)), WALL).map(|brought| brought.token);
        assert_eq!(brought, Some(session.token(&one)), "{carrier:?}");
        assert_ne!(brought, Some(session.token(&other)));
    }
    let cookie = |carrier| match kept(carrier, Some(Duration::from_secs(60))).begin(&one, "/cart", WALL) {
        NewSession::Cookie(cookie) => cookie.to_field(true),
        NewSession::Header(..) => panic!("a cookie"),
    };
    let field = cookie(Carrier::PermanentCookie);
    assert!(field.ends_with("; Max-Age=60; Path=/cart; HttpOnly; Secure; SameSite=Strict"), "{field}");
    assert!(!cookie(Carrier::SessionCookie).contains("Max-Age"), "it ends with the browser");
}

#[test]
fn a_session_ends_with_its_time_and_not_before() {
    let endpoint = crate::tests::endpoint(1, 1);
    let session = kept(Carrier::SessionCookie, Some(Duration::from_secs(60)));
    let request = back(&session.begin(&endpoint, "/", WALL));
    let after = |seconds| session.first(&request, WALL + Duration::from_secs(seconds)).is_some();
    assert!(after(0) && after(59) && !after(60) && !after(1_000));
    let shorter = kept(Carrier::SessionCookie, Some(Duration::from_secs(10)));
    assert_eq!(shorter.first(&request, WALL), None, "made under a longer time");
    let without = kept(Carrier::SessionCookie, None);
    assert_eq!(session.first(&back(&without.begin(&endpoint, "/", WALL)), WALL), None, "made without a time");
    assert!(without.first(&request, WALL + Duration::from_secs(1_000)).is_some(), "no time counts any more");
}

/// As it was written before it was in milliseconds: during an upgrade both are brought.
#[test]
fn an_end_in_seconds_counts_too() {
    let endpoint = crate::tests::endpoint(1, 1);
    let session = kept(Carrier::SessionCookie, Some(Duration::from_secs(60)));
    let token = session.token(&endpoint);
    let value = format!("sid={token:016x}.{:x}", WALL.as_secs() + 60);
    let request = OwnedRequest::get("h", "/").with_header("cookie", &value);
    let after = |seconds| session.first(&request, WALL + Duration::from_secs(seconds)).is_some();
    assert!(after(0) && after(59) && !after(60));
}

#[test]
fn a_session_that_begins_within_a_second_has_its_whole_time_and_no_more() {
    let endpoint = crate::tests::endpoint(1, 1);
    let session = kept(Carrier::SessionCookie, Some(Duration::from_secs(60)));
    let began = WALL + Duration::from_millis(500);
    let request = back(&session.begin(&endpoint, "/", began));
    for (millis, holds) in [(0, true), (59_999, true), (60_000, false), (60_400, false)] {
        let brought = session.first(&request, began + Duration::from_millis(millis));
        assert_eq!(brought.is_some(), holds, "{millis}");
    }
}

const IDLE: Duration = Duration::from_secs(600);

fn ending(carrier: Carrier, absolute_timeout: Option<Duration>) -> SessionPersistence {
    SessionPersistence { idle_timeout: Some(IDLE), ..kept(carrier, absolute_timeout) }
}

fn value(session: &NewSession) -> &str {
    match session {
        NewSession::Cookie(cookie) => &cookie.value,
        NewSession::Header(_, value) => value,
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_session_that_nobody_uses_for_long_is_over_and_one_that_is_used_goes_on() {
    let endpoint = crate::tests::endpoint(1, 1);
    for carrier in [Carrier::SessionCookie, Carrier::PermanentCookie, Carrier::Header] {
        let absolute = (carrier == Carrier::PermanentCookie).then_some(seconds(86_400));
        let session = ending(carrier, absolute);
        let mut told = session.begin(&endpoint, "/", WALL);
        let after = |told: &NewSession, idle| session.first(&back(told), WALL + idle).is_some();
        assert!(after(&told, IDLE) && !after(&told, IDLE + Duration::from_millis(1)), "{carrier:?}");
        // Used every nine minutes for an hour and a half.
        for times in 1..=10 {
            let now = WALL + seconds(540 * times);
            let brought = session.first(&back(&told), now).expect("it was used nine minutes ago");
            assert_eq!(brought.token, session.token(&endpoint));
            let renewal = brought.renewal.expect("that it was used has to be told");
            told = session.renew(renewal, &endpoint, "/", now);
        }
        let last = seconds(5_400);
        assert!(after(&told, last + IDLE) && !after(&told, last + IDLE + seconds(1)), "{carrier:?}");
    }
}

#[test]
fn that_a_session_is_used_is_told_once_in_a_tenth_of_its_time_or_a_minute() {
    let endpoint = crate::tests::endpoint(1, 1);
    for (idle, untold) in [(10, 1), (600, 60), (86_400, 60)] {
        let session =
            SessionPersistence { idle_timeout: Some(seconds(idle)), ..kept(Carrier::SessionCookie, None) };
        let request = back(&session.begin(&endpoint, "/", WALL));
        let told = |after| session.first(&request, WALL + after).expect("it holds").renewal.is_some();
        let untold = seconds(untold);
        assert_eq!(
            (told(Duration::ZERO), told(untold - Duration::from_millis(1)), told(untold)),
            (false, false, true)
        );
    }
    let without = kept(Carrier::SessionCookie, Some(seconds(60)));
    let brought = without.first(&back(&without.begin(&endpoint, "/", WALL)), WALL + seconds(59));
    assert_eq!(brought.map(|brought| brought.renewal), Some(None), "nobody wants to know");
}

#[test]
fn whoever_uses_a_session_makes_its_end_no_later() {
    let endpoint = crate::tests::endpoint(1, 1);
    let session = ending(Carrier::PermanentCookie, Some(seconds(1_000)));
    let now = WALL + seconds(500);
    let first = session.begin(&endpoint, "/cart", WALL);
    let renewal = session.first(&back(&first), now).and_then(|brought| brought.renewal).expect("it is used");
    let told = session.renew(renewal, &endpoint, "/cart", now);
    let NewSession::Cookie(cookie) = &told else { panic!("a cookie") };
    assert_eq!((cookie.max_age, &*cookie.path), (seconds(500), "/cart"), "what is left of it");
    let after = |time| session.first(&back(&told), WALL + seconds(time)).is_some();
    assert!(after(999) && !after(1_000), "though it was used ten minutes ago or less");
    let longer = ending(Carrier::PermanentCookie, Some(seconds(10)));
    assert!(
        longer.first(&back(&longer.begin(&endpoint, "/", WALL)), WALL + seconds(10)).is_none(),
        "the sooner end counts"
    );
}

#[test]
fn what_was_made_without_an_idle_timeout_goes_on_and_is_told_anew() {
    let endpoint = crate::tests::endpoint(1, 1);
    for absolute in [None, Some(seconds(86_400))] {
        let (before, session) = (kept(Carrier::Header, absolute), ending(Carrier::Header, absolute));
        let old = before.begin(&endpoint, "/", WALL);
        let now = WALL + seconds(3_600);
        let brought = session.first(&back(&old), now).expect("nobody knows when it was used");
        let renewal = brought.renewal.expect("from now on it is known");
        let told = session.renew(renewal, &endpoint, "/", now);
        assert!(value(&told).starts_with(value(&old)), "{told:?}: the same end");
        assert!(session.first(&back(&told), now + IDLE + seconds(1)).is_none(), "{absolute:?}");
        let brought = before.first(&back(&told), now + IDLE + seconds(1));
        assert_eq!(
            brought.map(|brought| brought.renewal),
            Some(None),
            "and back: no idle time counts any more"
        );
    }
}

#[test]
fn a_last_use_far_ahead_of_the_clock_is_none() {
    let endpoint = crate::tests::endpoint(1, 1);
    let session = ending(Carrier::Header, None);
    let ahead = |time| session.first(&back(&session.begin(&endpoint, "/", WALL + time)), WALL).is_some();
    assert!(ahead(seconds(5)), "another proxy's clock");
    assert!(!ahead(IDLE + seconds(1)));
}

#[test]
fn what_is_no_token_is_none() {
    let session = kept(Carrier::Header, None);
    for value in [
        "",
        "x",
        "0123",
        "00112233445566778",
        "+123456789abcdef",
        "0011223344556677.zz",
        "0011223344556677..zz",
        "0011223344556677.1.1.1",
    ] {
        let request = OwnedRequest::get("h", "/").with_header("sid", value);
        assert_eq!(session.first(&request, WALL), None, "{value}");
    }
}

#[test]
fn a_token_says_nothing_of_its_endpoint_and_is_its_rule_s_own() {
    let endpoint = crate::tests::endpoint(1, 1);
    let NewSession::Header(_, value) = kept(Carrier::Header, None).begin(&endpoint, "/", WALL) else {
        panic!("a header");
    };
    assert_eq!(value.len(), 16);
    assert!(!value.contains("7f000001"), "an address: {value}");
    let of = |route: &str, rule: &str| {
        SessionPersistence { salt: SessionPersistence::salt(route, rule), ..kept(Carrier::Header, None) }
            .token(&endpoint)
    };
    assert_ne!(of("HTTPRoute/a/r", "one"), of("HTTPRoute/a/r", "two"));
    assert_ne!(of("HTTPRoute/a/r", "one"), of("HTTPRoute/a/s", "one"));
}

/// Two services share a rule's requests, the second with weight 0; their endpoints are 10.0.0.1 and 10.0.0.2.
fn split() -> Vec<Change> {
    let session = v1::SessionPersistence { name: "sid".into(), ..Default::default() };
    let rules = vec![v1::Rule {
        backends: vec![backend("ns/a", 80, 1), backend("ns/b", 80, 0)],
        session: Some(session),
        ..rule(vec![path(prefix("/"))])
    }];
    let of =
        |name: &str, address: &str| slice(&format!("{name}-1"), name, ("", 80), vec![wire_endpoint(address)]);
    vec![
        service_change(&service("ns/a", &[("", 80)])),
        service_change(&service("ns/b", &[("", 80)])),
        of("ns/a", "10.0.0.1"),
        of("ns/b", "10.0.0.2"),
        route("ns/r", 1, &[], rules),
    ]
}

#[test]
fn a_session_goes_before_weights_and_ends_with_its_endpoint() {
    let snapshot = snapshot(split());
    let cluster = snapshot.cluster(&key("ns/b", 80)).expect("a cluster");
    let route = snapshot.routes.values().next().expect("a route");
    let rule = &route.rules[0];
    let endpoint = Arc::clone(&cluster.endpoints().all()[0]);
    let persistence = rule.session_persistence().expect("it is kept");
    let request = back(&persistence.begin(&endpoint, "/", WALL));
    let resumed = rule.resume(&request, WALL, Tick::ZERO).expect("it leads somewhere");
    assert_eq!(
        (&*resumed.cluster.key.service, resumed.endpoint),
        ("ns/b", endpoint.id),
        "though its weight is 0"
    );
    assert!(rule.resume(&OwnedRequest::get("h", "/"), WALL, Tick::ZERO).is_none());
    endpoint.stats.standing.eject_until(1_000);
    assert!(rule.resume(&request, WALL, Tick::ZERO).is_none(), "it is ejected");
}

#[test]
fn of_several_cookies_of_one_name_the_first_counts_that_leads_to_somebody() {
    let snapshot = snapshot(split());
    let cluster = snapshot.cluster(&key("ns/b", 80)).expect("a cluster");
    let rule = &snapshot.routes.values().next().expect("a route").rules[0];
    let persistence = rule.session_persistence().expect("it is kept");
    let endpoint = Arc::clone(&cluster.endpoints().all()[0]);
    let holds = format!("sid={:016x}", persistence.token(&endpoint));
    let gone = format!("sid={:016x}", persistence.token(&crate::tests::endpoint(9, 1)));
    let leads = |values: &[&str]| {
        let request = OwnedRequest::get("h", "/").with_header("cookie", &values.join("; "));
        rule.resume(&request, WALL, Tick::ZERO).map(|resumed| resumed.endpoint)
    };
    for before in ["sid=no-token", &gone, "sid="] {
        assert_eq!(leads(&[before, "a=b", &holds]), Some(endpoint.id), "behind {before}");
        assert_eq!(leads(&[before]), None);
    }
    let apart = OwnedRequest::get("h", "/").with_header("cookie", &gone).with_header("cookie", &holds);
    assert!(rule.resume(&apart, WALL, Tick::ZERO).is_some(), "in a field of its own");
    let many = [&*gone; MOST];
    assert_eq!(leads(&[&many[1..], &[&holds]].concat()), Some(endpoint.id));
    assert_eq!(leads(&[&many[..], &[&holds]].concat()), None, "nobody makes us look for ever");
}

#[test]
fn a_session_ends_with_who_is_leaving_or_fails_the_registry_s_checks() {
    use v1::endpoint::Health;
    let mut builder = SnapshotBuilder::new();
    let snapshot = build(&mut builder, split());
    let cluster = snapshot.cluster(&key("ns/b", 80)).expect("a cluster");
    let rule = &snapshot.routes.values().next().expect("a route").rules[0];
    let persistence = rule.session_persistence().expect("it is kept");
    let request = back(&persistence.begin(&cluster.endpoints().all()[0], "/", WALL));
    for (health, holds) in [
        (Health::Draining, false),
        (Health::Healthy, true),
        (Health::Unhealthy, false),
        (Health::Suspect, true),
    ] {
        let endpoint = v1::Endpoint { health: health.into(), ..wire_endpoint("10.0.0.2") };
        let stays = wire_endpoint("10.0.0.3");
        build(&mut builder, [slice("ns/b-1", "ns/b", ("", 80), vec![endpoint, stays])]);
        assert_eq!(cluster.endpoints().all().len(), 2, "{health:?}: it is in view");
        assert_eq!(rule.resume(&request, WALL, Tick::ZERO).is_some(), holds, "{health:?}");
    }
}

#[test]
fn a_session_that_began_elsewhere_leads_to_whom_this_proxy_does_not_call_otherwise() {
    let load_balancer = Some(v1::LoadBalancer { subset_size: 1, ..Default::default() });
    let fleet = (1..=5).map(|n| wire_endpoint(&format!("10.0.1.{n}"))).collect();
    let mut changes = split();
    changes.push(slice("ns/a-1", "ns/a", ("", 80), fleet));
    changes.push(policy_change(v1::TrafficPolicy { load_balancer, ..Default::default() }));
    let mut builder = SnapshotBuilder::new();
    builder.run_as("proxy");
    let snapshot = build(&mut builder, changes);
    let set = snapshot.cluster(&key("ns/a", 80)).expect("a cluster").endpoints();
    assert_eq!((set.all().len(), set.pickable().len()), (5, 1));
    let rule = &snapshot.routes.values().next().expect("a route").rules[0];
    let persistence = rule.session_persistence().expect("it is kept");
    for endpoint in set.all() {
        let request = back(&persistence.begin(endpoint, "/", WALL));
        let resumed = rule.resume(&request, WALL, Tick::ZERO).map(|resumed| resumed.endpoint);
        assert_eq!(resumed, Some(endpoint.id));
    }
}
