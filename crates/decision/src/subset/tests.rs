use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{SeededRng, Tick};
use meshwork_messages::v1;
use proptest::prelude::*;

use crate::builder::SnapshotBuilder;
use crate::cluster::{Cluster, ClusterKey, Wanted};
use crate::load::Answer;
use crate::outlier::AttemptOutcome;
use crate::reasons::NoReasons;
use crate::tests::{
    at_listener, backend, build, listener, path, policy_change, prefix, route_message, rule, service,
    service_change, slice, wire_endpoint,
};
use crate::{Call, Change, OwnedRequest, Routed, Snapshot};

/// An endpoint at 10.0.0.N of this version.
fn versioned(n: u32, version: &str) -> v1::Endpoint {
    v1::Endpoint { version: version.into(), ..wire_endpoint(&format!("10.0.0.{n}")) }
}

fn subset(name: &str, labels: &[(&str, &str)], any_fallback: bool) -> v1::service::Subset {
    let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    v1::service::Subset { name: name.into(), labels, any_fallback }
}

/// Service `ns/a` with these subsets and endpoints, and a route that sends so much to each of them.
fn world(
    subsets: Vec<v1::service::Subset>,
    endpoints: Vec<v1::Endpoint>,
    weights: &[(&str, u32)],
) -> (SnapshotBuilder, Arc<Snapshot>) {
    let of = |(name, weight): &(&str, u32)| v1::Backend {
        subset: (*name).to_owned(),
        ..backend("ns/a", 80, *weight)
    };
    let rule = v1::Rule { backends: weights.iter().map(of).collect(), ..rule(vec![path(prefix("/"))]) };
    let route = route_message("ns/r", 1, vec![at_listener("ns/gw/web", &[])], vec![rule]);
    let changes = [
        listener("ns/gw/web", 80, ""),
        Change::upsert("HTTPRoute/ns/r", "1", &route),
        service_change(&v1::Service { subsets, ..service("ns/a", &[("", 80)]) }),
        slice("ns/a-1", "ns/a", ("", 80), endpoints),
    ];
    let mut builder = SnapshotBuilder::new();
    let snapshot = build(&mut builder, changes);
    (builder, snapshot)
}

fn cluster(snapshot: &Snapshot, subset: &str) -> Arc<Cluster> {
    let key = ClusterKey { subset: subset.into(), ..ClusterKey::whole("ns/a".into(), 80) };
    Arc::clone(snapshot.cluster(&key).unwrap_or_else(|| panic!("no subset `{subset}`")))
}

/// The last bytes of the addresses of a cluster's endpoints.
fn members(cluster: &Cluster) -> Vec<u8> {
    let set = cluster.endpoints();
    set.all()
        .iter()
        .map(|e| {
            e.address().to_string().split(':').next().unwrap().rsplit('.').next().unwrap().parse().unwrap()
        })
        .collect()
}

#[test]
fn a_subset_has_the_endpoints_with_all_its_labels() {
    let labelled = |n, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        v1::Endpoint { labels, ..versioned(n, "v2") }
    };
    let endpoints = vec![
        labelled(1, &[("tier", "main")]),
        labelled(2, &[]),
        labelled(3, &[("tier", "main"), ("version", "v1")]),
        labelled(4, &[("tier", "spare")]),
    ];
    let subsets = vec![
        subset("v2", &[("version", "v2")], false),
        subset("main-v2", &[("tier", "main"), ("version", "v2")], false),
        subset("nobody", &[("tier", "none")], false),
    ];
    let (_, snapshot) = world(subsets, endpoints, &[]);
    assert_eq!(members(&cluster(&snapshot, "")), [1, 2, 3, 4]);
    assert_eq!(
        members(&cluster(&snapshot, "v2")),
        [1, 2, 4],
        "a label goes before what was registered as version"
    );
    assert_eq!(members(&cluster(&snapshot, "main-v2")), [1]);
    let nobody = cluster(&snapshot, "nobody");
    assert!(nobody.pick(Tick::ZERO, &mut SeededRng::new(1), &[]).is_none());
    assert_eq!((&*nobody.name, &*nobody.label), ("ns/a/nobody", "ns/a/nobody:80"));
}

#[test]
fn weights_are_across_subsets_and_not_across_endpoints() {
    let endpoints = (1..=9).map(|n| versioned(n, "v1")).chain([versioned(10, "v2")]).collect();
    let subsets = vec![subset("v1", &[("version", "v1")], false), subset("v2", &[("version", "v2")], false)];
    let (_, snapshot) = world(subsets, endpoints, &[("v1", 50), ("v2", 50)]);
    let request = OwnedRequest::get("h", "/");
    let Routed::Matched(matched) = snapshot.bindings()[0].route(&request, None, &mut NoReasons) else {
        panic!("a route takes everything")
    };
    let mut rng = SeededRng::new(5);
    let mut of_v2 = 0_u32;
    for _ in 0..2_000 {
        let (_, cluster) = matched.rule().choose_backend(&mut rng, &mut NoReasons).unwrap();
        let picked = cluster.pick(Tick::ZERO, &mut rng, &[]).unwrap();
        of_v2 += u32::from(&*picked.version == "v2");
    }
    assert!(of_v2.abs_diff(1_000) < 100, "{of_v2}");
}

#[test]
fn where_a_subset_has_nobody_its_fallback_is_called_and_left_again() {
    use v1::endpoint::Health;
    let subsets = vec![subset("v2", &[("version", "v2")], true), subset("own", &[("version", "v2")], false)];
    let endpoints = |health: Health| {
        let ill = v1::Endpoint { health: health.into(), ..versioned(3, "v2") };
        vec![versioned(1, "v1"), versioned(2, "v1"), ill]
    };
    let (mut builder, snapshot) = world(subsets, endpoints(Health::Healthy), &[]);
    let [falls, own] = ["v2", "own"].map(|name| cluster(&snapshot, name));
    assert_eq!((members(&falls), members(&own)), (vec![3], vec![3]));
    let id = falls.endpoints().all()[0].id;
    build(&mut builder, [slice("ns/a-1", "ns/a", ("", 80), endpoints(Health::Unhealthy))]);
    assert_eq!(members(&falls), [1, 2, 3]);
    assert!(own.pick(Tick::ZERO, &mut SeededRng::new(1), &[]).is_none(), "nobody else is called");
    build(&mut builder, [slice("ns/a-1", "ns/a", ("", 80), endpoints(Health::Healthy))]);
    assert_eq!(members(&falls), [3]);
    assert_eq!(falls.endpoints().all()[0].id, id, "its connections are kept");
}

#[test]
fn that_one_version_fails_says_nothing_about_the_others() {
    let breaker = v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        minimum_calls: 2,
        failure_percent: 50,
        open_ms: 1_000,
        max_open_ms: 1_000,
        trials: 1,
        ..Default::default()
    };
    let outlier = v1::OutlierDetection {
        consecutive_5xx: Some(2),
        base_ejection_time_ms: 1_000,
        max_ejection_percent: 100,
        ..crate::tests::rows_off()
    };
    let traffic = v1::TrafficPolicy {
        circuit_breaker: Some(breaker),
        outlier_detection: Some(outlier),
        ..Default::default()
    };
    let subsets = vec![subset("v1", &[("version", "v1")], false), subset("v2", &[("version", "v2")], false)];
    let endpoints = (1..=4).map(|n| versioned(n, if n > 2 { "v2" } else { "v1" })).collect();
    let (mut builder, _) = world(subsets, endpoints, &[]);
    let snapshot = build(&mut builder, [policy_change(traffic)]);
    let [whole, one, two] = ["", "v1", "v2"].map(|name| cluster(&snapshot, name));
    let (now, took) = (Tick::from_nanos(1), Duration::from_millis(1));
    let mut rng = SeededRng::new(1);
    let ill = Arc::clone(&two.endpoints().all()[0]);
    for _ in 0..2 {
        let ticket = two.try_call(now, &mut NoReasons).unwrap().expect("a policy asks for it");
        two.record(&ill, &Answer::new(AttemptOutcome::Failure, took), now);
        ticket.ended(Call { failed: true, took }, now, &mut rng);
    }
    assert!(two.try_call(now, &mut NoReasons).is_err() && ill.is_ejected(now));
    for well in [&whole, &one] {
        assert!(well.try_call(now, &mut NoReasons).is_ok());
        assert!(well.endpoints().all().iter().all(|endpoint| !endpoint.is_ejected(now)));
        assert!(well.choose(now, &mut rng, &Wanted::default(), &mut NoReasons).is_some());
    }
}

#[test]
fn a_subset_that_goes_takes_its_backends_along_and_nobody_else() {
    let one = || vec![subset("v1", &[("version", "v1")], false)];
    let (mut builder, before) = world(one(), vec![versioned(1, "v1")], &[("v1", 1)]);
    let whole = cluster(&before, "");
    let after = build(&mut builder, [service_change(&service("ns/a", &[("", 80)]))]);
    let route =
        |snapshot: &Snapshot| snapshot.routes().next().unwrap().rules[0].backends[0].cluster().is_some();
    assert!(route(&before) && !route(&after));
    assert!(Arc::ptr_eq(&whole, &cluster(&after, "")));
    let changed = vec![subset("v1", &[("version", "v3")], false)];
    let again = build(
        &mut builder,
        [service_change(&v1::Service { subsets: changed, ..service("ns/a", &[("", 80)]) })],
    );
    assert!(route(&again) && members(&cluster(&again, "v1")).is_empty());
}

proptest! {
    /// Subsets by one label part the endpoints that have it.
    #[test]
    fn values_of_a_label_part_the_endpoints(values in prop::collection::vec(0u8..4, 0..20)) {
        let labels = |value: u8| BTreeMap::from([("slot".to_owned(), value.to_string())]);
        let endpoints = (1..).zip(&values).map(|(n, &value)| v1::Endpoint {
            labels: labels(value),
            ..wire_endpoint(&format!("10.0.0.{n}"))
        });
        let subsets = (0..4_u8).map(|value| v1::service::Subset {
            name: format!("s{value}"),
            labels: labels(value),
            any_fallback: false,
        });
        let (_, snapshot) = world(subsets.collect(), endpoints.collect(), &[]);
        let mut all: Vec<u8> = (0..4).flat_map(|value| members(&cluster(&snapshot, &format!("s{value}")))).collect();
        all.sort_unstable();
        prop_assert_eq!(all, members(&cluster(&snapshot, "")));
    }
}
