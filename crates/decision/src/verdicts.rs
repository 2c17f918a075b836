//! Ejections that count for everybody, because many have seen the same.
//!
//! ```text
//! proxies ──what each calls, and whom it has ejected, again and again──▶ hear
//!                                                                          │ judge: how many of those who call it?
//! all proxies ◀──endpoints that are out for everybody──── sentences ◀──────┘
//! ```
//!
//! *Observers.* Who hands reports in says who an observer is: one name is one voice, however often it speaks. The last
//! report of an observer replaces those before, and counts for [`LEASE`]; whoever wants to be heard says it again.
//!
//! *Sentence.* An endpoint is out for everybody as long as at least `observers` (never fewer than two) have it ejected,
//! and at least `percent` of those who call its service; once it is out, of those who called it when that began, since
//! whoever leaves it out has no opinion of it. So one who lies, alone, ejects nobody, and brings nobody back.
//!
//! *Bounds.* The same as for outlier detection in one proxy: at most `max_ejection_percent` of the endpoints, but one
//! always may be, and never the last. Who is out stays out before others go, then those whom most have ejected.
//!
//! *Return.* Each observer tries it by a request of its own when its own time is over, and stops to say that it is out when
//! that went well, or when no request came to try it. When too few are left who say so, it is in again for everybody; and
//! when nobody says anything any more, because they are gone, after the lease.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Tick;

use crate::cluster::ClusterKey;

/// How long a report counts. Proxies repeat theirs three times as often.
pub const LEASE: Duration = Duration::from_secs(15);

/// When ejections count for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedEjection {
    /// So many observers have it ejected; at least 2.
    pub observers: u32,
    /// So many percent of those who call the service have.
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

/// What one observer sees: the services it calls, each with those of its endpoints that it has ejected.
pub type Sights = BTreeMap<ClusterKey, BTreeSet<Suspect>>;

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

/// Who has said it when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// So many …
    pub observers: u32,
    /// … of so many who call the service.
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
    sentences: BTreeMap<ClusterKey, BTreeMap<Suspect, Sentence>>,
}

impl Verdicts {
    /// An observer has said what it sees; it replaces what it said before.
    pub fn hear(&mut self, observer: &Arc<str>, sights: Sights, now: Tick) {
        self.reports.insert(Arc::clone(observer), Report { until: now.after(LEASE), sights });
    }

    /// Judges about every service of which somebody says something, and says what that changes. A service without rules
    /// has no sentences.
    pub fn judge(&mut self, now: Tick, mut rules: impl FnMut(&ClusterKey) -> Option<Rules>) -> Vec<Turn> {
        self.reports.retain(|_, report| report.until > now);
        let accused = |report: &Report| {
            let services = report.sights.iter().filter(|(_, suspects)| !suspects.is_empty());
            services.map(|(service, _)| service.clone()).collect::<Vec<_>>()
        };
        let mut services: BTreeSet<ClusterKey> = self.reports.values().flat_map(accused).collect();
        services.extend(self.sentences.keys().cloned());
        let mut turns = Vec::new();
        for service in services {
            let before = self.sentences.remove(&service).unwrap_or_default();
            let now =
                rules(&service).map(|rules| self.sentenced(&service, &rules, &before)).unwrap_or_default();
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

    /// Who of a service's endpoints is out for everybody.
    pub fn of(&self, service: &ClusterKey) -> impl Iterator<Item = (&Suspect, &Sentence)> {
        self.sentences.get(service).into_iter().flatten()
    }

    /// Every service that has somebody who is out for everybody.
    pub fn services(&self) -> impl Iterator<Item = &ClusterKey> {
        self.sentences.keys()
    }

    /// When what was heard ends to count, if nobody says anything until then.
    #[must_use]
    pub fn next_end(&self) -> Option<Tick> {
        let speaks = |report: &&Report| report.sights.values().any(|suspects| !suspects.is_empty());
        self.reports.values().filter(speaks).map(|report| report.until).min()
    }

    fn sentenced(
        &self,
        service: &ClusterKey,
        rules: &Rules,
        before: &BTreeMap<Suspect, Sentence>,
    ) -> BTreeMap<Suspect, Sentence> {
        let sights = self.reports.values().filter_map(|report| report.sights.get(service));
        let callers = count(sights.clone().count());
        let mut accused: BTreeMap<&Suspect, u32> = BTreeMap::new();
        for suspect in sights.flatten().filter(|suspect| rules.endpoints.contains(suspect)) {
            *accused.entry(suspect).or_default() += 1;
        }
        let suffices = |(suspect, observers): &(&Suspect, u32)| {
            let witnesses = before.get(suspect).map_or(callers, |began| began.callers.min(callers));
            rules.shared.suffices(*observers, witnesses)
        };
        let mut convicted: Vec<(&Suspect, u32)> = accused.into_iter().filter(suffices).collect();
        convicted.sort_by_key(|(suspect, observers)| (!before.contains_key(suspect), u32::MAX - observers));
        convicted.truncate(rules.bound());
        let sentence = |(suspect, observers): (&Suspect, u32)| {
            let began = before.get(suspect).copied();
            (suspect.clone(), began.unwrap_or(Sentence { observers, callers }))
        };
        let sentenced: BTreeMap<_, _> = convicted.into_iter().map(sentence).collect();
        debug_assert_eq!(crate::invariants::shared_ejection(rules, sentenced.len()), Ok(()));
        sentenced
    }
}

impl SharedEjection {
    /// Whether so many of so many who call the service are enough.
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
