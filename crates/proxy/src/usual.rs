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

/// Bytes of a body that are on their way, or wait in sockets: whoever sends more waits for whoever reads it.
const HELD: u64 = 32 * 1024;

/// Which of a request's ids we have made ourselves. Of a call that an application makes it never learns of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Made {
    pub(crate) trace: bool,
    pub(crate) id: bool,
}

/// How a request was, as far as its record does not tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) started: Tick,
    pub(crate) phase: Phase,
    pub(crate) is_grpc: bool,
    /// It was noted when it was let in.
    pub(crate) is_noted: bool,
    pub(crate) made: Made,
}

/// A request is let in to the application; whether that is noted.
#[inline]
pub(crate) fn begun(conn: &Conn, record: &Record) -> bool {
    let worker = &conn.worker;
    let calls = &worker.shared.learnt.calls;
    calls.are_made()
        && worker.recorder.is_on()
        && families(record, Made::default()).filter(|family| calls.begun(*family, worker.now())).count() > 0
}

/// A request has ended; of a tunnel, which lasts as long as it is held, nothing is learnt. Gives what it took of its application alone.
#[inline]
pub(crate) fn ended(conn: &Conn, record: &Record, told: Told) -> Option<Duration> {
    let Told { started, phase, is_grpc, is_noted, made } = told;
    let (worker, now) = (&conn.worker, started.after(record.duration));
    let Learnt { usuals, calls } = &worker.shared.learnt;
    if !worker.recorder.is_on() {
        return None;
    }
    let own = match conn.place {
        Place::Inbound(_) => {
            let waited =
                families(record, Made::default()).map(|family| calls.take(family, started, now, is_noted));
            waited_by(waited).and_then(|waited| own(record, waited))
        }
        Place::Outbound(_) => {
            families(record, made).for_each(|family| calls.ended(family, started, now));
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

/// How long an application has waited, by what is known of its request's trace and of its id. Where one of them is another
/// request's too, the other tells, if it tells of calls.
fn waited_by(known: impl Iterator<Item = Option<Duration>>) -> Option<Duration> {
    let (longest, is_sure) = known.fold((Duration::ZERO, true), |(longest, is_sure), known| {
        (longest.max(known.unwrap_or_default()), is_sure && known.is_some())
    });
    (is_sure || !longest.is_zero()).then_some(longest)
}

/// What a request took of its application alone, which has waited so long for others. What a caller took to send a long
/// body, or to read one, is none of it: of such an answer the time until its head counts, of such a request nothing is known.
fn own(record: &Record, waited: Duration) -> Option<Duration> {
    let own = record.duration.saturating_sub(waited);
    let until_head = record.time_to_first_byte.filter(|_| record.bytes_sent > HELD);
    let of_head = until_head.map(|until_head| until_head.saturating_sub(waited));
    (record.bytes_received <= HELD).then(|| of_head.map_or(own, |of_head| own.min(of_head)))
}

/// By what the application's calls are known to belong to a call to it. Not by what was made for a call alone: nobody would
/// ever ask for that.
fn families(record: &Record, made: Made) -> impl Iterator<Item = Family> {
    let id = record.text.request_id();
    let id = (!made.id && !id.is_empty()).then(|| Family::of(id));
    record.trace_id.filter(|_| !made.trace).map(Family::of).into_iter().chain(id)
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
    use meshwork_telemetry::TraceId;

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
    fn what_a_caller_takes_to_read_or_to_send_is_not_its_application_s() {
        let ms = Duration::from_millis;
        let of = |sent: u64, received: u64| {
            let record = Record {
                duration: ms(50_000),
                time_to_first_byte: Some(ms(40)),
                bytes_sent: sent,
                bytes_received: received,
                ..Record::default()
            };
            own(&record, ms(10))
        };
        assert_eq!(of(50 << 20, 0), Some(ms(30)), "until its head");
        assert_eq!(of(1_000, 0), Some(ms(49_990)), "so little waits for nobody");
        assert_eq!(of(1_000, 50 << 20), None);
    }

    #[test]
    fn where_a_trace_is_anothers_too_the_id_tells_if_it_tells_of_calls() {
        let ms = |millis: u64| Some(Duration::from_millis(millis));
        let of = |known: &[Option<Duration>]| waited_by(known.iter().copied());
        assert_eq!(of(&[]), ms(0));
        assert_eq!(of(&[ms(3), ms(5)]), ms(5));
        assert_eq!(of(&[None, ms(5)]), ms(5));
        assert_eq!(of(&[None, ms(0)]), None);
        assert_eq!(of(&[None, None]), None);
    }

    #[test]
    fn a_call_is_known_by_the_ids_that_its_application_has_passed_on() {
        let trace_id = TraceId::from_bytes([7; 16]);
        let mut record = Record { trace_id, ..Record::default() };
        record.text.set(b"GET", b"/", b"back", b"", b"r-7");
        let (trace, id) = (trace_id.map(Family::of).unwrap(), Family::of(b"r-7".as_slice()));
        let known = |trace, id| families(&record, Made { trace, id }).collect::<Vec<_>>();
        assert_eq!(known(false, false), [trace, id]);
        assert_eq!(known(false, true), [trace]);
        assert_eq!(known(true, false), [id]);
        assert_eq!(known(true, true), []);
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
