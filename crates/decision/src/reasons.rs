//! Why a decision fell as it did. The live function and the explaining function are the same function: traffic passes
//! [`NoReasons`], which compiles to nothing, `explain` passes [`Explanation`].

use std::fmt;

/// Who listens to the reasons of a decision.
pub trait Reasons {
    /// Takes one reason; the closure is only called by those who keep it.
    fn note(&mut self, reason: impl FnOnce() -> Reason);

    /// Takes what only an explanation asks for: the roads not taken. Live traffic never looks at those.
    fn notes<I: IntoIterator<Item = Reason>>(&mut self, reasons: impl FnOnce() -> I);
}

/// For live traffic: nobody listens.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReasons;

impl Reasons for NoReasons {
    #[inline(always)]
    fn note(&mut self, _: impl FnOnce() -> Reason) {}

    #[inline(always)]
    fn notes<I: IntoIterator<Item = Reason>>(&mut self, _: impl FnOnce() -> I) {}
}

/// Keeps all reasons, in the order in which they came up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation(pub Vec<Reason>);

impl Reasons for Explanation {
    fn note(&mut self, reason: impl FnOnce() -> Reason) {
        self.0.push(reason());
    }

    fn notes<I: IntoIterator<Item = Reason>>(&mut self, reasons: impl FnOnce() -> I) {
        self.0.extend(reasons());
    }
}

/// One step of a decision: the phase, what was looked at, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// Where in the request's journey.
    pub phase: Phase,
    /// The object: a listener, a route's rule, a policy, an endpoint.
    pub subject: String,
    /// What came of it.
    pub outcome: Outcome,
    /// In words, for people.
    pub why: String,
}

/// The phase of a reason, as in the design's "How a request travels".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Choosing the listener, or the service by host.
    Listener,
    /// Choosing the rule.
    Route,
    /// Authorization.
    Authorize,
    /// Choosing the backend.
    Backend,
    /// Holding back since too few calls succeed.
    Admission,
    /// Asking the circuit breaker.
    Breaker,
    /// Choosing the endpoint.
    Endpoint,
    /// Deciding about another attempt.
    Retry,
    /// Deciding about a second attempt beside the first.
    Hedge,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// It was taken.
    Chosen,
    /// It did not apply.
    Skipped,
    /// It refused the request.
    Refused,
    /// It was noted without effect (an `Audit` policy).
    Noted,
}

impl Phase {
    /// The word of explanations.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Listener => "listener",
            Self::Route => "route",
            Self::Authorize => "authorize",
            Self::Backend => "backend",
            Self::Admission => "admission",
            Self::Breaker => "breaker",
            Self::Endpoint => "endpoint",
            Self::Retry => "retry",
            Self::Hedge => "hedge",
        }
    }
}

impl Outcome {
    /// The word of explanations.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chosen => "chosen",
            Self::Skipped => "skipped",
            Self::Refused => "refused",
            Self::Noted => "noted",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (phase, outcome) = (self.phase.as_str(), self.outcome.as_str());
        write!(f, "{phase}: {} {outcome}: {}", self.subject, self.why)
    }
}
