//! Who wanted to be removed and was not there. After a store was lost its readers keep for a lease what it had; who is told
//! to end in that time is to be gone at once all the same. Kept in memory, for the first minute.

use std::time::Duration;

use meshwork_api::registry::Departed;
use meshwork_base::Tick;
use meshwork_process::Caller;
use parking_lot::Mutex;

use crate::doc::Place;
use crate::ops::{check_name, identity};

/// Longer than any reader keeps what it does not hear of.
const YOUTH: Duration = Duration::from_mins(1);
/// So many are told.
const MOST: usize = 4096;
/// So many of one identity: nobody fills the places of others.
const MOST_OF_ONE: usize = 256;

/// See the module's text.
pub(crate) struct Departures(Mutex<Since>);

struct Since {
    /// Since when instances can reach the registry with its store.
    began: Option<Tick>,
    who: Vec<Departed>,
}

impl Since {
    fn is_young(&self, now: Tick) -> bool {
        self.began.is_none_or(|began| now.since(began) < YOUTH)
    }

    /// Nobody is told of them for longer.
    fn age(&mut self, now: Tick) {
        if !self.is_young(now) {
            self.who = Vec::new();
        }
    }
}

impl Departures {
    /// Nothing where nobody can reach the registry yet.
    pub(crate) const fn new(began: Option<Tick>) -> Self {
        Self(Mutex::new(Since { began, who: Vec::new() }))
    }

    /// Instances can reach the registry from now on.
    pub(crate) fn begin(&self, now: Tick) {
        self.0.lock().began = Some(now);
    }

    /// Another store is in the place of the one before.
    pub(crate) fn begin_anew(&self, now: Tick) {
        let mut since = self.0.lock();
        *since = Since { began: since.began.map(|_| now), who: Vec::new() };
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.0.lock().began.is_some()
    }

    /// For how long instances have been able to reach the registry with its store.
    pub(crate) fn running(&self, now: Tick) -> Duration {
        self.0.lock().began.map_or(Duration::ZERO, |began| now.since(began))
    }

    /// Somebody wants to be removed who is not there.
    pub(crate) fn note(&self, caller: &Caller, place: &Place, now: Tick) {
        let Place { namespace, node, id } = place.clone();
        let departed = Departed { namespace, node, id, identity: identity(caller) };
        // What could not be registered was not lost either.
        let could_be = check_name("the instance id", &departed.id).is_ok();
        let mut since = self.0.lock();
        since.age(now);
        let of_one = since.who.iter().filter(|who| who.identity == departed.identity).count();
        let has_room = since.who.len() < MOST && of_one < MOST_OF_ONE;
        if since.is_young(now) && could_be && has_room && !since.who.contains(&departed) {
            since.who.push(departed);
        }
    }

    /// All of them, while the registry is young.
    pub(crate) fn all(&self, now: Tick) -> Vec<Departed> {
        let mut since = self.0.lock();
        since.age(now);
        since.who.clone()
    }
}
