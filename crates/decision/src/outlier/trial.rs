//! The one request that an ejected endpoint's return hangs on.

use std::sync::Arc;

use meshwork_base::Tick;

use super::standing::Claim;
use super::{AttemptOutcome, EjectionCause, OutlierDetection, Shift};
use crate::endpoint::Endpoint;
use crate::load::Answer;
use crate::reasons::Outcome;

/// An endpoint that takes an attempt.
#[derive(Debug)]
pub struct Picked {
    /// Which.
    pub endpoint: Arc<Endpoint>,
    /// The attempt tries an ejected endpoint.
    pub trial: Option<Trial>,
}

/// A trial under way. Dropping it says that it ended without a word on the endpoint: the next request tries it.
#[derive(Debug)]
pub struct Trial {
    endpoint: Arc<Endpoint>,
    /// The moment after which it was due: a later ejection is not this trial's.
    until: u64,
    /// Nobody else tries the endpoint meanwhile.
    alone: bool,
}

impl Trial {
    /// The trial of an endpoint that was picked, when one is due.
    ///
    /// # Errors
    /// Another request has it.
    pub(crate) fn claim(endpoint: &Arc<Endpoint>, now: Tick) -> Result<Option<Self>, Taken> {
        match endpoint.stats.standing.claim(now) {
            Claim::None => Ok(None),
            Claim::Mine(until) => Ok(Some(Self { endpoint: Arc::clone(endpoint), until, alone: true })),
            Claim::Another => Err(Taken),
        }
    }

    /// The next request tries the endpoint as well: nobody knows when there is a word on it from this one. It counts when it comes,
    /// unless somebody else was quicker.
    pub fn is_had_by_others_too(&mut self) {
        if std::mem::take(&mut self.alone) {
            self.endpoint.stats.standing.give_back(self.until);
        }
    }

    /// The trial has ended; what that changes is returned. Without a policy nobody keeps the endpoint out.
    pub(crate) fn ended(
        self,
        config: Option<&OutlierDetection>,
        answer: &Answer,
        now: Tick,
    ) -> Option<Shift> {
        let standing = &self.endpoint.stats.standing;
        let ejection = match config {
            Some(config) if answer.outcome == AttemptOutcome::Failure => {
                Some(config.ejection(standing, EjectionCause::TrialFailed, now))
            }
            _ => None,
        };
        let changes = match &ejection {
            Some(ejection) => standing.stays_out(self.until, ejection),
            None => standing.comes_in(self.until, now),
        };
        changes.then(|| Shift { endpoint: Arc::clone(&self.endpoint), ejection })
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.is_had_by_others_too();
    }
}

/// What an explanation says of an endpoint that is out, and what comes of it.
pub(crate) fn explained(
    endpoint: &Arc<Endpoint>,
    picked: Option<&Arc<Endpoint>>,
    now: Tick,
) -> Option<(Outcome, String)> {
    let standing = &endpoint.stats.standing;
    let Some(cause) = standing.cause() else { return for_all_explained(endpoint, picked) };
    let ejected = match cause {
        EjectionCause::ForAll => {
            "it was out for everybody when the control plane was last heard of".to_owned()
        }
        _ => format!("outlier detection has ejected it ({}, count {})", cause.as_str(), standing.ejections()),
    };
    let until = standing.until();
    let is_picked = picked.is_some_and(|picked| Arc::ptr_eq(picked, endpoint));
    Some(if standing.is_passed_by(now) {
        let till = match until > now {
            true => format!("tried again in {:.1} s", until.since(now).as_secs_f64()),
            false => "another request tries it".to_owned(),
        };
        let why = format!("{ejected}: {till}");
        match is_picked {
            true => (Outcome::Chosen, format!("picked, since no other is there; {why}")),
            false => (Outcome::Skipped, why),
        }
    } else {
        match is_picked {
            true => (Outcome::Chosen, format!("picked for the one request that tries it: {ejected}")),
            false => (Outcome::Noted, format!("a candidate for its trial: {ejected}")),
        }
    })
}

/// What an explanation says of an endpoint that is out for everybody, and that this proxy has not ejected itself.
fn for_all_explained(endpoint: &Arc<Endpoint>, picked: Option<&Arc<Endpoint>>) -> Option<(Outcome, String)> {
    if !endpoint.stats.is_out_for_all() {
        return None;
    }
    let why = format!("{} of its callers have ejected it: it is out for everybody", endpoint.ejected_by);
    Some(match picked.is_some_and(|picked| Arc::ptr_eq(picked, endpoint)) {
        true => (Outcome::Chosen, format!("picked, since no other is there; {why}")),
        false => (Outcome::Skipped, why),
    })
}

/// Another request has the trial.
#[derive(Debug)]
pub(crate) struct Taken;
