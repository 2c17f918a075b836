use std::sync::mpsc::{Receiver, sync_channel};

use meshwork_messages::v1;
use proptest::prelude::*;

use super::*;
use crate::builder::SnapshotBuilder;
use crate::limits::ConnectionPermit;
use crate::tests::{build, key, policy_change, service, service_change, slice, wire_endpoint};

/// Two endpoints of a service that may have so many connections, and to each.
fn cluster(max_connections: u32, max_connections_per_endpoint: u32) -> Arc<Cluster> {
    built(&mut SnapshotBuilder::new(), max_connections, max_connections_per_endpoint)
}

fn built(
    builder: &mut SnapshotBuilder,
    max_connections: u32,
    max_connections_per_endpoint: u32,
) -> Arc<Cluster> {
    let endpoints = (1..=2).map(|n| wire_endpoint(&format!("10.0.0.{n}"))).collect();
    let limits = v1::Limits { max_connections, max_connections_per_endpoint, ..Default::default() };
    let changes = [
        service_change(&service("ns/a", &[("", 80)])),
        slice("ns/a-1", "ns/a", ("", 80), endpoints),
        policy_change(v1::TrafficPolicy { limits: Some(limits), ..Default::default() }),
    ];
    let snapshot = build(builder, changes);
    Arc::clone(snapshot.cluster(&key("ns/a", 80)).expect("a cluster"))
}

fn endpoints(cluster: &Cluster) -> [Arc<Endpoint>; 2] {
    [0, 1].map(|at| Arc::clone(&cluster.endpoints().all()[at]))
}

fn connect(cluster: &Cluster, to: &Endpoint) -> Result<ConnectionPermit, ConnectionLimit> {
    cluster.admit_connection(to)
}

/// Waits; the receiver hears of it when it is called.
fn waits(cluster: &Cluster, of: &Endpoint, limit: ConnectionLimit) -> (AwaitedRoom, Receiver<()>) {
    let (call, called) = sync_channel(1);
    (cluster.await_room(of, limit, move || call.send(()).expect("somebody listens")), called)
}

/// Waits once more; the receiver hears of it when it is called.
fn waits_again(one: &mut AwaitedRoom, limit: ConnectionLimit) -> Receiver<()> {
    let (call, called) = sync_channel(1);
    one.again(limit, move || call.send(()).expect("somebody listens"));
    called
}

#[test]
fn a_connection_that_ends_at_another_endpoint_or_thread_calls_one_who_waits_for_its_service() {
    let cluster = cluster(2, 10);
    let [one, other] = endpoints(&cluster);
    let first = connect(&cluster, &one).unwrap();
    let second = connect(&cluster, &other).unwrap();
    assert_eq!(connect(&cluster, &one).unwrap_err(), ConnectionLimit::Service);
    let (waiting, called) = waits(&cluster, &one, ConnectionLimit::Service);
    let (_later, called_later) = waits(&cluster, &one, ConnectionLimit::Service);
    assert_eq!(connect(&cluster, &one).unwrap_err(), ConnectionLimit::Service, "it looks once more");
    assert!(called.try_recv().is_err(), "that it found nothing calls nobody");
    std::thread::spawn(move || drop(second)).join().unwrap();
    assert!(called.try_recv().is_ok() && called_later.try_recv().is_err(), "one connection, one who waits");
    let third = connect(&cluster, &one).expect("there is room");
    waiting.used();
    drop(first);
    assert!(called_later.try_recv().is_ok());
    assert!(!cluster.shared.room.is_awaited(), "who was called waits no longer");
    drop(third);
}

#[test]
fn who_waits_for_an_endpoint_is_called_by_its_connections_alone_and_before_others() {
    let cluster = cluster(3, 1);
    let [one, other] = endpoints(&cluster);
    let first = connect(&cluster, &one).unwrap();
    let second = connect(&cluster, &other).unwrap();
    assert_eq!(connect(&cluster, &one).unwrap_err(), ConnectionLimit::Endpoint);
    let (_of_service, called_of_service) = waits(&cluster, &other, ConnectionLimit::Service);
    let (_waiting, called) = waits(&cluster, &one, ConnectionLimit::Endpoint);
    drop(second);
    assert!(called.try_recv().is_err() && called_of_service.try_recv().is_ok());
    let (_of_service, called_of_service) = waits(&cluster, &other, ConnectionLimit::Service);
    drop(first);
    assert!(called.try_recv().is_ok() && called_of_service.try_recv().is_err());
}

#[test]
fn whoever_is_called_and_leaves_has_the_next_one_called_and_who_found_nothing_has_not() {
    let cluster = cluster(1, 1);
    let [one, _] = endpoints(&cluster);
    let end_one = || drop(connect(&cluster, &one).unwrap());
    let (leaves, first) = waits(&cluster, &one, ConnectionLimit::Endpoint);
    let (quick, second) = waits(&cluster, &one, ConnectionLimit::Endpoint);
    let (_last, third) = waits(&cluster, &one, ConnectionLimit::Service);
    end_one();
    assert!(first.try_recv().is_ok() && second.try_recv().is_err());
    drop(leaves);
    assert!(second.try_recv().is_ok() && third.try_recv().is_err());
    drop(quick);
    assert!(third.try_recv().is_ok(), "of those who wait for the service then");
    let (mut in_vain, fourth) = waits(&cluster, &one, ConnectionLimit::Endpoint);
    let (patient, fifth) = waits(&cluster, &one, ConnectionLimit::Endpoint);
    end_one();
    assert!(fourth.try_recv().is_ok());
    let called_again = waits_again(&mut in_vain, ConnectionLimit::Endpoint);
    assert!(fifth.try_recv().is_err());
    end_one();
    assert!(called_again.try_recv().is_ok() && fifth.try_recv().is_err(), "first come, first served");
    in_vain.used();
    assert!(fifth.try_recv().is_err(), "who has used its place calls nobody");
    drop(patient);
    assert!(!one.stats.room.is_awaited(), "nobody is left");
}

#[test]
fn who_was_not_called_calls_nobody_when_it_meets_the_other_limit_or_leaves() {
    let cluster = cluster(10, 10);
    let [one, _] = endpoints(&cluster);
    for limits in [
        [ConnectionLimit::Service, ConnectionLimit::Endpoint],
        [ConnectionLimit::Endpoint, ConnectionLimit::Service],
    ] {
        let (mut moves, _called) = waits(&cluster, &one, limits[0]);
        let others = limits.map(|limit| waits(&cluster, &one, limit));
        let _called = waits_again(&mut moves, limits[1]);
        drop(moves);
        assert!(others.iter().all(|(_, called)| called.try_recv().is_err()), "there is no room: {limits:?}");
    }
}

#[test]
fn a_connection_is_wanted_while_somebody_waits_for_its_endpoint_or_service() {
    let cluster = cluster(1, 1);
    let [one, other] = endpoints(&cluster);
    let permit = connect(&cluster, &one).unwrap();
    assert!(!permit.is_wanted());
    for (of, limit, wanted) in [
        (&one, ConnectionLimit::Endpoint, true),
        (&other, ConnectionLimit::Endpoint, false),
        (&other, ConnectionLimit::Service, true),
    ] {
        let (waiting, _called) = waits(&cluster, of, limit);
        assert_eq!(permit.is_wanted(), wanted, "{limit:?} of {}", of.address());
        drop(waiting);
        assert!(!permit.is_wanted());
    }
}

#[test]
fn who_meets_the_other_limit_waits_there_as_long_as_it_has_waited_and_has_the_next_one_called() {
    let cluster = cluster(10, 10);
    let [one, other] = endpoints(&cluster);
    for [limit, other_limit] in [
        [ConnectionLimit::Service, ConnectionLimit::Endpoint],
        [ConnectionLimit::Endpoint, ConnectionLimit::Service],
    ] {
        let (mut moves, first) = waits(&cluster, &one, limit);
        let (_stays, second) = waits(&cluster, &one, limit);
        let (_younger, third) = waits(&cluster, &one, other_limit);
        drop(connect(&cluster, if limit == ConnectionLimit::Service { &other } else { &one }).unwrap());
        assert!(first.try_recv().is_ok(), "{limit:?}");
        let moved = waits_again(&mut moves, other_limit);
        assert!(second.try_recv().is_ok(), "what keeps one need not keep the next: {limit:?}");
        drop(connect(&cluster, if other_limit == ConnectionLimit::Service { &other } else { &one }).unwrap());
        assert!(moved.try_recv().is_ok() && third.try_recv().is_err(), "it is older: {limit:?}");
    }
}

#[test]
fn who_passes_on_what_it_was_called_for_calls_one_and_waits_again_as_long_as_it_has_waited() {
    let cluster = cluster(1, 1);
    let [one, _] = endpoints(&cluster);
    let end_one = || drop(connect(&cluster, &one).unwrap());
    for limit in [ConnectionLimit::Endpoint, ConnectionLimit::Service] {
        let (mut passes, first) = waits(&cluster, &one, ConnectionLimit::Endpoint);
        let (mut second, called_second) = waits(&cluster, &one, limit);
        let (third, called_third) = waits(&cluster, &one, limit);
        end_one();
        assert!(first.try_recv().is_ok() && called_second.try_recv().is_err());
        passes.pass();
        passes.pass();
        assert!(called_second.try_recv().is_ok() && called_third.try_recv().is_err(), "one, and once");
        let called_second = waits_again(&mut second, limit);
        let called_again = waits_again(&mut passes, limit);
        assert!(called_second.try_recv().is_err() && called_third.try_recv().is_err(), "nothing has ended");
        end_one();
        assert!(called_again.try_recv().is_ok() && called_second.try_recv().is_err(), "it is the oldest");
        passes.pass();
        assert!(called_second.try_recv().is_ok());
        drop((passes, second));
        assert!(called_third.try_recv().is_ok(), "of the two the second leaves with what it was called for");
        third.used();
    }
    assert!(!one.stats.room.is_awaited());
}

#[test]
fn a_place_of_the_service_that_was_held_while_the_endpoint_refused_calls_who_waits_for_it() {
    let cluster = cluster(2, 1);
    let [one, other] = endpoints(&cluster);
    let _first = connect(&cluster, &one).unwrap();
    let (_waiting, called) = waits(&cluster, &other, ConnectionLimit::Service);
    assert_eq!(connect(&cluster, &one).unwrap_err(), ConnectionLimit::Endpoint);
    assert!(called.try_recv().is_ok(), "it may have looked just then");
}

#[test]
fn a_limit_that_is_raised_or_gone_calls_all_who_wait_and_lets_them_in_by_whatever_snapshot_they_came() {
    for (limit, before, after) in [
        (ConnectionLimit::Service, (1, 0), (3, 0)),
        (ConnectionLimit::Service, (1, 0), (0, 0)),
        (ConnectionLimit::Endpoint, (0, 1), (0, 3)),
        (ConnectionLimit::Endpoint, (5, 1), (5, 0)),
    ] {
        let mut builder = SnapshotBuilder::new();
        let cluster = built(&mut builder, before.0, before.1);
        let [one, _] = endpoints(&cluster);
        let _first = connect(&cluster, &one).unwrap();
        assert_eq!(connect(&cluster, &one).unwrap_err(), limit);
        let all = [(); 2].map(|()| waits(&cluster, &one, limit));
        let _same = built(&mut builder, before.0, before.1);
        assert!(all.iter().all(|(_, called)| called.try_recv().is_err()), "nothing is otherwise: {limit:?}");
        let _now = built(&mut builder, after.0, after.1);
        assert!(all.iter().all(|(_, called)| called.try_recv().is_ok()), "{limit:?}, {after:?}");
        assert!(!cluster.shared.room.is_awaited() && !one.stats.room.is_awaited(), "nobody waits any more");
        let held = [(); 2].map(|()| connect(&cluster, &one));
        assert!(held.iter().all(Result::is_ok), "the limit of now: {limit:?}, {after:?}");
    }
}

#[test]
fn a_limit_that_has_fallen_calls_nobody_and_holds_for_those_who_wait() {
    let mut builder = SnapshotBuilder::new();
    let cluster = built(&mut builder, 3, 0);
    let [one, _] = endpoints(&cluster);
    let mut held = [(); 3].map(|()| Some(connect(&cluster, &one).unwrap()));
    let (_waiting, called) = waits(&cluster, &one, ConnectionLimit::Service);
    let _now = built(&mut builder, 1, 0);
    assert!(called.try_recv().is_err());
    held[0] = None;
    assert!(called.try_recv().is_ok());
    assert_eq!(connect(&cluster, &one).unwrap_err(), ConnectionLimit::Service, "there are two still");
}

/// One who waits, and whether it was called since it waits; for an endpoint, by its place.
struct Waits {
    of: usize,
    room: AwaitedRoom,
    call: Receiver<()>,
    called: bool,
    /// It has passed on what it was called for, and waits for no limit.
    stands_by: bool,
}

/// Callers of two endpoints, one after the other.
struct Crowd {
    cluster: Arc<Cluster>,
    endpoints: [Arc<Endpoint>; 2],
    most: [u32; 2],
    held: Vec<ConnectionPermit>,
    waiting: Vec<Waits>,
}

impl Crowd {
    fn new(of_service: u32, of_each: u32) -> Self {
        let cluster = cluster(of_service, of_each);
        let (endpoints, most) = (endpoints(&cluster), [of_service, of_each]);
        Self { cluster, endpoints, most, held: Vec::new(), waiting: Vec::new() }
    }

    fn comes(&mut self, of: usize) {
        if let Err(limit) = self.connects(of) {
            let (room, call) = waits(&self.cluster, &self.endpoints[of], limit);
            self.looks_again(Waits { of, room, call, called: false, stands_by: false });
        }
    }

    fn connects(&mut self, to: usize) -> Result<(), ConnectionLimit> {
        self.held.push(connect(&self.cluster, &self.endpoints[to])?);
        Ok(())
    }

    /// It is there, or joins the line before another limit and looks once more, until it meets none that it has not joined.
    fn looks_again(&mut self, mut one: Waits) {
        match self.connects(one.of) {
            Ok(()) => one.room.used(),
            Err(limit) if limit == one.room.limit() => self.waiting.push(one),
            Err(limit) => {
                one.call = waits_again(&mut one.room, limit);
                self.looks_again(one);
            }
        }
    }

    /// One that was called, or stands by, looks whether there is room.
    fn looks(&mut self, mut one: Waits) {
        match self.connects(one.of) {
            Ok(()) => one.room.used(),
            Err(limit) => {
                (one.call, one.called, one.stands_by) = (waits_again(&mut one.room, limit), false, false);
                self.looks_again(one);
            }
        }
    }

    fn takes_calls(&mut self) {
        self.waiting.iter_mut().for_each(|one| one.called |= one.call.try_recv().is_ok());
    }

    /// Takes one out that was called, or stands by, if there is one.
    fn one_of(&mut self, stands_by: bool, which: usize) -> Option<Waits> {
        let is_one = |one: &Waits| if stands_by { one.stands_by } else { one.called && !one.stands_by };
        let all: Vec<usize> = (0..self.waiting.len()).filter(|at| is_one(&self.waiting[*at])).collect();
        (!all.is_empty()).then(|| self.waiting.swap_remove(all[which % all.len()]))
    }

    fn steps(&mut self, step: u8, which: usize) {
        match step {
            0..3 => self.comes(which % 2),
            3..5 if !self.held.is_empty() => drop(self.held.swap_remove(which % self.held.len())),
            5 | 6 => {
                if let Some(one) = self.one_of(false, which) {
                    self.looks(one);
                }
            }
            7 => {
                if let Some(mut one) = self.one_of(false, which) {
                    one.room.pass();
                    (one.called, one.stands_by) = (false, true);
                    self.waiting.push(one);
                }
            }
            8 => {
                if let Some(one) = self.one_of(true, which) {
                    self.looks(one);
                }
            }
            9 if !self.waiting.is_empty() => drop(self.waiting.swap_remove(which % self.waiting.len())),
            _ => {}
        }
        self.takes_calls();
    }

    fn holds(&self) -> Result<(), String> {
        let [of_service, of_each] = self.most;
        let waiting = |limit, of: Option<usize>| {
            let ours =
                self.waiting.iter().filter(move |one| !one.stands_by && of.is_none_or(|of| one.of == of));
            let at = ours.filter(move |one| one.room.limit() == limit);
            at.fold((0, 0), |(called, waits), one| {
                (called + usize::from(one.called), waits + usize::from(!one.called))
            })
        };
        let mut called_by_any = waiting(ConnectionLimit::Service, None).0;
        for (at, endpoint) in self.endpoints.iter().enumerate() {
            let (called, waits) = waiting(ConnectionLimit::Endpoint, Some(at));
            called_by_any += called;
            crate::invariants::room(of_each - endpoint.stats.connections(), called, waits)?;
            if endpoint.stats.room.is_awaited() != (waits > 0) {
                return Err(format!("{waits} wait for {}, and that is not known", endpoint.address()));
            }
        }
        let waits = waiting(ConnectionLimit::Service, None).1;
        crate::invariants::room(
            of_service - self.cluster.in_use(crate::limits::Limited::Connection),
            called_by_any,
            waits,
        )
    }
}

proptest! {
    /// Whoever comes, leaves, is called, passes it on and comes again: nobody waits where there is room that nobody was called for.
    #[test]
    fn nobody_waits_where_there_is_room(
        (of_service, of_each) in (1u32..5, 1u32..4),
        steps in prop::collection::vec((0u8..10, any::<usize>()), 1..120),
    ) {
        let mut crowd = Crowd::new(of_service, of_each);
        for (step, which) in steps {
            crowd.steps(step, which);
            prop_assert_eq!(crowd.holds(), Ok(()), "after step {}", step);
        }
        crowd.waiting.clear();
        prop_assert!(!crowd.cluster.shared.room.is_awaited(), "nobody is left");
    }
}
