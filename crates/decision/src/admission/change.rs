//! When a service's calls begin to be held back, and when that is over, each with its cause.

use std::time::Duration;

use meshwork_base::Tick;

use super::{AdmissionControl, AdmissionView};
use crate::episode::{Episode, News};

/// Whether calls are held back, for log and metric. At the border of the threshold calls are held back and again not; they are
/// said to be until none was for a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AdmissionState {
    /// All calls go through.
    #[default]
    Admitting,
    /// A part of them is refused, or was a moment ago.
    HoldingBack,
}

impl AdmissionState {
    /// As metrics and logs call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admitting => "admitting",
            Self::HoldingBack => "holding_back",
        }
    }
}

/// Why that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AdmissionCause {
    /// Too few calls succeed.
    SuccessRate,
    /// Enough succeed again.
    SuccessRateReached,
    /// Fewer calls come than the policy says, or those that failed are forgotten.
    FewCalls,
    /// The policy, as it is now, refuses nobody.
    Policy,
}

impl AdmissionCause {
    /// As metrics and logs call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SuccessRate => "success_rate",
            Self::SuccessRateReached => "success_rate_reached",
            Self::FewCalls => "few_calls",
            Self::Policy => "policy",
        }
    }
}

/// Calls begin to be held back, or that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionChange {
    /// What begins.
    pub state: AdmissionState,
    /// Why.
    pub cause: AdmissionCause,
    /// How it stands at this moment.
    pub view: AdmissionView,
    /// How long calls were held back, where that is over, and how many were.
    pub held_back: Option<(Duration, u64)>,
}

/// Changes so far.
#[derive(Debug, Default)]
pub(super) struct Changes {
    episode: Episode,
    cause: Option<AdmissionCause>,
    /// Calls refused before the episode began.
    refused_before: u64,
    news: News<AdmissionChange>,
}

impl Changes {
    /// Takes how it stands at this moment; true where there is something to tell.
    pub(super) fn look(&mut self, policy: &AdmissionControl, view: AdmissionView, now: Tick) -> bool {
        self.turn(policy, view, view.refused, now)
    }

    /// The same, where a call is refused at this moment: the view has it, and it is of what begins with it.
    pub(super) fn refuses(&mut self, policy: &AdmissionControl, view: AdmissionView, now: Tick) -> bool {
        self.turn(policy, view, view.refused.saturating_sub(1), now)
    }

    /// `before`: calls refused before this moment.
    fn turn(&mut self, policy: &AdmissionControl, view: AdmissionView, before: u64, now: Tick) -> bool {
        let turn = self.episode.look(view.holds_back, pause(policy), now);
        if let Some(lasted) = turn.ended {
            let held_back = (lasted, before.saturating_sub(self.refused_before));
            self.tell(AdmissionState::Admitting, over(policy, &view), view, Some(held_back));
        }
        if turn.begins {
            self.refused_before = before;
            self.tell(AdmissionState::HoldingBack, AdmissionCause::SuccessRate, view, None);
        }
        turn.ended.is_some() || turn.begins
    }

    /// A call is refused at this moment. False: it is the first for a while, and a look is to tell of it.
    pub(super) fn goes_on(&mut self, policy: &AdmissionControl, now: Tick) -> bool {
        let lasts = self.episode.lasts(pause(policy), now);
        if lasts {
            self.episode.look(true, pause(policy), now);
        }
        lasts
    }

    fn tell(
        &mut self,
        state: AdmissionState,
        cause: AdmissionCause,
        view: AdmissionView,
        held_back: Option<(Duration, u64)>,
    ) {
        self.cause = Some(cause);
        // It is told as it is from now on.
        let view = AdmissionView { state, cause: Some(cause), ..view };
        self.news.push(AdmissionChange { state, cause, view, held_back });
    }

    pub(super) fn state(&self, policy: &AdmissionControl, now: Tick) -> AdmissionState {
        match self.episode.lasts(pause(policy), now) {
            true => AdmissionState::HoldingBack,
            false => AdmissionState::Admitting,
        }
    }

    /// Why it changed the last time; absent: it never has.
    pub(super) const fn cause(&self) -> Option<AdmissionCause> {
        self.cause
    }

    pub(super) fn take(&mut self) -> impl Iterator<Item = AdmissionChange> + use<> {
        self.news.take()
    }
}

/// It is over when nobody was held back for so long.
fn pause(policy: &AdmissionControl) -> Duration {
    policy.sampling_window.clamp(Duration::from_secs(1), Duration::from_secs(10))
}

/// Why nobody is held back any more.
fn over(policy: &AdmissionControl, view: &AdmissionView) -> AdmissionCause {
    if policy.max_rejection_probability == 0 {
        AdmissionCause::Policy
    } else if !policy.is_reached(view.calls, view.failed) {
        // What held calls back then is forgotten, or too few come; or some would be held back again at this moment.
        AdmissionCause::FewCalls
    } else {
        AdmissionCause::SuccessRateReached
    }
}
