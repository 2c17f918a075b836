use std::collections::BTreeSet;
use std::time::Duration;

use meshwork_base::{SeededRng, Tick};
use meshwork_messages::v1;
use proptest::prelude::*;

use super::*;
use crate::builder::SnapshotBuilder;
use crate::cluster::{Cluster, Wanted};
use crate::health_check::Checked;
use crate::load::Answer;
use crate::outlier::AttemptOutcome;
use crate::reasons::{Explanation, NoReasons};
use crate::tests::{build, endpoint, key, policy_change, service, service_change, slice, wire_endpoint};

fn fleet(ids: impl IntoIterator<Item = u64>) -> Vec<Arc<Endpoint>> {
    ids.into_iter().map(|id| endpoint(id, 1)).collect()
}

fn chosen(of: &[Arc<Endpoint>], size: u32, proxy: u64) -> BTreeSet<u64> {
    let subsetting = Subsetting { size, seed: seed(&format!("proxy-{proxy}")) };
    subsetting.of(of.iter()).into_iter().map(|endpoint| endpoint.id).collect()
}

proptest! {
    #[test]
    fn who_comes_or_goes_changes_one_place_at_most(
        ids in prop::collection::btree_set(1u64..5_000, 2..60),
        size in 1u32..20,
        proxy: u64,
        which: prop::sample::Index,
    ) {
        let all = fleet(ids.iter().copied());
        let gone = *which.get(&ids.iter().copied().collect::<Vec<_>>());
        let fewer: Vec<_> = all.iter().filter(|endpoint| endpoint.id != gone).cloned().collect();
        let (with, without) = (chosen(&all, size, proxy), chosen(&fewer, size, proxy));
        prop_assert_eq!(with.len(), all.len().min(size as usize));
        prop_assert_eq!(without.len(), fewer.len().min(size as usize));
        let leaves: Vec<_> = with.difference(&without).copied().collect();
        prop_assert_eq!(leaves, if with.contains(&gone) { vec![gone] } else { vec![] });
        prop_assert!(without.difference(&with).count() <= 1);
        prop_assert_eq!(with, chosen(&all.into_iter().rev().collect::<Vec<_>>(), size, proxy), "whatever the order");
    }

    /// Each endpoint is in as many subsets as chance has it, within six standard deviations of a binomial.
    #[test]
    fn endpoints_are_spread_over_proxies(
        count in 10u64..60,
        proxies in 20u64..100,
        size in 1u32..40,
        first: u32,
    ) {
        let all = fleet(1..=count);
        let mut subsets = vec![0_u32; all.len() + 1];
        for proxy in 0..proxies {
            for id in chosen(&all, size, u64::from(first) + proxy) {
                subsets[usize::try_from(id).unwrap()] += 1;
            }
        }
        let part = f64::from(size).min(count as f64) / count as f64;
        let mean = proxies as f64 * part;
        let bound = 6.0 * (mean * (1.0 - part)).sqrt() + 2.0;
        for subsets in &subsets[1..] {
            prop_assert!((f64::from(*subsets) - mean).abs() <= bound, "{} of {} ± {}", subsets, mean, bound);
        }
    }

    /// As many as wanted are called, as long as there are so many that are not ejected; these keep their places.
    #[test]
    fn ejected_ones_are_replaced(
        ejected in prop::collection::btree_set(1u64..40, 0..39),
        size in 1u32..20,
        proxy: u64,
    ) {
        let all = fleet(1..40);
        let before = chosen(&all, size, proxy);
        for endpoint in all.iter().filter(|endpoint| ejected.contains(&endpoint.id)) {
            endpoint.stats.standing.eject_until(1_000);
        }
        let after = chosen(&all, size, proxy);
        prop_assert!(before.is_subset(&after), "for their trials: {before:?} {after:?}");
        let called = after.difference(&ejected).count();
        prop_assert_eq!(called, (size as usize).min(39 - ejected.len()));
    }
}

#[test]
fn one_at_least_is_called_and_those_who_are_stand_in_the_order_in_which_they_were_given() {
    let fleet = fleet(1..=50);
    assert_eq!(chosen(&fleet, 0, 1).len(), 1);
    let part = Subsetting { size: 20, seed: seed("proxy") };
    let ids: Vec<u64> = part.of(fleet.iter()).iter().map(|endpoint| endpoint.id).collect();
    assert!(ids.len() == 20 && ids.is_sorted(), "{ids:?}");
}

/// Service `ns/a` with so many endpoints in each zone, of which each proxy calls so many; this one runs in `z0`.
fn world(zones: &[u32], size: u32) -> (SnapshotBuilder, Arc<Cluster>) {
    world_with(zones, size, 100)
}

/// The same, where so many percent may be ejected.
fn world_with(zones: &[u32], size: u32, max_ejection_percent: u32) -> (SnapshotBuilder, Arc<Cluster>) {
    let outlier = v1::OutlierDetection {
        consecutive_5xx: Some(1),
        base_ejection_time_ms: 1_000,
        max_ejection_time_ms: 1_000,
        max_ejection_percent,
        ..crate::tests::rows_off()
    };
    let traffic = v1::TrafficPolicy {
        algorithm: v1::traffic_policy::Algorithm::RoundRobin.into(),
        load_balancer: Some(v1::LoadBalancer { subset_size: size, ..Default::default() }),
        outlier_detection: Some(outlier),
        ..Default::default()
    };
    let changes = [
        service_change(&service("ns/a", &[("", 80)])),
        slice("ns/a-1", "ns/a", ("", 80), endpoints(zones)),
        policy_change(traffic),
    ];
    let mut builder = SnapshotBuilder::new();
    builder.run_at(Locality { zone: "z0".into(), region: "".into() });
    builder.run_as("proxy");
    let snapshot = build(&mut builder, changes);
    let cluster = Arc::clone(snapshot.cluster(&key("ns/a", 80)).expect("a cluster"));
    (builder, cluster)
}

fn endpoints(zones: &[u32]) -> Vec<v1::Endpoint> {
    let of = |(zone, count): (usize, &u32)| {
        (1..=*count).map(move |n| v1::Endpoint {
            zone: format!("z{zone}"),
            ..wire_endpoint(&format!("10.{zone}.0.{n}"))
        })
    };
    zones.iter().enumerate().flat_map(of).collect()
}

fn called(cluster: &Cluster, now: Tick, requests: u32) -> BTreeSet<String> {
    let mut rng = SeededRng::new(2);
    let mut pick = || cluster.choose(now, &mut rng, &Wanted::default(), &mut NoReasons).expect("somebody");
    (0..requests).map(|_| pick().endpoint.address().to_string()).collect()
}

#[test]
fn a_proxy_calls_its_part_and_ejections_pull_in_others() {
    let (_, cluster) = world(&[30], 4);
    let now = Tick::from_nanos(1);
    let part = called(&cluster, now, 100);
    assert_eq!(part.len(), 4);
    let failing = cluster.endpoints().pickable()[0].clone();
    let took = Duration::from_millis(1);
    let shifts = cluster.record(&failing, &Answer::new(AttemptOutcome::Failure, took), now);
    assert_eq!(shifts.len(), 1);
    let others = called(&cluster, now, 100);
    assert_eq!(others.len(), 4, "another has its place");
    assert_eq!(others.intersection(&part).count(), 3);
    assert!(!others.contains(&failing.address().to_string()));
    // Its trial goes well: the other leaves again.
    let later = now.after(Duration::from_secs(1));
    let mut rng = SeededRng::new(1);
    let mut trial = None;
    while trial.is_none() {
        trial = cluster.choose(later, &mut rng, &Wanted::default(), &mut NoReasons).expect("somebody").trial;
    }
    cluster.tried(trial.unwrap(), &Answer::new(AttemptOutcome::Success, took), later);
    assert_eq!(called(&cluster, later, 100), part);
}

/// The only one that is called fails; whether it is ejected.
fn fails(cluster: &Cluster, now: Tick) -> bool {
    let called = called(cluster, now, 20);
    assert_eq!(called.len(), 1, "{called:?}");
    let set = cluster.endpoints();
    let one = set.all().iter().find(|endpoint| called.contains(&endpoint.address().to_string())).unwrap();
    let answer = Answer::new(AttemptOutcome::Failure, Duration::from_millis(1));
    !cluster.record(one, &answer, now).is_empty()
}

#[test]
fn the_only_one_that_is_called_is_ejected_for_the_next_as_far_as_the_whole_fleet_allows() {
    let (_, cluster) = world_with(&[30], 1, 10);
    let now = Tick::from_nanos(1);
    let mut seen = called(&cluster, now, 20);
    for nth in 1..=3 {
        assert!(fails(&cluster, now), "{nth} of 30");
        assert!(!cluster.panics(now));
        seen.extend(called(&cluster, now, 20));
        assert_eq!(seen.len(), nth + 1, "another one each time");
    }
    assert!(!fails(&cluster, now), "a tenth of all is out");
}

#[test]
fn those_beyond_the_part_are_counted_when_somebody_is_out() {
    let (_, cluster) = world(&[9], 2);
    let now = Tick::from_nanos(1);
    let set = cluster.endpoints();
    let beyond: Vec<_> = set.all().iter().filter(|one| set.is_beyond(one)).collect();
    assert_eq!(beyond.len(), 7);
    beyond.iter().for_each(|one| one.stats.standing.ejected_for_all(true));
    cluster.checked(beyond[0], Checked::Unhealthy, now);
    assert!(cluster.panics(now), "two of nine are left");
    beyond.iter().for_each(|one| one.stats.standing.ejected_for_all(false));
    cluster.checked(beyond[0], Checked::Healthy, now);
    assert!(!cluster.panics(now));
}

/// Nobody tries whoever lies beyond the part, so that no trial ends its ejection. It comes to lie there when newer ones, or one
/// that is back, stand before it in the order.
#[test]
fn who_is_ejected_beyond_the_part_is_out_until_its_time_is_over() {
    let (_, cluster) = world(&[9], 2);
    let now = Tick::from_nanos(1);
    let set = cluster.endpoints();
    let beyond: Vec<_> = set.all().iter().filter(|one| set.is_beyond(one)).collect();
    beyond.iter().for_each(|one| one.stats.standing.eject_until(1_000));
    cluster.checked(beyond[0], Checked::Unknown, now);
    assert!(cluster.panics(now), "two of nine are left");
    assert!(!cluster.panics(Tick::from_nanos(1_000)));
}

/// Of the others nobody is heard to say that they are out, so they can carry everything; the control plane's word counts again
/// when it is back.
#[test]
fn those_beyond_the_part_that_were_out_for_everybody_count_as_left_while_the_control_plane_is_away() {
    let (mut builder, cluster) = world(&[9], 2);
    let now = Tick::from_nanos(1);
    let set = cluster.endpoints();
    let beyond = set.all().iter().filter(|one| set.is_beyond(one));
    let beyond: BTreeSet<String> = beyond.map(|one| one.address().ip().to_string()).collect();
    let mut marked = endpoints(&[9]);
    for one in marked.iter_mut().filter(|one| beyond.contains(&one.addresses[0])) {
        one.ejected = [(String::new(), 2)].into();
    }
    build(&mut builder, [slice("ns/a-1", "ns/a", ("", 80), marked)]);
    assert!(cluster.panics(now), "two of nine are left");
    let away = |seconds| cluster.unheard(Some(Duration::from_secs(seconds)), now).len();
    assert_eq!((away(3_600), cluster.panics(now)), (7, false));
    cluster.unheard(None, now);
    assert!(cluster.panics(now), "it is said again");
}

#[test]
fn in_a_part_of_one_too_ejections_are_disregarded_where_most_of_the_fleet_is_out() {
    let (_, cluster) = world(&[9], 1);
    let now = Tick::from_nanos(1);
    for left in (5..9).rev() {
        assert!(fails(&cluster, now) && !cluster.panics(now), "{left} of 9 are left");
    }
    assert!(
        cluster
            .record(
                &cluster.endpoints().pickable().iter().find(|e| !e.is_ejected(now)).unwrap().clone(),
                &Answer::new(AttemptOutcome::Failure, Duration::from_millis(1)),
                now
            )
            .len()
            == 1
            && cluster.panics(now),
        "four of nine cannot carry everything"
    );
}

#[test]
fn a_zone_of_which_one_is_called_is_not_left_when_that_one_is_replaced() {
    let (_, cluster) = world(&[20, 20], 1);
    let now = Tick::from_nanos(1);
    assert!(fails(&cluster, now));
    let shares: Vec<_> =
        cluster.tiers(now).into_iter().map(|tier| (tier.well, tier.members, tier.share)).collect();
    assert_eq!(shares, [(1, 1, 1_000), (1, 1, 0)], "nineteen of twenty are well");
    assert!(called(&cluster, now, 50).iter().all(|address| address.starts_with("10.0.")));
    // Its trial is due: it counts no more than the one in its place.
    let later = now.after(Duration::from_secs(1));
    assert_eq!(
        cluster.tiers(later).into_iter().map(|tier| (tier.well, tier.share)).collect::<Vec<_>>(),
        [(1, 1_000), (1, 0)]
    );
}

#[test]
fn each_zone_has_its_part_and_is_as_well_as_all_of_it_is() {
    let (mut builder, cluster) = world(&[20, 20], 5);
    let now = Tick::from_nanos(1);
    assert_eq!(cluster.endpoints().pickable().len(), 10);
    let near = called(&cluster, now, 200);
    assert!(near.len() == 5 && near.iter().all(|address| address.starts_with("10.0.")), "{near:?}");
    let state = |now| {
        cluster.tiers(now).into_iter().map(|tier| (tier.well, tier.members, tier.share)).collect::<Vec<_>>()
    };
    assert_eq!(state(now), [(5, 5, 1_000), (5, 5, 0)]);
    // Half of the zone fails its checks: five of ten are well.
    let half: Vec<_> = endpoints(&[20, 20])
        .into_iter()
        .enumerate()
        .map(|(at, endpoint)| v1::Endpoint {
            health: if at < 10 { v1::endpoint::Health::Unhealthy } else { v1::endpoint::Health::Healthy }
                .into(),
            ..endpoint
        })
        .collect();
    build(&mut builder, [slice("ns/a-1", "ns/a", ("", 80), half)]);
    let later = now.after(Duration::from_secs(1));
    assert_eq!(state(later), [(5, 10, 700), (5, 5, 300)]);
}

#[test]
fn a_session_that_another_proxy_began_holds() {
    let (_, cluster) = world(&[30], 4);
    let now = Tick::from_nanos(1);
    let set = cluster.endpoints();
    let beyond = set.all().iter().find(|endpoint| set.is_beyond(endpoint)).expect("26 are");
    let wanted = Wanted { session: Some(beyond.id), ..Wanted::default() };
    let picked = cluster.choose(now, &mut SeededRng::new(1), &wanted, &mut NoReasons).unwrap();
    assert_eq!(picked.endpoint.id, beyond.id);
    let mut reasons = Explanation::default();
    cluster.pick_explained(now, &mut SeededRng::new(1), &Wanted::default(), &mut reasons);
    let told = reasons.0.iter().filter(|reason| reason.why.contains("this proxy calls a part"));
    assert_eq!(told.count(), 26);
}

#[test]
fn who_the_proxy_is_decides_and_a_change_of_it_is_in_effect_at_once() {
    let (mut builder, cluster) = world(&[30], 4);
    let now = Tick::from_nanos(1);
    let own = called(&cluster, now, 100);
    builder.run_as("another");
    assert_ne!(called(&cluster, now, 100), own);
    builder.run_as("proxy");
    assert_eq!(called(&cluster, now, 100), own, "the same after a restart");
}

#[test]
fn who_is_out_for_everybody_pulls_in_another() {
    let (mut builder, cluster) = world(&[30], 4);
    let now = Tick::from_nanos(1);
    let part = called(&cluster, now, 100);
    let out = cluster.endpoints().pickable()[0].address().to_string();
    let mut marked = endpoints(&[30]);
    let one = marked
        .iter_mut()
        .find(|one| out.starts_with(&format!("{}:", one.addresses[0])))
        .expect("it is there");
    one.ejected = [(String::new(), 2)].into();
    build(&mut builder, [slice("ns/a-1", "ns/a", ("", 80), marked)]);
    let others = called(&cluster, now, 100);
    assert_eq!(others.len(), 4, "another has its place");
    assert!(!others.contains(&out));
    build(&mut builder, [slice("ns/a-1", "ns/a", ("", 80), endpoints(&[30]))]);
    assert_eq!(called(&cluster, now, 100), part, "and leaves again");
}

#[test]
fn of_instances_behind_one_address_each_proxy_calls_others() {
    let all: Vec<_> = (1..=20_u16)
        .map(|n| {
            let mut one = Arc::into_inner(endpoint(n.into(), 1)).expect("nobody else holds it");
            one.addresses = [([10, 0, 0, 1], 80).into()].into_iter().collect();
            one.transport = crate::Transport::Mesh {
                http: ([10, 0, 0, 1], 15_000 + n).into(),
                hbone: None,
                spiffe_id: meshwork_base::SpiffeId::parse("spiffe://m/ns/shop/sa/web").unwrap(),
            };
            Arc::new(one)
        })
        .collect();
    let called: BTreeSet<_> = (0..50).flat_map(|proxy| chosen(&all, 4, proxy)).collect();
    assert_eq!(called, (1..=20).collect(), "somebody calls each");
}

/// It was out for everybody, was tried while the control plane was away and went well; when that is back its word counts.
#[test]
fn who_is_out_for_everybody_again_when_the_control_plane_is_back_pulls_in_another() {
    let (mut builder, cluster) = world(&[30], 4);
    let now = Tick::from_nanos(1);
    let part = called(&cluster, now, 100);
    let out = cluster.endpoints().pickable()[0].address();
    let mut marked = endpoints(&[30]);
    let is_out = |one: &&mut v1::Endpoint| out.ip().to_string() == one.addresses[0];
    marked.iter_mut().find(is_out).expect("it is there").ejected = [(String::new(), 2)].into();
    build(&mut builder, [slice("ns/a-1", "ns/a", ("", 80), marked)]);
    let others = called(&cluster, now, 100);
    assert_eq!(cluster.unheard(Some(Duration::from_secs(3_600)), now).len(), 1);
    let mut rng = SeededRng::new(1);
    let mut choose = || cluster.choose(now, &mut rng, &Wanted::default(), &mut NoReasons).expect("somebody");
    let trial = (0..100).find_map(|_| choose().trial).expect("one request tries it");
    cluster.tried(trial, &Answer::new(AttemptOutcome::Success, Duration::from_millis(1)), now);
    assert_eq!(called(&cluster, now, 100), part, "it has its place again");
    cluster.unheard(None, now);
    assert_eq!(called(&cluster, now, 100), others);
}
