//! What outlier detection knows of one address, across workers and updates.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::Tick;

use super::rates::Tally;
use super::{Ejection, Heard, OutlierDetection};
use crate::health_check::Checked;
use crate::invariants;

/// Why an endpoint is out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EjectionCause {
    /// Failures in a row.
    #[default]
    Consecutive5xx = 0,
    /// 502, 503 or 504 in a row.
    ConsecutiveGatewayFailure,
    /// Attempts without a whole response in a row.
    ConsecutiveLocalOriginFailure,
    /// It succeeds less often than the fleet does.
    SuccessRate,
    /// It fails too often.
    FailurePercentage,
    /// The request that tried it failed.
    TrialFailed,
    /// It was out for everybody, and who said so has not been heard of for long.
    ForAll,
}

impl EjectionCause {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Consecutive5xx,
        Self::ConsecutiveGatewayFailure,
        Self::ConsecutiveLocalOriginFailure,
        Self::SuccessRate,
        Self::FailurePercentage,
        Self::TrialFailed,
        Self::ForAll,
    ];

    /// As metrics and logs call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive_5xx",
            Self::ConsecutiveGatewayFailure => "consecutive_gateway_failure",
            Self::ConsecutiveLocalOriginFailure => "consecutive_local_origin_failure",
            Self::SuccessRate => "success_rate",
            Self::FailurePercentage => "failure_percentage",
            Self::TrialFailed => "trial_failed",
            Self::ForAll => "ejected_for_all",
        }
    }
}

/// Rows of failures, as places in [`Standing::rows`].
const ANY: usize = 0;
const GATEWAY: usize = 1;
const LOCAL: usize = 2;

/// See the module's text. All relaxed: each number stands alone, and a decision that misses one failure makes up for it
/// with the next.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    rows: [AtomicU32; 3],
    /// What came in since rates were last looked at: what endpoints say, and what is of local origin where that is told
    /// apart.
    tallies: [AtomicU64; 2],
    /// Ejections, less what good behaviour has taken off.
    ejections: AtomicU32,
    /// Until when nobody tries it, in nanoseconds of the clock's [`Tick`]; 0: it is in.
    until: AtomicU64,
    /// The `until` after which a request tries it now.
    tried: AtomicU64,
    /// From when on good behaviour counts.
    good_since: AtomicU64,
    cause: AtomicU8,
    /// What others than outlier detection here say: [`HEALTHY`], [`UNHEALTHY`], [`FOR_ALL`].
    said: AtomicU8,
}

/// Checks pass. Nothing hangs on it but that it is told.
const HEALTHY: u8 = 1;
/// Checks fail.
const UNHEALTHY: u8 = 2;
/// So many others have ejected it that it is out for everybody.
const FOR_ALL: u8 = 4;

impl Standing {
    /// Whether it was ejected and no trial has gone well since.
    pub(crate) fn is_out(&self) -> bool {
        self.until.load(Ordering::Relaxed) != 0
    }

    /// Whether it is to be passed by: it fails checks, its time is not over, or another request tries it. Who has ejected
    /// it here goes by that, and tries it; who has not, by what others say.
    pub(crate) fn is_passed_by(&self, now: Tick) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        let said = self.said.load(Ordering::Relaxed);
        if until == 0 {
            return said & (UNHEALTHY | FOR_ALL) != 0;
        }
        said & UNHEALTHY != 0 || until > now.as_nanos() || self.tried.load(Ordering::Relaxed) == until
    }

    /// Whether nobody says that it is out: outlier detection here, its checks, or others.
    pub(crate) fn is_in(&self) -> bool {
        !self.is_out() && self.said.load(Ordering::Relaxed) & (UNHEALTHY | FOR_ALL) == 0
    }

    /// Whether it is out for everybody.
    pub(crate) fn ejected_for_all(&self, is_out: bool) {
        if is_out {
            self.said.fetch_or(FOR_ALL, Ordering::Relaxed);
        } else if self.said.load(Ordering::Relaxed) & FOR_ALL != 0 {
            self.said.fetch_and(!FOR_ALL, Ordering::Relaxed);
        }
    }

    /// Whether it is out for everybody by what others say.
    pub(crate) fn is_out_for_all(&self) -> bool {
        self.said.load(Ordering::Relaxed) & FOR_ALL != 0
    }

    /// What others said does not count any more: from now on one request tries it, like one that was ejected here. False: it is
    /// not out for everybody.
    pub(super) fn hand_over(&self, now: Tick) -> bool {
        if !self.is_out_for_all() {
            return false;
        }
        // Who has ejected it here goes by that as before.
        if self.until.load(Ordering::Relaxed) == 0 {
            self.cause.store(EjectionCause::ForAll as u8, Ordering::Relaxed);
            self.until.store(now.as_nanos().max(1), Ordering::Relaxed);
        }
        self.ejected_for_all(false);
        true
    }

    /// It counts again. False: it did before.
    pub(super) fn take_back(&self) -> bool {
        let has_counted = self.said.fetch_or(FOR_ALL, Ordering::Relaxed) & FOR_ALL != 0;
        if self.cause() == Some(EjectionCause::ForAll) {
            self.until.store(0, Ordering::Relaxed);
        }
        !has_counted
    }

    /// What active checks say.
    pub(crate) fn checked(&self) -> Checked {
        match self.said.load(Ordering::Relaxed) {
            said if said & UNHEALTHY != 0 => Checked::Unhealthy,
            said if said & HEALTHY != 0 => Checked::Healthy,
            _ => Checked::Unknown,
        }
    }

    pub(crate) fn check(&self, says: Checked) {
        let now = match says {
            Checked::Unknown => 0,
            Checked::Healthy => HEALTHY,
            Checked::Unhealthy => UNHEALTHY,
        };
        let with = |said: u8| Some(said & !(HEALTHY | UNHEALTHY) | now);
        // The closure always gives a value, so the update cannot fail.
        let _ = self.said.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with);
    }

    /// If it is ejected, its trial is due now.
    pub(crate) fn bring_forward(&self, now: Tick) {
        let earlier = |until: u64| (until > now.as_nanos()).then_some(now.as_nanos().max(1));
        // Nothing to bring forward is no failure.
        let _ = self.until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, earlier);
    }

    /// Until when nobody tries it; [`Tick::ZERO`] when it is in.
    pub(crate) fn until(&self) -> Tick {
        Tick::from_nanos(self.until.load(Ordering::Relaxed))
    }

    pub(crate) fn ejections(&self) -> u32 {
        self.ejections.load(Ordering::Relaxed)
    }

    /// Why it is out, if it is.
    pub(crate) fn cause(&self) -> Option<EjectionCause> {
        let cause = usize::from(self.cause.load(Ordering::Relaxed));
        self.is_out().then(|| EjectionCause::ALL.get(cause).copied().unwrap_or_default())
    }

    /// Failures in a row, of any kind that counts as a 5xx.
    pub(crate) fn failures_in_a_row(&self) -> u32 {
        self.rows[ANY].load(Ordering::Relaxed)
    }

    /// What was held against it says nothing any more: the instance behind the address is another one.
    pub(crate) fn forget(&self) {
        self.begin_anew();
        self.ejections.store(0, Ordering::Relaxed);
        self.until.store(0, Ordering::Relaxed);
    }

    /// What must hold whenever nobody is at it: of workers that are there at one moment one may see what another is about to
    /// change.
    pub(crate) fn holds(&self) -> Result<(), String> {
        let [any, gateway] = [ANY, GATEWAY].map(|row| self.rows[row].load(Ordering::Relaxed));
        invariants::rows(any, gateway)
    }

    fn begin_anew(&self) {
        for row in &self.rows {
            row.store(0, Ordering::Relaxed);
        }
        for tally in &self.tallies {
            tally.store(0, Ordering::Relaxed);
        }
    }

    /// Counts what was heard for the rates.
    pub(super) fn count(&self, config: &OutlierDetection, heard: Heard) {
        let [said, local] = &self.tallies;
        let split = config.split_external_local_origin_errors;
        if !split || heard != Heard::Nothing {
            said.fetch_add(Tally::one(heard != Heard::Well), Ordering::Relaxed);
        }
        if split {
            local.fetch_add(Tally::one(heard == Heard::Nothing), Ordering::Relaxed);
        }
    }

    /// What came in since the last time, by origin.
    pub(super) fn take_tallies(&self) -> [Tally; 2] {
        [&self.tallies[0], &self.tallies[1]].map(|tally| Tally::of(tally.swap(0, Ordering::Relaxed)))
    }

    /// Brings the rows up to date; the longest of those that are long enough says why it is to be ejected.
    pub(super) fn row(&self, config: &OutlierDetection, heard: Heard) -> Option<EjectionCause> {
        let split = config.split_external_local_origin_errors;
        if heard == Heard::Nothing && split {
            let row = self.grow(LOCAL);
            return reached(row, config.consecutive_local_origin_failure)
                .then_some(EjectionCause::ConsecutiveLocalOriginFailure);
        }
        self.end(LOCAL);
        if heard == Heard::Well {
            self.end(ANY);
            self.end(GATEWAY);
            return None;
        }
        let any = self.grow(ANY);
        let gateway = if heard == Heard::ServerError {
            self.end(GATEWAY);
            0
        } else {
            self.grow(GATEWAY)
        };
        if reached(gateway, config.consecutive_gateway_failure) {
            Some(EjectionCause::ConsecutiveGatewayFailure)
        } else {
            reached(any, config.consecutive_5xx).then_some(EjectionCause::Consecutive5xx)
        }
    }

    fn grow(&self, row: usize) -> u32 {
        self.rows[row].fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// Writes nothing where there is nothing to end: a healthy endpoint costs no shared write.
    fn end(&self, row: usize) {
        if self.rows[row].load(Ordering::Relaxed) != 0 {
            self.rows[row].store(0, Ordering::Relaxed);
        }
    }

    /// An ejection begins. What led to it is forgotten when it ends.
    pub(super) fn goes_out(&self, ejection: &Ejection) {
        self.ejections.store(ejection.count, Ordering::Relaxed);
        self.cause.store(ejection.cause as u8, Ordering::Relaxed);
        self.until.store(end_of(ejection), Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn eject_until(&self, nanos: u64) {
        self.until.store(nanos, Ordering::Relaxed);
    }

    /// Claims its trial, when one is due: the moment after which it is.
    pub(super) fn claim(&self, now: Tick) -> Claim {
        let until = self.until.load(Ordering::Relaxed);
        let fails_checks = self.said.load(Ordering::Relaxed) & UNHEALTHY != 0;
        if until == 0 || until > now.as_nanos() || fails_checks {
            return Claim::None;
        }
        let tried = self.tried.load(Ordering::Relaxed);
        let claimed = tried != until
            && self.tried.compare_exchange(tried, until, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if claimed { Claim::Mine(until) } else { Claim::Another }
    }

    /// A trial has ended without a word on the endpoint.
    pub(super) fn give_back(&self, until: u64) {
        // Whatever has happened to the endpoint since: only this trial ends.
        let _ = self.tried.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The trial went well. False when the endpoint has been taken in by somebody else meanwhile.
    pub(super) fn comes_in(&self, until: u64, now: Tick) -> bool {
        // What has come in since then is not this trial's to forget.
        if self.until.load(Ordering::Relaxed) != until {
            return false;
        }
        self.begin_anew();
        self.good_since.store(now.as_nanos(), Ordering::Relaxed);
        self.until.compare_exchange(until, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// The trial failed. False when the endpoint has been taken in by somebody else meanwhile.
    pub(super) fn stays_out(&self, until: u64, ejection: &Ejection) -> bool {
        let next = end_of(ejection);
        let stays = self.until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if stays {
            self.ejections.store(ejection.count, Ordering::Relaxed);
            self.cause.store(ejection.cause as u8, Ordering::Relaxed);
        }
        stays
    }

    /// Takes one ejection off the count for each such time that it was in.
    pub(super) fn forgive_one(&self, each: Duration, now: Tick) {
        let since = self.good_since.load(Ordering::Relaxed);
        let next = Tick::from_nanos(since).after(each);
        // Moving the mark forward, but not beyond now, counts time once.
        let moved = next <= now
            && self
                .good_since
                .compare_exchange(since, next.as_nanos(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if moved {
            let less = |count: u32| Some(count.saturating_sub(1));
            // The closure always gives a value, so the update cannot fail.
            let _ = self.ejections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }
}

/// Whether a trial can be had.
pub(super) enum Claim {
    /// None is due.
    None,
    /// It is the caller's; the moment after which it was due.
    Mine(u64),
    /// Another request has it.
    Another,
}

/// 0 says that an endpoint is in.
fn end_of(ejection: &Ejection) -> u64 {
    ejection.until.as_nanos().max(1)
}

fn reached(row: u32, bound: u32) -> bool {
    bound != 0 && row >= bound
}
