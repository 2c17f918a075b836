use proptest::prelude::*;

use super::*;
use crate::invariants;

/// From 0 on it is judged.
fn at(seconds: u64) -> Tick {
    Tick::ZERO.after(SETTLING).after(Duration::from_secs(seconds))
}

/// Somebody who calls nothing was heard long enough ago.
fn settled() -> Verdicts {
    let mut verdicts = Verdicts::default();
    verdicts.hear(&"elsewhere".into(), Sights::new(), Tick::ZERO);
    verdicts
}

fn service(port: u16) -> ClusterKey {
    ClusterKey::whole("shop/reviews".into(), port)
}

fn suspect(number: u8) -> Suspect {
    Suspect { address: SocketAddr::from(([10, 0, 0, number], 80)), instance: format!("r-{number}").into() }
}

fn rules(observers: u32, percent: u32, max_ejection_percent: u32, endpoints: u8) -> Rules {
    let endpoints = (1..=endpoints).map(suspect).collect();
    Rules { shared: SharedEjection { observers, percent }, max_ejection_percent, endpoints }
}

fn name(observer: usize) -> Arc<str> {
    format!("web-{observer}").into()
}

/// It has called every endpoint.
fn says(verdicts: &mut Verdicts, observer: usize, out: &[u8], now: Tick) {
    let all: Vec<u8> = (1..=10).collect();
    says_of(verdicts, (observer, &all), out, now);
}

/// It has called these.
fn says_of(verdicts: &mut Verdicts, (observer, called): (usize, &[u8]), out: &[u8], now: Tick) {
    let ejected = out.iter().copied().map(suspect).collect();
    let called = called.iter().map(|number| suspect(*number).fingerprint()).collect();
    verdicts.hear(&name(observer), [(service(80), Sight { ejected, called })].into(), now);
}

fn out(verdicts: &Verdicts) -> Vec<u8> {
    let service = service(80);
    let out = verdicts.of(&service).map(|(suspect, _)| match suspect.address.ip() {
        std::net::IpAddr::V4(v4) => v4.octets()[3],
        std::net::IpAddr::V6(_) => unreachable!("tests use IPv4"),
    });
    out.collect()
}

fn judged(verdicts: &mut Verdicts, rules: &Rules, now: Tick) -> Vec<u8> {
    verdicts.judge(now, |_| Some(rules.clone()));
    out(verdicts)
}

#[test]
fn two_of_three_eject_and_one_does_not_however_often_it_speaks() {
    let (mut verdicts, rules) = (settled(), rules(2, 50, 50, 4));
    for second in 0..10 {
        says(&mut verdicts, 1, &[3], at(second));
        says(&mut verdicts, 2, &[], at(second));
        says(&mut verdicts, 3, &[], at(second));
        assert_eq!(judged(&mut verdicts, &rules, at(second)), [] as [u8; 0]);
    }
    says(&mut verdicts, 2, &[3], at(10));
    let turns = verdicts.judge(at(10), |_| Some(rules.clone()));
    let sentence = Some(Sentence { observers: 2, callers: 3 });
    assert_eq!(turns, [Turn { service: service(80), suspect: suspect(3), sentence }]);
    assert_eq!(verdicts.judge(at(10), |_| Some(rules.clone())), [], "it is told once");
    says(&mut verdicts, 1, &[], at(11));
    let turns = verdicts.judge(at(11), |_| Some(rules.clone()));
    assert_eq!(
        turns,
        [Turn { service: service(80), suspect: suspect(3), sentence: None }],
        "one sees it well"
    );
}

#[test]
fn whoever_has_ejected_it_is_a_witness_and_it_is_told_how_it_began() {
    let (mut verdicts, rules) = (settled(), rules(2, 50, 50, 4));
    for observer in [1, 2] {
        says_of(&mut verdicts, (observer, &[]), &[3], at(0));
    }
    says_of(&mut verdicts, (3, &[3]), &[], at(0));
    let told =
        |verdicts: &Verdicts| verdicts.of(&service(80)).map(|(_, sentence)| *sentence).collect::<Vec<_>>();
    assert_eq!(judged(&mut verdicts, &rules, at(0)), [3]);
    assert_eq!(told(&verdicts), [Sentence { observers: 2, callers: 3 }]);
    says(&mut verdicts, 4, &[3], at(1));
    assert_eq!(judged(&mut verdicts, &rules, at(1)), [3]);
    assert_eq!(
        told(&verdicts),
        [Sentence { observers: 2, callers: 4 }],
        "those who have called it since count"
    );
}

#[test]
fn when_the_last_report_ends_the_next_words_are_first_ones() {
    let (mut verdicts, rules) = (Verdicts::default(), rules(2, 50, 50, 4));
    says(&mut verdicts, 1, &[], at(0));
    [1, 2].into_iter().for_each(|observer| says(&mut verdicts, observer, &[3], at(0).after(LEASE)));
    assert_eq!(judged(&mut verdicts, &rules, at(0).after(LEASE)), [] as [u8; 0]);
    assert_eq!(verdicts.next_change(at(0).after(LEASE)), Some(at(0).after(LEASE).after(SETTLING)));
}

#[test]
fn the_end_of_a_report_that_accuses_nobody_changes_nothing() {
    let mut verdicts = settled();
    says(&mut verdicts, 1, &[], at(1));
    says(&mut verdicts, 2, &[3], at(4));
    assert_eq!(verdicts.next_change(at(5)), Some(at(4).after(LEASE)));
}

#[test]
fn a_quorum_of_one_is_none() {
    let mut verdicts = settled();
    says(&mut verdicts, 1, &[3], at(0));
    assert_eq!(judged(&mut verdicts, &rules(0, 0, 100, 4), at(0)), [] as [u8; 0]);
    assert_eq!(judged(&mut verdicts, &rules(1, 0, 100, 4), at(0)), [] as [u8; 0]);
}

#[test]
fn those_who_call_it_and_are_content_count_too() {
    let mut verdicts = settled();
    for observer in 0..10 {
        says(&mut verdicts, observer, if observer < 4 { &[1] } else { &[] }, at(0));
    }
    assert_eq!(judged(&mut verdicts, &rules(2, 50, 50, 4), at(0)), [] as [u8; 0]);
    let elsewhere: Sights = [(service(81), Sight::default())].into();
    verdicts.hear(&name(99), elsewhere, at(0));
    assert_eq!(judged(&mut verdicts, &rules(2, 40, 50, 4), at(0)), [1], "who calls another service does not");
}

#[test]
fn who_calls_it_later_has_not_seen_it_and_does_not_count() {
    let (mut verdicts, rules) = (settled(), rules(2, 50, 50, 4));
    says(&mut verdicts, 1, &[3], at(0));
    says(&mut verdicts, 2, &[3], at(0));
    says(&mut verdicts, 3, &[], at(0));
    assert_eq!(judged(&mut verdicts, &rules, at(0)), [3]);
    for observer in 4..20 {
        says_of(&mut verdicts, (observer, &[1, 2, 4]), &[], at(1));
    }
    assert_eq!(judged(&mut verdicts, &rules, at(1)), [3], "they leave it out, as they are told");
    says(&mut verdicts, 1, &[], at(2));
    assert_eq!(judged(&mut verdicts, &rules, at(2)), [] as [u8; 0]);
    for observer in 4..20 {
        says(&mut verdicts, observer, &[], at(3));
    }
    says(&mut verdicts, 1, &[3], at(3));
    assert_eq!(judged(&mut verdicts, &rules, at(3)), [] as [u8; 0], "now they have called it too");
}

#[test]
fn what_is_not_said_again_ends_with_its_lease() {
    let (mut verdicts, rules) = (settled(), rules(2, 50, 50, 4));
    says(&mut verdicts, 1, &[3], at(0));
    says(&mut verdicts, 2, &[3], at(4));
    assert_eq!(judged(&mut verdicts, &rules, at(5)), [3]);
    assert_eq!(verdicts.next_change(at(5)), Some(at(15)));
    assert_eq!(judged(&mut verdicts, &rules, at(14)), [3]);
    assert_eq!(judged(&mut verdicts, &rules, at(15)), [] as [u8; 0]);
    assert_eq!(judged(&mut verdicts, &rules, at(19)), [] as [u8; 0]);
    assert_eq!(verdicts.next_change(at(19)), None);
}

#[test]
fn who_is_out_stays_out_before_others_go_and_then_those_whom_most_have_ejected() {
    let (mut verdicts, rules) = (settled(), rules(2, 0, 50, 4));
    for (observer, seen) in [(1, &[1, 2][..]), (2, &[1, 2, 3]), (3, &[2, 3]), (4, &[3, 2])] {
        says(&mut verdicts, observer, seen, at(0));
    }
    assert_eq!(judged(&mut verdicts, &rules, at(0)), [2, 3]);
    for observer in 1..=4 {
        says(&mut verdicts, observer, if observer < 3 { &[1, 3] } else { &[1] }, at(1));
    }
    assert_eq!(judged(&mut verdicts, &rules, at(1)), [1, 3], "3 was there before, and 2 is well");
    says(&mut verdicts, 2, &[1, 3, 4], at(1));
    says(&mut verdicts, 3, &[1, 4], at(1));
    says(&mut verdicts, 4, &[1, 4], at(1));
    assert_eq!(judged(&mut verdicts, &rules, at(1)), [1, 3], "4 has more against it, and 3 was there before");
}

#[test]
fn one_always_may_be_out_and_never_the_last() {
    let mut verdicts = settled();
    for observer in 1..=3 {
        says(&mut verdicts, observer, &[1, 2], at(0));
    }
    assert_eq!(judged(&mut verdicts, &rules(2, 50, 10, 4), at(0)), [1], "10 % of four are none, but for one");
    assert_eq!(judged(&mut verdicts, &rules(2, 50, 100, 2), at(0)), [1], "both would be everybody");
    assert_eq!(judged(&mut verdicts, &rules(2, 50, 100, 1), at(0)), [] as [u8; 0]);
}

#[test]
fn without_rules_nobody_is_out_and_who_is_gone_neither() {
    let mut verdicts = settled();
    says(&mut verdicts, 1, &[3], at(0));
    says(&mut verdicts, 2, &[3], at(0));
    assert_eq!(judged(&mut verdicts, &rules(2, 50, 50, 4), at(0)), [3]);
    assert_eq!(verdicts.judge(at(0), |_| None::<Rules>).len(), 1);
    assert_eq!(out(&verdicts), [] as [u8; 0]);
    assert_eq!(judged(&mut verdicts, &rules(2, 50, 50, 4), at(0)), [3]);
    assert_eq!(judged(&mut verdicts, &rules(2, 50, 50, 2), at(0)), [] as [u8; 0], "there is no third");
}

#[test]
fn of_those_who_are_heard_first_nobody_is_believed_before_all_had_time_to_speak() {
    let (mut verdicts, rules) = (Verdicts::default(), rules(2, 50, 50, 4));
    let at = |seconds| Tick::ZERO.after(Duration::from_secs(seconds));
    says(&mut verdicts, 1, &[3], at(0));
    says(&mut verdicts, 2, &[3], at(0));
    assert_eq!(judged(&mut verdicts, &rules, at(0)), [] as [u8; 0]);
    assert_eq!(verdicts.next_change(at(0)), Some(at(10)));
    for observer in 3..=5 {
        says(&mut verdicts, observer, &[], at(9));
    }
    assert_eq!(judged(&mut verdicts, &rules, at(10)), [] as [u8; 0], "two of five");
    says(&mut verdicts, 3, &[3], at(11));
    assert_eq!(judged(&mut verdicts, &rules, at(11)), [3]);
    assert_eq!(judged(&mut verdicts, &rules, at(30)), [] as [u8; 0]);
    says(&mut verdicts, 1, &[3], at(30));
    says(&mut verdicts, 2, &[3], at(31));
    assert_eq!(judged(&mut verdicts, &rules, at(39)), [] as [u8; 0], "all were away, and come one by one");
    assert_eq!(judged(&mut verdicts, &rules, at(40)), [3]);
}

#[test]
fn who_is_heard_late_counts_as_if_it_had_been_heard_at_once() {
    let (mut verdicts, rules) = (settled(), rules(2, 50, 50, 4));
    says(&mut verdicts, 1, &[3], at(0));
    says(&mut verdicts, 2, &[3], at(0));
    assert_eq!(judged(&mut verdicts, &rules, at(0)), [3]);
    for observer in 3..=10 {
        says(&mut verdicts, observer, &[], at(4));
    }
    assert_eq!(judged(&mut verdicts, &rules, at(4)), [] as [u8; 0], "two of ten");
    for observer in 3..=5 {
        says(&mut verdicts, observer, &[3], at(5));
    }
    assert_eq!(judged(&mut verdicts, &rules, at(5)), [3]);
    for observer in 6..=10 {
        says_of(&mut verdicts, (observer, &[1, 2, 4]), &[], at(6));
    }
    assert_eq!(judged(&mut verdicts, &rules, at(6)), [3]);
    says(&mut verdicts, 1, &[], at(7));
    assert_eq!(judged(&mut verdicts, &rules, at(7)), [] as [u8; 0], "four of the ten who had called it");
}

#[test]
fn the_share_is_of_those_who_have_called_that_endpoint() {
    let (mut verdicts, rules) = (settled(), rules(2, 60, 50, 6));
    // Three zones, three callers in each, that call two endpoints each.
    for observer in 1..=9 {
        let zone = u8::try_from((observer - 1) / 3).unwrap();
        let called = [1 + 2 * zone, 2 + 2 * zone];
        let out: &[u8] = if observer <= 2 { &[1] } else { &[] };
        says_of(&mut verdicts, (observer, &called), out, at(0));
    }
    let turns = verdicts.judge(at(0), |_| Some(rules.clone()));
    let sentence = Some(Sentence { observers: 2, callers: 3 });
    assert_eq!(turns, [Turn { service: service(80), suspect: suspect(1), sentence }]);
    says_of(&mut verdicts, (9, &[1, 5, 6]), &[], at(1));
    assert_eq!(judged(&mut verdicts, &rules, at(1)), [] as [u8; 0], "one more has called it: two of four");
}

#[test]
fn rules_are_asked_for_where_two_have_ejected_the_same() {
    let mut verdicts = settled();
    let sights = |numbers: [u8; 2]| -> Sights {
        let sight = |number| Sight { ejected: [suspect(number)].into(), called: BTreeSet::new() };
        [(service(80), sight(numbers[0])), (service(81), sight(numbers[1]))].into()
    };
    let asked = |verdicts: &mut Verdicts| {
        let mut asked = Vec::new();
        verdicts.judge(at(0), |service| {
            asked.push(service.port);
            Some(rules(2, 50, 50, 4))
        });
        asked
    };
    verdicts.hear(&name(1), sights([1, 1]), at(0));
    assert_eq!(asked(&mut verdicts), [] as [u16; 0]);
    verdicts.hear(&name(2), sights([2, 1]), at(0));
    assert_eq!(asked(&mut verdicts), [81], "of the other each has ejected somebody else");
    verdicts.hear(&name(2), sights([2, 2]), at(0));
    assert_eq!(asked(&mut verdicts), [81], "it stands, and may end");
    assert_eq!(asked(&mut verdicts), [] as [u16; 0]);
}

proptest! {
    #[test]
    fn the_bounds_hold_whatever_is_said(
        observers in 0u32..5, percent in 0u32..=100, most in 1u32..=100, endpoints in 1u8..8,
        said in prop::collection::vec((0usize..6, prop::collection::btree_set(1u8..10, 0..6), 0u64..40), 1..60),
    ) {
        let rules = rules(observers, percent, most, endpoints);
        let mut verdicts = settled();
        let mut last: BTreeMap<usize, (BTreeSet<u8>, u64)> = BTreeMap::new();
        let mut began: BTreeMap<u8, u32> = BTreeMap::new();
        let mut now = 0;
        for (observer, seen, later) in said {
            now += later / 10;
            says(&mut verdicts, observer, &seen.iter().copied().collect::<Vec<_>>(), at(now));
            last.insert(observer, (seen, now));
            let sentenced = judged(&mut verdicts, &rules, at(now));
            prop_assert_eq!(invariants::shared_ejection(&rules, sentenced.len()), Ok(()));
            // Told by going over everything that was said: only the last words of those who still count.
            let heard: Vec<_> = last.values().filter(|(_, when)| when + LEASE.as_secs() > now).collect();
            let callers = heard.len() as u32;
            let most = |endpoint: u8| began.get(&endpoint).map_or(callers, |then| callers.max(*then));
            let enough = |endpoint: u8| {
                let count = heard.iter().filter(|(seen, _)| seen.contains(&endpoint)).count() as u32;
                let witnesses = most(endpoint);
                count >= 2 && count >= observers && count * 100 >= percent * witnesses
            };
            prop_assert!(sentenced.iter().all(|&endpoint| endpoint <= endpoints && enough(endpoint)));
            let convicted = (1..=endpoints).filter(|&endpoint| enough(endpoint)).count();
            prop_assert_eq!(sentenced.len(), convicted.min(rules.bound()));
            began = sentenced.iter().map(|at| (*at, most(*at))).collect();
        }
    }

    /// One who lies about everything can neither eject whom nobody else has ejected, nor bring back whom enough others
    /// have.
    #[test]
    fn one_who_lies_alone_does_nothing(
        honest in prop::collection::vec(prop::collection::btree_set(1u8..6, 0..3), 0..6),
        lie in prop::collection::btree_set(1u8..6, 0..6),
    ) {
        let rules = rules(2, 0, 100, 6);
        let mut verdicts = settled();
        for (observer, seen) in honest.iter().enumerate() {
            says(&mut verdicts, observer, &seen.iter().copied().collect::<Vec<_>>(), at(0));
        }
        let before: BTreeSet<u8> = judged(&mut verdicts, &rules, at(0)).into_iter().collect();
        for second in 0..5 {
            says(&mut verdicts, 99, &lie.iter().copied().collect::<Vec<_>>(), at(second));
            let after: BTreeSet<u8> = judged(&mut verdicts, &rules, at(second)).into_iter().collect();
            prop_assert!(before.is_subset(&after));
            let seen = |endpoint: &u8| honest.iter().any(|seen| seen.contains(endpoint));
            prop_assert!(after.iter().all(seen), "{after:?}");
        }
    }
}

mod in_a_proxy {
    use meshwork_base::SeededRng;
    use meshwork_messages::v1;

    use super::at;
    use crate::builder::SnapshotBuilder;
    use crate::cluster::{Cluster, Wanted};
    use crate::load::Answer;
    use crate::outlier::AttemptOutcome;
    use crate::reasons::{Explanation, NoReasons};
    use crate::tests::{build, key, policy_change, service, service_change, slice, wire_endpoint};
    use crate::{Change, Endpoint};
    use std::sync::Arc;
    use std::time::Duration;

    /// Three endpoints, of which those are out for everybody.
    fn endpoints(out: &[u8]) -> Change {
        let endpoint = |number: u8| {
            let mut endpoint = wire_endpoint(&format!("10.0.0.{number}"));
            if out.contains(&number) {
                endpoint.ejected = [("http".to_owned(), 2)].into();
            }
            endpoint
        };
        slice("ns/a-1", "ns/a", ("http", 80), (1..=3).map(endpoint).collect())
    }

    fn proxy() -> (SnapshotBuilder, Arc<Cluster>) {
        let outlier_detection = Some(v1::OutlierDetection {
            consecutive_5xx: Some(1),
            base_ejection_time_ms: 30_000,
            max_ejection_time_ms: 300_000,
            max_ejection_percent: 100,
            interval_ms: 10_000,
            shared: Some(v1::outlier_detection::Shared { observers: 2, percent: Some(50) }),
            ..crate::tests::rows_off()
        });
        let mut builder = SnapshotBuilder::new();
        let changes = [
            service_change(&service("ns/a", &[("http", 80)])),
            endpoints(&[]),
            policy_change(v1::TrafficPolicy { outlier_detection, ..Default::default() }),
        ];
        let snapshot = build(&mut builder, changes);
        let cluster = Arc::clone(snapshot.cluster(&key("ns/a", 80)).unwrap());
        (builder, cluster)
    }

    fn first(cluster: &Cluster) -> Arc<Endpoint> {
        Arc::clone(&cluster.endpoints().pickable()[0])
    }

    fn fails(cluster: &Cluster, endpoint: &Arc<Endpoint>, now: super::Tick) {
        let answer = Answer { status: 500, ..Answer::new(AttemptOutcome::Failure, Duration::ZERO) };
        cluster.record(endpoint, &answer, now);
    }

    #[test]
    fn who_never_called_it_avoids_it_says_why_and_calls_it_again() {
        let (mut builder, cluster) = proxy();
        let before = first(&cluster);
        assert_eq!(builder.apply([endpoints(&[1])]), []);
        let out = first(&cluster);
        assert_eq!((out.id, out.ejected_by), (before.id, 2), "connections to it are kept");
        let mut rng = SeededRng::new(1);
        for _ in 0..50 {
            assert_ne!(cluster.pick(at(1), &mut rng, &[]).unwrap().id, out.id);
        }
        let mut told = Explanation::default();
        cluster.pick_explained(at(1), &mut rng, &Wanted::default(), &mut told);
        let reason = told.0.iter().find(|reason| reason.subject == "10.0.0.1:80").unwrap();
        assert_eq!(reason.why, "2 of its callers have ejected it: it is out for everybody");
        assert_eq!(builder.apply([endpoints(&[])]), []);
        let again = (0..50).any(|_| cluster.pick(at(1), &mut rng, &[]).unwrap().id == out.id);
        assert!(again, "it is in again");
    }

    #[test]
    fn who_has_ejected_it_itself_still_tries_it() {
        let (mut builder, cluster) = proxy();
        fails(&cluster, &first(&cluster), at(1));
        assert_eq!(builder.apply([endpoints(&[1])]), []);
        let wanted = Wanted { session: Some(first(&cluster).id), ..Wanted::default() };
        let picked = cluster.choose(at(40), &mut SeededRng::new(1), &wanted, &mut NoReasons).unwrap();
        let trial = picked.trial.expect("its own time is over");
        let well = Answer { status: 200, ..Answer::new(AttemptOutcome::Success, Duration::ZERO) };
        assert!(cluster.tried(trial, &well, at(40)).is_some());
        assert!(first(&cluster).is_ejected(at(40)), "others still say so");
        assert_eq!(builder.apply([endpoints(&[])]), []);
        assert!(!first(&cluster).is_ejected(at(40)));
    }

    /// A request whose session is with the first; whether it tries it.
    fn calls(cluster: &Arc<Cluster>, now: super::Tick) -> (bool, Option<crate::Trial>) {
        let first = first(cluster).id;
        let wanted = Wanted { session: Some(first), ..Wanted::default() };
        let picked = cluster.choose(now, &mut SeededRng::new(1), &wanted, &mut NoReasons).unwrap();
        (picked.endpoint.id == first, picked.trial)
    }

    #[test]
    fn who_is_out_for_everybody_is_tried_when_the_control_plane_was_away_for_as_long_as_an_ejection_lasts() {
        let (mut builder, cluster) = proxy();
        assert_eq!(builder.apply([endpoints(&[1])]), []);
        let unheard = |seconds, now| cluster.unheard(Some(Duration::from_secs(seconds)), at(now)).len();
        assert_eq!((unheard(299, 399), calls(&cluster, at(399)).0), (0, false), "what it said last counts");
        assert_eq!((unheard(300, 400), unheard(301, 401)), (1, 0), "it is told once");
        let mut told = Explanation::default();
        cluster.pick_explained(at(401), &mut SeededRng::new(1), &Wanted::default(), &mut told);
        let reason = told.0.iter().find(|reason| reason.subject == "10.0.0.1:80").unwrap();
        assert!(reason.why.ends_with("when the control plane was last heard of"), "{}", reason.why);
        let (_, trial) = calls(&cluster, at(401));
        let trial = trial.expect("one request tries it");
        assert!(!calls(&cluster, at(401)).0, "and one alone");
        let answer = |status, outcome| Answer { status, ..Answer::new(outcome, Duration::ZERO) };
        cluster.tried(trial, &answer(500, AttemptOutcome::Failure), at(401));
        assert_eq!((unheard(330, 430), calls(&cluster, at(430)).0), (0, false), "it is ejected here");
        let trial = calls(&cluster, at(431)).1.expect("for 30 seconds, as ever");
        cluster.tried(trial, &answer(200, AttemptOutcome::Success), at(431));
        assert_eq!((unheard(331, 431), first(&cluster).is_ejected(at(431))), (0, false), "it is in");
        assert_eq!(cluster.unheard(None, at(432)).len(), 0);
        assert!(first(&cluster).is_ejected(at(432)), "the control plane is back, and its word counts");
        assert_eq!(builder.apply([endpoints(&[])]), []);
        assert!(!first(&cluster).is_ejected(at(432)));
    }

    #[test]
    fn who_has_ejected_it_itself_goes_by_that_also_while_the_control_plane_is_away() {
        let (mut builder, cluster) = proxy();
        fails(&cluster, &first(&cluster), at(399));
        assert_eq!(builder.apply([endpoints(&[1])]), []);
        assert_eq!(cluster.unheard(Some(Duration::from_secs(300)), at(400)).len(), 1);
        assert!(!calls(&cluster, at(428)).0, "its own thirty seconds are not over");
        assert!(calls(&cluster, at(429)).1.is_some(), "and then it tries it");
    }

    #[test]
    fn of_who_was_not_tried_meanwhile_nothing_is_left_when_the_control_plane_is_back() {
        let (mut builder, cluster) = proxy();
        assert_eq!(builder.apply([endpoints(&[1])]), []);
        fails(&cluster, &Arc::clone(&cluster.endpoints().pickable()[1]), at(399));
        let until = cluster.endpoints().pickable()[1].stats.ejected_until();
        assert_eq!(cluster.unheard(Some(Duration::from_secs(300)), at(400)).len(), 1);
        assert!(first(&cluster).stats.is_out());
        cluster.unheard(None, at(401));
        assert!(!first(&cluster).stats.is_out() && first(&cluster).is_ejected(at(401)));
        assert_eq!(builder.apply([endpoints(&[])]), []);
        assert!(!first(&cluster).is_ejected(at(402)), "no trial is owed");
        assert_eq!(cluster.endpoints().pickable()[1].stats.ejected_until(), until, "its own ejection stays");
    }

    #[test]
    fn whom_this_proxy_has_ejected_meanwhile_stays_out_when_the_control_plane_is_back() {
        let (mut builder, cluster) = proxy();
        assert_eq!(builder.apply([endpoints(&[1])]), []);
        assert_eq!(cluster.unheard(Some(Duration::from_secs(300)), at(400)).len(), 1);
        let trial = calls(&cluster, at(400)).1.expect("one request tries it");
        let failed = Answer { status: 500, ..Answer::new(AttemptOutcome::Failure, Duration::ZERO) };
        assert!(cluster.tried(trial, &failed, at(400)).is_some());
        let stats = &first(&cluster).stats;
        assert_eq!((stats.ejection_cause(), stats.ejections()), (Some(crate::EjectionCause::TrialFailed), 1));
        cluster.unheard(None, at(401));
        assert_eq!(builder.apply([endpoints(&[])]), []);
        assert!(first(&cluster).is_ejected(at(402)), "others take it in, and this one has seen it fail");
        assert!(!first(&cluster).is_ejected(at(430)), "it tries it when its own time is over");
    }

    #[test]
    fn only_those_whom_others_have_ejected_are_out_when_the_control_plane_is_back() {
        let (mut builder, cluster) = proxy();
        assert_eq!(builder.apply([endpoints(&[1])]), []);
        cluster.unheard(Some(Duration::from_secs(300)), at(400));
        cluster.unheard(None, at(401));
        let out = cluster.endpoints().pickable().iter().filter(|one| one.is_ejected(at(401))).count();
        assert_eq!(out, 1);
    }

    #[test]
    fn outlier_detection_leaves_the_last_that_is_in_for_everybody() {
        let (mut builder, cluster) = proxy();
        assert_eq!(builder.apply([endpoints(&[1, 2])]), []);
        let third = Arc::clone(&cluster.endpoints().pickable()[2]);
        fails(&cluster, &third, at(1));
        assert!(!third.stats.is_out(), "nobody else is in");
    }
}
