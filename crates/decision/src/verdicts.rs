//! Ejections that count for everybody, because many have seen the same.
//!
//! ```text
//! proxies ──whom each has called, and whom it has ejected, again and again──▶ hear
//!                                                                              │ judge: how many of those who call it?
//! all proxies ◀────endpoints that are out for everybody────── sentences ◀──────┘
//! ```
//!
//! *Observers.* Who hands reports in says who an observer is: one name is one voice, however often it speaks. The last
//! report of an observer replaces those before, and counts for [`LEASE`]; whoever wants to be heard says it again.
//!
//! *Witnesses.* Whoever has called an endpoint of late has an opinion of it, and nobody else has: with zones, priorities or
//! random subsets a proxy calls a part of a service's endpoints, and of the others it knows nothing.
//!
//! *Sentence.* An endpoint is out for everybody as long as at least `observers` (never fewer than two) have it ejected,
//! and at least `percent` of its witnesses: the most that there have been at one time since that began, since whoever
//! leaves it out has no opinion of it any more, and some are heard later than others. So one who lies, alone, ejects
//! nobody, and brings nobody back.
//!
//! *Beginning.* Of those who are heard first, everybody may have an endpoint ejected with which most others are content.
//! So from the first word on, also after nobody was heard of for a lease, it is listened for [`SETTLING`], and nobody is
//! out. A control plane that was restarted is in that place.
//!
//! *Bounds.* The same as for outlier detection in one proxy: at most `max_ejection_percent` of the endpoints, but one
//! always may be, and never the last. Who is out stays out before others go, then those whom most have ejected.
//!
//! *Return.* Each observer tries it by a request of its own when its own time is over, and stops to say that it is out when
//! that went well, or when no request came to try it. When too few are left who say so, it is in again for everybody; and
//! when nobody says anything any more, because they are gone, after the lease.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Tick;

use crate::cluster::ClusterKey;
use crate::endpoint::Endpoint;

/// How long a report counts. Proxies repeat theirs three times as often.
pub const LEASE: Duration = Duration::from_secs(15);

/// How long it is listened before anybody is out: everybody has said everything twice, though the first time was lost.
pub const SETTLING: Duration = Duration::from_secs(10);

/// When ejections count for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedEjection {
    /// So many observers have it ejected; at least 2.
    pub observers: u32,
    /// So many percent of those who have called it of late have.
    pub percent: u32,
}

/// An endpoint, as all proxies know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Suspect {
    /// Where the application listens.
    pub address: SocketAddr,
    /// The instance's id; may be empty.
    pub instance: Arc<str>,
}

impl Suspect {
    /// That of its [`Endpoint`].
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        Endpoint::fingerprint(&self.instance, self.address)
    }
}

/// What one observer sees of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sight {
    /// Endpoints that it has ejected.
    pub ejected: BTreeSet<Suspect>,
    /// The fingerprints of those that it has called of late.
    pub called: BTreeSet<u64>,
}

impl Sight {
    /// Whether it has an opinion of an endpoint, which has this fingerprint.
    fn knows(&self, suspect: &Suspect, fingerprint: u64) -> bool {
        self.ejected.contains(suspect) || self.called.contains(&fingerprint)
    }
}

/// What one observer sees, by service.
pub type Sights = BTreeMap<ClusterKey, Sight>;

/// By what is judged about one service.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How many must say so.
    pub shared: SharedEjection,
    /// How many percent of the endpoints may be out at once.
    pub max_ejection_percent: u32,
    /// All that may be called.
    pub endpoints: BTreeSet<Suspect>,
}

/// Who has said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// So many when it began …
    pub observers: u32,
    /// … of so many who had called it; the most that there have been since.
    pub callers: u32,
}

/// An endpoint that is out for everybody from now on, or no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Of which service.
    pub service: ClusterKey,
    /// Which endpoint.
    pub suspect: Suspect,
    /// Absent: it is in again.
    pub sentence: Option<Sentence>,
}

#[derive(Debug)]
struct Report {
    until: Tick,
    sights: Sights,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Verdicts {
    reports: BTreeMap<Arc<str>, Report>,
    /// When somebody was heard last.
    heard: Option<Tick>,
    /// Until when it is only listened; set by a first word.
    settled: Tick,
    sentences: BTreeMap<ClusterKey, BTreeMap<Suspect, Sentence>>,
}

impl Verdicts {
    /// An observer has said what it sees; it replaces what it said before.
    pub fn hear(&mut self, observer: &Arc<str>, sights: Sights, now: Tick) {
        if self.heard.is_none_or(|last| now.since(last) >= LEASE) {
            self.settled = now.after(SETTLING);
        }
        self.heard = Some(now);
        self.reports.insert(Arc::clone(observer), Report { until: now.after(LEASE), sights });
    }

    /// Judges about every service of which enough say something, and says what that changes. A service without rules has no
    /// sentences; rules are not asked for where nobody could be out, whatever they are.
    pub fn judge<R: Borrow<Rules>>(
        &mut self,
        now: Tick,
        mut rules: impl FnMut(&ClusterKey) -> Option<R>,
    ) -> Vec<Turn> {
        self.reports.retain(|_, report| report.until > now);
        let mut services: BTreeSet<ClusterKey> = self.sentences.keys().cloned().collect();
        if self.settled <= now {
            services.extend(self.accused());
        }
        let mut turns = Vec::new();
        for service in services {
            let before = self.sentences.remove(&service).unwrap_or_default();
            let now = rules(&service)
                .map(|rules| self.sentenced(&service, rules.borrow(), &before))
                .unwrap_or_default();
            let turn = |suspect: &Suspect, sentence| Turn {
                service: service.clone(),
                suspect: suspect.clone(),
                sentence,
            };
            let over = before.keys().filter(|suspect| !now.contains_key(suspect));
            turns.extend(over.map(|suspect| turn(suspect, None)));
            let new = now.iter().filter(|(suspect, _)| !before.contains_key(suspect));
            turns.extend(new.map(|(suspect, sentence)| turn(suspect, Some(*sentence))));
            if !now.is_empty() {
                self.sentences.insert(service, now);
            }
        }
        turns
    }

    /// Services of which two have ejected the same endpoint.
    fn accused(&self) -> Vec<ClusterKey> {
        let (mut once, mut twice) = (BTreeSet::new(), BTreeSet::new());
        for (service, sight) in self.reports.values().flat_map(|report| &report.sights) {
            if sight.ejected.iter().any(|suspect| !once.insert((service, suspect))) {
                twice.insert(service);
            }
        }
        twice.into_iter().cloned().collect()
    }

    /// Who of a service's endpoints is out for everybody.
    pub fn of(&self, service: &ClusterKey) -> impl Iterator<Item = (&Suspect, &Sentence)> {
        self.sentences.get(service).into_iter().flatten()
    }

    /// Every service that has somebody who is out for everybody.
    pub fn services(&self) -> impl Iterator<Item = &ClusterKey> {
        self.sentences.keys()
    }

    /// When there is something to judge, if nobody says anything until then: what was heard ends to count, or it has been
    /// listened for long enough.
    #[must_use]
    pub fn next_change(&self, now: Tick) -> Option<Tick> {
        let speaks = |report: &&Report| report.sights.values().any(|sight| !sight.ejected.is_empty());
        let ends = self.reports.values().filter(speaks).map(|report| report.until);
        let end = ends.min()?;
        Some(if self.settled > now { self.settled.min(end) } else { end })
    }

    fn sentenced(
        &self,
        service: &ClusterKey,
        rules: &Rules,
        before: &BTreeMap<Suspect, Sentence>,
    ) -> BTreeMap<Suspect, Sentence> {
        let sights: Vec<&Sight> =
            self.reports.values().filter_map(|report| report.sights.get(service)).collect();
        let mut accused: BTreeMap<&Suspect, u32> = BTreeMap::new();
        let ejected = sights.iter().flat_map(|sight| &sight.ejected);
        for suspect in ejected.filter(|suspect| rules.endpoints.contains(suspect)) {
            *accused.entry(suspect).or_default() += 1;
        }
        let convict = |(suspect, observers): (&Suspect, u32)| {
            let began = before.get(suspect);
            let fingerprint = suspect.fingerprint();
            let witnesses = count(sights.iter().filter(|sight| sight.knows(suspect, fingerprint)).count());
            let callers = began.map_or(witnesses, |began| began.callers.max(witnesses));
            let sentence = Sentence { observers: began.map_or(observers, |began| began.observers), callers };
            rules.shared.suffices(observers, callers).then(|| (suspect.clone(), observers, sentence))
        };
        let mut convicted: Vec<(Suspect, u32, Sentence)> = accused.into_iter().filter_map(convict).collect();
        convicted
            .sort_by_key(|(suspect, observers, _)| (!before.contains_key(suspect), u32::MAX - observers));
        convicted.truncate(rules.bound());
        let sentenced: BTreeMap<_, _> =
            convicted.into_iter().map(|(suspect, _, sentence)| (suspect, sentence)).collect();
        debug_assert_eq!(crate::invariants::shared_ejection(rules, sentenced.len()), Ok(()));
        sentenced
    }
}

impl SharedEjection {
    /// Whether so many of so many who have called it are enough.
    #[must_use]
    pub fn suffices(&self, observers: u32, callers: u32) -> bool {
        observers >= self.observers.max(2)
            && u64::from(observers) * 100 >= u64::from(self.percent) * u64::from(callers)
    }
}

impl Rules {
    /// How many endpoints may be out.
    #[must_use]
    pub fn bound(&self) -> usize {
        let total = self.endpoints.len();
        let share = self.max_ejection_percent as usize * total / 100;
        share.max(1).min(total.saturating_sub(1))
    }
}

fn count(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
