//! A request that a probe found, on its way.

use std::sync::Arc;

use meshwork_decision::{Reason, Reasons};
use meshwork_messages::v1::{self, observation::Match};
use meshwork_telemetry::Record;

use super::{Armed, message};
use crate::downstream::connection::Conn;
use crate::request::tried::Tried;

/// So many roads not taken are told: a gateway may have thousands of routes.
const SKIPPED: usize = 50;
/// Reasons of one request in all.
const REASONS: usize = 500;

/// See the module's text.
pub(crate) struct Sighting {
    found: Option<(Arc<Armed>, Match)>,
    /// Those that want to know how it ends.
    taps: Vec<Arc<Armed>>,
    told: Told,
}

/// The reasons that decisions give, as they are sent.
#[derive(Default)]
pub(crate) struct Told {
    reasons: Vec<v1::Reason>,
    skipped: usize,
    omitted: u32,
}

impl Told {
    /// One step that a phase itself takes.
    pub(crate) fn tell(
        &mut self,
        phase: &str,
        subject: impl Into<String>,
        outcome: &str,
        why: impl Into<String>,
    ) {
        self.skipped += usize::from(outcome == "skipped");
        if self.reasons.len() >= REASONS || (outcome == "skipped" && self.skipped > SKIPPED) {
            self.omitted += 1;
            return;
        }
        self.reasons.push(v1::Reason {
            phase: phase.to_owned(),
            subject: subject.into(),
            outcome: outcome.to_owned(),
            why: why.into(),
        });
    }
}

impl Reasons for Told {
    fn note(&mut self, reason: impl FnOnce() -> Reason) {
        let Reason { phase, subject, outcome, why } = reason();
        self.tell(phase.as_str(), subject, outcome.as_str(), why);
    }

    fn notes<I: IntoIterator<Item = Reason>>(&mut self, reasons: impl FnOnce() -> I) {
        for reason in reasons() {
            self.note(|| reason);
        }
    }
}

impl Sighting {
    pub(super) fn new(found: Option<(Arc<Armed>, Match)>, taps: Vec<Arc<Armed>>) -> Self {
        Self { found, taps, told: Told::default() }
    }

    /// Who takes the reasons, where the probe wants them.
    pub(crate) fn told(&mut self) -> Option<&mut Told> {
        let wanted = self.found.as_ref().is_some_and(|(probe, _)| probe.reasons);
        wanted.then_some(&mut self.told)
    }

    /// What the next proxy of the mesh is told.
    pub(crate) fn mark(&self) -> Option<String> {
        self.found.as_ref().map(|(probe, _)| format!("{:016x}", probe.id))
    }

    /// Which probe has found it.
    pub(crate) fn probe(&self) -> Option<u64> {
        self.found.as_ref().map(|(probe, _)| probe.id)
    }

    /// Adds to what is told of a request that has not ended how it was found, and the reasons so far.
    pub(crate) fn so_far(&self, observation: &mut v1::Observation) {
        let Some((_, how)) = &self.found else { return };
        observation.r#match = (*how).into();
        observation.reasons.clone_from(&self.told.reasons);
        observation.omitted = self.told.omitted;
    }

    /// The request has ended.
    #[cold]
    pub(crate) fn report(self, conn: &Conn, record: &Record, tried: &[Tried]) {
        let observer = &conn.worker.shared.observer;
        let observation = || v1::Observation {
            record: Some(message::record(conn.place, record)),
            attempts: tried.iter().map(message::attempt).collect(),
            ..v1::Observation::default()
        };
        let wanted = |tap: &&Arc<Armed>| tap.tap.as_ref().is_some_and(|outcome| outcome.matches(record));
        for tap in self.taps.iter().filter(wanted) {
            observer.send(tap, observation());
        }
        let Some((probe, how)) = self.found else { return };
        let Told { reasons, omitted, .. } = self.told;
        observer.send(&probe, v1::Observation { r#match: how.into(), reasons, omitted, ..observation() });
    }
}
