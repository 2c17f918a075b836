//! Why a decision fell as it did. The live function and the explaining function are the same function: traffic passes
//! [`NoReasons`], which compiles to nothing, `explain` passes [`Explanation`].

use std::fmt;

/// Who listens to the reasons of a decision.
pub trait Reasons {
    /// Takes one reason; the closure is only called by those who keep it.
    fn note(&mut self, reason: impl FnOnce() -> Reason);
}

/// For live traffic: nobody listens.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReasons;

impl Reasons for NoReasons {
    #[inline(always)]
    fn note(&mut self, _: impl FnOnce() -> Reason) {}
}

/// Keeps all reasons, in the order in which they came up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation(pub Vec<Reason>);

impl Reasons for Explanation {
    fn note(&mut self, reason: impl FnOnce() -> Reason) {
        self.0.push(reason());
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
    /// Choosing the endpoint.
    Endpoint,
    /// Deciding about another attempt.
    Retry,
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

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = match self.phase {
            Phase::Listener => "listener",
            Phase::Route => "route",
            Phase::Authorize => "authorize",
            Phase::Backend => "backend",
            Phase::Endpoint => "endpoint",
            Phase::Retry => "retry",
        };
        let outcome = match self.outcome {
            Outcome::Chosen => "chosen",
            Outcome::Skipped => "skipped",
            Outcome::Refused => "refused",
            Outcome::Noted => "noted",
        };
        write!(f, "{phase}: {} {outcome}: {}", self.subject, self.why)
    }
}
