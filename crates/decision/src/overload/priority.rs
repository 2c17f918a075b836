//! How much a request matters when not all can be served.

use crate::authorization::AuthorizationRule;
use crate::request::RequestView;

/// How much a request matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// The first to be sent away.
    Low,
    /// What no rule names.
    #[default]
    Default,
    /// Before these.
    High,
    /// Before all others.
    Critical,
}

impl Priority {
    /// All of them, the lowest first.
    pub const ALL: [Self; 4] = [Self::Low, Self::Default, Self::High, Self::Critical];

    /// Its name in metrics and reasons.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Default => "default",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// Which requests have a priority.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PriorityRule {
    pub(crate) priority: Priority,
    /// Those that have all of these fields. Names are in lower case.
    pub(crate) headers: Box<[(Box<str>, Box<str>)]>,
    /// And come from there, and want this.
    pub(crate) who: AuthorizationRule,
}

impl PriorityRule {
    pub(crate) fn matches(&self, request: &impl RequestView) -> bool {
        let has = |(name, value): &(Box<str>, Box<str>)| request.header(name).any(|v| v == value.as_bytes());
        self.headers.iter().all(has) && self.who.matches(request)
    }
}
