//! How far a revision has come: also proxies without a stream count, since they carry traffic as they were told last.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use meshwork_base::{SpiffeId, Tick};

use super::REMEMBERED;

/// Which process speaks under an id, as far as that is known: nobody speaks for another one that has its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Speaker {
    /// From its certificate; none within one process.
    pub identity: Option<SpiffeId>,
    /// Which copy of its name; empty where it does not say.
    pub incarnation: String,
}

impl Speaker {
    /// Whether this may be the one.
    fn may_be(&self, identity: Option<&SpiffeId>, incarnation: &str) -> bool {
        let is_same = self.identity.as_ref().zip(identity).is_none_or(|(one, other)| one == other);
        let is_told = !self.incarnation.is_empty() && !incarnation.is_empty();
        is_same && (!is_told || self.incarnation == incarnation)
    }
}

/// An id, and who speaks under it.
pub(super) type Voice<'a> = (&'a str, Option<&'a SpiffeId>, &'a str);

/// In which proxies a revision is in effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Which revision.
    pub revision: u64,
    /// Whether it was published at all.
    pub published: bool,
    /// Ids of the proxies in which it is in effect.
    pub effective: BTreeSet<String>,
    /// Those that are connected and have not reported it.
    pub behind: BTreeSet<String>,
    /// Those that are not connected, and are not known to be gone.
    pub absent: BTreeSet<String>,
}

impl Reach {
    /// Whether it is in effect wherever it has to be.
    #[must_use]
    pub fn is_everywhere(&self) -> bool {
        self.published && self.behind.is_empty() && self.absent.is_empty()
    }

    /// Looks at who speaks, and has which revision in effect; at who is expected; and at who was heard a moment ago. An id has
    /// the revision once all have it who speak under it, and who is expected there is one of them.
    pub(super) fn look<'a>(
        &mut self,
        voices: &BTreeMap<Voice<'_>, Option<u64>>,
        expected: &Expected,
        away: impl Iterator<Item = &'a String>,
    ) {
        let mut heard: BTreeMap<&str, Vec<(Option<&SpiffeId>, &str)>> = BTreeMap::new();
        for ((id, identity, incarnation), effective) in voices {
            heard.entry(id).or_default().push((*identity, incarnation));
            let which =
                if *effective >= Some(self.revision) { &mut self.effective } else { &mut self.behind };
            which.insert((*id).to_owned());
        }
        let silent = away.filter(|id| !heard.contains_key(id.as_str()));
        self.absent = silent.cloned().collect();
        self.absent.extend(expected.there.iter().filter_map(|(id, who)| {
            let mut heard = heard.get(id.as_str()).into_iter().flatten();
            let is_there = heard.any(|(identity, incarnation)| who.may_be(*identity, incarnation));
            (!is_there).then(|| id.clone())
        }));
        self.behind.retain(|id| !self.absent.contains(id));
        self.effective.retain(|id| !self.absent.contains(id) && !self.behind.contains(id));
    }

    /// How many proxies there are.
    #[must_use]
    pub fn proxies(&self) -> usize {
        self.effective.len() + self.behind.len() + self.absent.len()
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { revision, effective, behind, absent, .. } = self;
        if !self.published {
            return write!(f, "revision {revision} is not published by the control plane yet");
        }
        write!(f, "revision {revision} is in effect on {} of {} proxies", effective.len(), self.proxies())?;
        if !absent.is_empty() {
            write!(f, "; not connected: {}", names(absent))?;
        }
        if !behind.is_empty() {
            write!(f, "; not yet in effect in {}, see their lastError", names(behind))?;
        }
        Ok(())
    }
}

fn names(ids: &BTreeSet<String>) -> String {
    ids.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Who is there by another word than a stream's, and who was.
#[derive(Debug, Default)]
pub(super) struct Expected {
    there: BTreeMap<String, Speaker>,
    left: BTreeMap<String, Tick>,
}

impl Expected {
    pub(super) fn replace(&mut self, there: BTreeMap<String, Speaker>, now: Tick) {
        let before = std::mem::replace(&mut self.there, there);
        self.left.extend(before.into_keys().map(|id| (id, now)));
        let there = &self.there;
        self.left.retain(|id, since| !there.contains_key(id) && now.since(*since) < REMEMBERED);
    }

    /// Whether it was there, and is known to be no more.
    pub(super) fn has_left(&self, id: &str) -> bool {
        self.left.contains_key(id)
    }
}
