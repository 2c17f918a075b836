//! What requests ordinarily take here, and what the application beside us takes without the calls that it makes itself:
//! learnt where a request's record is written, told with those that are kept. See [`Usuals`] and [`AppCalls`].

use std::cell::Cell;
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_decision::{AppCalls, Family, Operation, Took, Usuals};
use meshwork_telemetry::{Phase, Record};

use crate::downstream::connection::Conn;
use crate::mesh::Place;
use crate::recorder::is_failed;

/// A worker learns from a thousand requests per second, and from so many at once that one request's calls count each.
const PAUSE: u64 = 1_000_000;
const AT_ONCE: u64 = 64;

/// What all workers know together.
#[derive(Debug, Default)]
pub struct Learnt {
    usuals: Usuals,
    calls: AppCalls,
}

/// When a worker learns next, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Turn(Cell<u64>);

impl Turn {
    fn has_come(&self, now: Tick) -> bool {
        let (next, now) = (self.0.get(), now.as_nanos());
        let has_come = next <= now + AT_ONCE * PAUSE;
        if has_come {
            self.0.set(next.max(now) + PAUSE);
        }
        has_come
    }
}

/// What one request took, and what one like it ordinarily takes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timing {
    pub(crate) own: Option<Duration>,
    pub(crate) usual: Option<Took>,
}

/// A request has ended; of a tunnel, which lasts as long as it is held, nothing is learnt. Gives what it took of its application alone.
#[inline]
pub(crate) fn ended(
    conn: &Conn,
    record: &Record,
    started: Tick,
    phase: Phase,
    is_grpc: bool,
) -> Option<Duration> {
    let (worker, now) = (&conn.worker, started.after(record.duration));
    let Learnt { usuals, calls } = &worker.shared.learnt;
    if !worker.recorder.is_on() {
        return None;
    }
    let own = match conn.place {
        Place::Inbound(_) => {
            let waited = families(record).map(|family| calls.take(family, started, now)).max();
            Some(record.duration.saturating_sub(waited.unwrap_or_default()))
        }
        Place::Outbound(_) => {
            families(record).for_each(|family| calls.ended(family, started, now));
            None
        }
        Place::Gateway(_) | Place::Hbone(_) => None,
    };
    if phase != Phase::Tunnel
        && is_ordinary(record)
        && worker.turn.has_come(now)
        && let Some(operation) = operation(conn.place, record, is_grpc)
    {
        usuals.learn(operation, Took { whole: record.duration, own }, now, &mut *worker.rng.borrow_mut());
    }
    own
}

/// What is told of a request that is kept.
pub(crate) fn timing(conn: &Conn, record: &Record, own: Option<Duration>, is_grpc: bool) -> Timing {
    let usuals = &conn.worker.shared.learnt.usuals;
    Timing { own, usual: operation(conn.place, record, is_grpc).and_then(|operation| usuals.of(operation)) }
}

/// By what the application's calls are known to belong to a call to it.
fn families(record: &Record) -> impl Iterator<Item = Family> {
    let id = record.text.request_id();
    let id = (!id.is_empty()).then(|| Family::of(id));
    record.trace_id.map(Family::of).into_iter().chain(id)
}

fn operation(place: Place, record: &Record, is_grpc: bool) -> Option<Operation> {
    let is_called = matches!(place, Place::Inbound(_));
    let service = record.service.as_deref()?;
    Some(Operation::of(is_called, service, record.text.method(), record.text.path(), is_grpc))
}

/// Whether its upstream has answered it as it should: whoever refuses is quick.
fn is_ordinary(record: &Record) -> bool {
    (200..400).contains(&record.status) && record.attempts > 0 && !record.mirrored && !is_failed(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_learns_from_a_burst_and_then_from_a_thousand_requests_per_second() {
        let turn = Turn::default();
        let learnt = |from: u64, millis: u64| {
            let ticks = (from * 100..(from + millis) * 100).map(|step| Tick::from_nanos(step * PAUSE / 100));
            ticks.filter(|now| turn.has_come(*now)).count()
        };
        let first = learnt(5_000, 1_000);
        assert!((1_060..=1_070).contains(&first), "a hundred times as many come: {first}");
        assert_eq!(learnt(6_000, 100), 100);
        let later = learnt(10_000, 10);
        assert!((70..=80).contains(&later), "after a pause: {later}");
    }

    #[test]
    fn only_what_was_answered_well_is_ordinary() {
        let change = |change: fn(&mut Record)| {
            let mut record = Record { status: 200, attempts: 1, ..Record::default() };
            change(&mut record);
            is_ordinary(&record)
        };
        assert!(change(|_| {}) && change(|record| record.status = 304));
        assert!(!change(|record| record.status = 404));
        assert!(!change(|record| record.status = 101));
        assert!(!change(|record| record.cause = "upstream_reset"));
        assert!(!change(|record| record.grpc_status = Some(14)));
        assert!(!change(|record| record.mirrored = true));
        assert!(!change(|record| record.attempts = 0), "an answer of ours");
    }
}
