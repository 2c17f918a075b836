//! Looking at live requests for somebody who asks: probes come from the control plane, a request that one of them finds
//! is decided by the same functions with their reasons told, and what became of it is sent back.
//!
//! ```text
//! control plane ──Probes──▶ Observer ──look──▶ Sighting (in the request's Journey) ──report──▶ Observation
//! ```
//!
//! While nothing is armed a request pays one relaxed load. A request that was found is followed: to the next proxy by a
//! header ([`MARK`]) that this one takes away again, and through the application beside us by its trace or request id.

mod filter;
pub(crate) mod message;
mod outcome;
mod sighting;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use meshwork_base::{SpiffeId, Tick};
use meshwork_http1::RequestHead;
use meshwork_messages::v1::{self, observation::Match};
use meshwork_telemetry::{Record, TraceId};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::downstream::connection::Conn;
use crate::mesh::Place;
use crate::recorder::Traces;
use crate::related::{self, Pace};
use crate::request::Seen;
use filter::Filter;
use outcome::Outcome;
pub(crate) use sighting::{Sighting, Told};

/// Says to the next proxy in the mesh which probe has found a request.
pub(crate) const MARK: &str = "x-meshwork-probe";
/// Probes that are armed at once; more are left out.
const PROBES: usize = 8;
/// Traces that a probe follows through an application, the youngest.
const FOLLOWED: usize = 64;
/// Requests that follow from one that the filter found, at most.
const PER_REQUEST: u32 = 64;
/// Observations that wait for the control plane.
const WAITING: usize = 64;

/// What workers look with; part of what they share.
pub struct Observer {
    armed: AtomicBool,
    probes: ArcSwap<Vec<Arc<Armed>>>,
    /// Questions that are asked as long as they stand, and answered once.
    asked: Mutex<Vec<u64>>,
    /// Those whose requests are all kept.
    pub(crate) traces: Traces,
    pace: Pace,
    found: mpsc::Sender<v1::Observation>,
    receiver: Mutex<Option<mpsc::Receiver<v1::Observation>>>,
}

impl Default for Observer {
    fn default() -> Self {
        let (found, receiver) = mpsc::channel(WAITING);
        Self {
            armed: AtomicBool::new(false),
            probes: ArcSwap::default(),
            asked: Mutex::default(),
            traces: Traces::default(),
            pace: Pace::default(),
            found,
            receiver: Mutex::new(Some(receiver)),
        }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").field("armed", &self.armed).finish_non_exhaustive()
    }
}

/// A probe that looks.
pub(crate) struct Armed {
    id: u64,
    filter: Filter,
    reasons: bool,
    expires: Tick,
    /// Of a tap: what must hold when a request has ended.
    tap: Option<Outcome>,
    /// What was found and not sent since the last one that was.
    lost: AtomicU64,
    /// Requests that the filter may still find.
    left: AtomicU32,
    /// Requests that may still follow from those.
    following: AtomicU32,
    followed: Mutex<VecDeque<Followed>>,
}

/// By what a request is recognised when an application calls on its behalf.
#[derive(PartialEq, Eq)]
enum Followed {
    Trace(TraceId),
    Request(Box<[u8]>),
}

impl Armed {
    fn new(probe: v1::Probe, now: Tick) -> Self {
        Self {
            id: probe.id,
            filter: Filter::new(probe.filter.unwrap_or_default()),
            reasons: probe.reasons,
            tap: probe.tap.map(Outcome::new),
            lost: AtomicU64::new(0),
            expires: now.after(Duration::from_millis(probe.lasts_ms.into())),
            left: AtomicU32::new(probe.limit),
            following: AtomicU32::new(probe.limit.saturating_mul(PER_REQUEST)),
            followed: Mutex::default(),
        }
    }

    fn looks(&self, now: Tick) -> bool {
        now < self.expires
    }

    fn follow(&self, record: &Record) {
        let mut followed = self.followed.lock();
        let mut add = |what| {
            if !followed.contains(&what) {
                if followed.len() >= FOLLOWED {
                    followed.pop_front();
                }
                followed.push_back(what);
            }
        };
        if let Some(trace) = record.trace_id {
            add(Followed::Trace(trace));
        }
        if !record.text.request_id().is_empty() {
            add(Followed::Request(record.text.request_id().into()));
        }
    }

    fn follows(&self, record: &Record) -> bool {
        self.followed.lock().iter().any(|followed| match followed {
            Followed::Trace(trace) => record.trace_id == Some(*trace),
            Followed::Request(id) => **id == *record.text.request_id(),
        })
    }
}

/// Whether it is answered once, instead of looking at what comes.
fn is_question(probe: &v1::Probe) -> bool {
    probe.recall.is_some() || probe.stats || probe.standings
}

/// Takes one of what is left.
fn take(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

impl Observer {
    /// Arms these probes and disarms all others. One that is armed already goes on as it is. Gives the ids of those
    /// that are armed now.
    pub(crate) fn arm(&self, mut probes: v1::Probes, now: Tick) -> Vec<u64> {
        probes.probes.retain(|probe| !is_question(probe));
        let before = self.probes.load();
        let arm = |probe: v1::Probe| match before.iter().find(|armed| armed.id == probe.id) {
            Some(armed) => Arc::clone(armed),
            None => Arc::new(Armed::new(probe, now)),
        };
        let armed: Vec<_> = probes.probes.into_iter().take(PROBES).map(arm).collect();
        self.replace(armed, now)
    }

    /// The questions that are answered once, and were not asked before.
    pub(crate) fn questions(&self, probes: &v1::Probes) -> Vec<v1::Probe> {
        let mut asked = self.asked.lock();
        let questions = probes.probes.iter().filter(|probe| is_question(probe));
        let standing: Vec<u64> = questions.clone().map(|probe| probe.id).collect();
        let new = questions.filter(|probe| !asked.contains(&probe.id)).cloned().collect();
        *asked = standing;
        new
    }

    /// Says what was lost to those to whom nothing else was said since.
    pub(crate) fn tell_lost(&self) {
        for probe in self.probes.load().iter().filter(|probe| probe.lost.load(Ordering::Relaxed) > 0) {
            let lost = probe.lost.swap(0, Ordering::Relaxed);
            let told = v1::Observation { probe: probe.id, dropped: lost, ..v1::Observation::default() };
            if self.found.try_send(told).is_err() {
                probe.lost.fetch_add(lost, Ordering::Relaxed);
            }
        }
    }

    /// Disarms what has expired; `None` when nothing has.
    pub(crate) fn tidy(&self, now: Tick) -> Option<Vec<u64>> {
        let armed = self.probes.load();
        let expired = armed.iter().any(|probe| !probe.looks(now));
        expired.then(|| self.replace(armed.to_vec(), now))
    }

    fn replace(&self, mut armed: Vec<Arc<Armed>>, now: Tick) -> Vec<u64> {
        armed.retain(|probe| probe.looks(now));
        let ids = armed.iter().map(|probe| probe.id).collect();
        let any = !armed.is_empty();
        self.probes.store(Arc::new(armed));
        self.armed.store(any, Ordering::Relaxed);
        ids
    }

    /// What probes have found; it is given once.
    pub(crate) fn found(&self) -> Option<mpsc::Receiver<v1::Observation>> {
        self.receiver.lock().take()
    }

    /// Whether requests must be looked at.
    #[inline]
    pub(crate) fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Relaxed)
    }

    /// Looks at a request, and takes the mark of the proxy before away.
    #[cold]
    pub(crate) fn look(&self, conn: &Conn, head: &mut RequestHead, record: &Record) -> Option<Box<Sighting>> {
        let mark = head.fields.get(MARK).and_then(|mark| std::str::from_utf8(mark).ok()).map(str::to_owned);
        if mark.is_some() {
            head.fields.remove(MARK);
        }
        // Only proxies of the mesh are believed.
        let inbound = matches!(conn.place, Place::Inbound(_));
        let mark = mark.filter(|_| inbound && conn.caller.is_some());
        let mark = mark.and_then(|mark| u64::from_str_radix(&mark, 16).ok());
        let outbound = matches!(conn.place, Place::Outbound(_));
        let own = conn.worker.shared.mesh.identity.as_deref().map(meshwork_identity::Identity::id);
        let from: Option<&SpiffeId> = if outbound { own.as_ref() } else { conn.peer_id() };
        let now = conn.worker.now();
        let seen = Seen::new(conn, head);
        let probes = self.probes.load();
        let looking = || probes.iter().filter(|probe| probe.looks(now));
        let taps = looking().filter(|probe| probe.tap.is_some() && probe.filter.matches(&seen, from));
        let taps: Vec<Arc<Armed>> = taps.cloned().collect();
        let found = looking().filter(|probe| probe.tap.is_none()).find_map(|probe| {
            let how = if mark == Some(probe.id) {
                Match::Mark
            } else if outbound && probe.follows(record) {
                Match::Trace
            } else if probe.filter.matches(&seen, from) {
                Match::Filter
            } else {
                return None;
            };
            let left = if how == Match::Filter { &probe.left } else { &probe.following };
            take(left).then(|| (Arc::clone(probe), how))
        });
        if inbound && let Some((probe, _)) = &found {
            probe.follow(record);
        }
        (found.is_some() || !taps.is_empty()).then(|| Box::new(Sighting::new(found, taps)))
    }

    /// A request was failed or slow: the others of its trace are looked up, where these are not too many.
    pub(crate) fn relate(&self, record: &Record, now: Tick) {
        if let Some(follow) = related::of(record, &self.pace, now) {
            // When too much waits already, another one's turn comes.
            let _ = self.found.try_send(follow);
        }
    }

    /// Sends what became of a request. When too much waits already, the next one says what was lost.
    fn send(&self, probe: &Armed, mut observation: v1::Observation) {
        observation.probe = probe.id;
        observation.dropped = probe.lost.swap(0, Ordering::Relaxed);
        let lost = observation.dropped + 1;
        if self.found.try_send(observation).is_err() {
            probe.lost.fetch_add(lost, Ordering::Relaxed);
        }
    }
}
