//! How far a revision has come: also proxies without a stream count, since they carry traffic as they were told last.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use meshwork_base::Tick;

use super::REMEMBERED;

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
    there: BTreeSet<String>,
    left: BTreeMap<String, Tick>,
}

impl Expected {
    pub(super) fn replace(&mut self, there: BTreeSet<String>, now: Tick) {
        let before = std::mem::replace(&mut self.there, there);
        self.left.extend(before.into_iter().map(|id| (id, now)));
        let there = &self.there;
        self.left.retain(|id, since| !there.contains(id) && now.since(*since) < REMEMBERED);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &String> {
        self.there.iter()
    }

    /// Whether it was there, and is known to be no more.
    pub(super) fn has_left(&self, id: &str) -> bool {
        self.left.contains_key(id)
    }
}
