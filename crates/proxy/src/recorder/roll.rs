//! Requests that are under way when somebody asks for them.
//!
//! No list of them is kept. When a worker is asked, all tasks that carry a request are woken and find that they are; each whose
//! request is wanted tells of it as it is by then. So requests of which nobody asks pay for one look at a cell whenever
//! they wait.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use meshwork_messages::v1;
use meshwork_telemetry::{Phase, Record};
use tokio::task::spawn_local;

use super::{ANSWERS, PATH, TEXT, Wanted, copied, told};
use crate::mesh::Place;
use crate::request::tried::{Held, Tried};
use crate::usual::Timing;
use crate::worker::Worker;

/// Who is asked for at this moment, if anybody is.
#[derive(Default)]
pub(crate) struct Roll(RefCell<Option<Called>>);

struct Called {
    wanted: Arc<Wanted>,
    told: Vec<v1::Observation>,
}

impl Roll {
    /// Whether a request is asked for; `probe`: which has found it.
    pub(crate) fn wants(&self, record: &Record, probe: Option<u64>) -> bool {
        let called = self.0.borrow();
        let called = called.as_ref().filter(|called| called.told.len() < ANSWERS);
        called.is_some_and(|Called { wanted, .. }| wanted.is_of(probe) || wanted.is(record))
    }

    /// Whether those are asked for which this probe has found.
    pub(crate) fn wants_of(&self, probe: u64) -> bool {
        self.0.borrow().as_ref().is_some_and(|called| called.wanted.is_of(Some(probe)))
    }

    /// What is told of one that is.
    pub(crate) fn answer(&self, told: v1::Observation) {
        if let Some(called) = &mut *self.0.borrow_mut() {
            called.told.push(told);
        }
    }
}

/// Those of the wanted requests that are under way on this worker.
pub(crate) async fn roll_call(worker: &Rc<Worker>, wanted: &Arc<Wanted>) -> Vec<v1::Observation> {
    let called = Called { wanted: Arc::clone(wanted), told: Vec::new() };
    *worker.roll.0.borrow_mut() = Some(called);
    worker.all_connections().into_iter().for_each(|some| some.ask());
    // Tasks of a worker take turns: whoever was woken has had one when that is over which comes now.
    let _ = spawn_local(std::future::ready(())).await;
    worker.roll.0.borrow_mut().take().map_or_else(Vec::new, |called| called.told)
}

/// What a request has moved by now, which its record has no word of before it moves no more; and whether its caller keeps it.
#[derive(Clone, Copy)]
pub(crate) struct Moves {
    /// Bytes of its body that have come.
    pub(crate) received: u64,
    /// Such as the attempt that runs has got.
    pub(crate) passed: u64,
    /// Bytes of the answer's.
    pub(crate) answered: u64,
    /// Its caller owes bytes of its body.
    pub(crate) owed: bool,
    /// Its caller takes nothing more of the answer.
    pub(crate) unread: bool,
    /// Its caller may send more, of a call that may be answered without.
    pub(crate) open: bool,
}

impl Moves {
    /// Of a request of which nothing moves now.
    pub(crate) fn of(record: &Record) -> Self {
        let (received, answered) = (record.bytes_received, record.bytes_sent);
        Self { received, passed: received, answered, owed: false, unread: false, open: false }
    }
}

/// How far a request has come.
pub(crate) struct SoFar {
    pub(crate) lasts: Duration,
    pub(crate) phase: Phase,
    pub(crate) moves: Moves,
    pub(crate) tried: Vec<Tried>,
    pub(crate) timing: Timing,
}

/// A request that has not ended, as it is told.
pub(crate) fn under_way(place: Place, record: &Record, held: &[Held], so_far: &SoFar) -> v1::Observation {
    let SoFar { lasts, phase, moves, tried, timing } = so_far;
    let record = Record {
        text: record.text.shortened(PATH, TEXT),
        duration: *lasts,
        bytes_received: moves.received,
        bytes_sent: moves.answered,
        ..copied(record)
    };
    let mut observation = told(place, &record, tried, held, timing);
    if let Some(record) = &mut observation.record {
        record.under_way = true;
        (record.owed, record.unread, record.open) = (moves.owed, moves.unread, moves.open);
        phase.as_str().clone_into(&mut record.phase);
    }
    observation
}

/// Whether nothing is known of how it ended: of a request that has ended since the other is told.
pub(super) fn is_news(told: &v1::Observation, kept: &[v1::Observation]) -> bool {
    let key = |told: &v1::Observation| {
        told.record.as_ref().map(|is| (is.side, is.start_unix_ns, is.request_id.clone(), is.peer.clone()))
    };
    !kept.iter().any(|kept| key(kept) == key(told))
}
