//! Who may do what.
//!
//! The order is fixed: a `Deny` that matches refuses; then, where any `Allow` is attached, one must match; otherwise
//! the request passes. `Audit` never decides. Policies of all levels apply together: a narrower `Allow` does not take
//! away what a wider one grants, and no `Allow` lifts a `Deny`. A policy that this proxy cannot understand closes what
//! it is attached to, since it might have been a `Deny`.

use std::sync::Arc;

use meshwork_base::SpiffeId;

use crate::cause::Cause;
use crate::hostname::{Host, HostPattern};
use crate::origin::Origin;
use crate::reasons::{Outcome, Phase, Reason, Reasons};
use crate::request::RequestView;

/// All authorization policies that apply at one place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authorization {
    pub(crate) deny: Box<[Arc<AuthorizationPolicy>]>,
    pub(crate) allow: Box<[Arc<AuthorizationPolicy>]>,
    pub(crate) audit: Box<[Arc<AuthorizationPolicy>]>,
}

/// One policy.
#[derive(Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// The user's object.
    pub origin: Arc<Origin>,
    /// What a match does.
    pub action: Action,
    pub(crate) rules: Box<[AuthorizationRule]>,
    /// False: it stands for a policy that could not be understood, and refuses everything.
    pub(crate) understood: bool,
}

/// What a match of a policy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Grants.
    Allow,
    /// Refuses.
    Deny,
    /// Is noted.
    Audit,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AuthorizationRule {
    pub(crate) from: Box<[Peers]>,
    pub(crate) to: Box<[Operation]>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Peers {
    pub(crate) spiffe_ids: Box<[TextRule]>,
    pub(crate) namespaces: Box<[Box<str>]>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) hosts: Box<[HostRule]>,
    pub(crate) methods: Box<[Box<str>]>,
    pub(crate) paths: Box<[TextRule]>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TextRule {
    Exact(Box<str>),
    Prefix(Box<str>),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HostRule(pub(crate) HostPattern);

/// Why a request may not pass.
#[derive(Clone, Copy, Debug)]
pub struct Denied<'p> {
    /// [`Cause::AuthorizationDenied`] or [`Cause::AuthorizationUnknown`].
    pub cause: Cause,
    /// The policy that refused it; when no `Allow` matched, the first of them.
    pub policy: &'p Arc<AuthorizationPolicy>,
}

impl Authorization {
    pub(crate) fn new(policies: impl Iterator<Item = Arc<AuthorizationPolicy>>) -> Self {
        let mut sorted: Vec<_> = policies.collect();
        sorted
            .sort_by(|a, b| a.origin.precedence(&b.origin).then_with(|| Arc::as_ptr(a).cmp(&Arc::as_ptr(b))));
        // One policy with two targets of the same request is one policy.
        sorted.dedup_by(|a, b| Arc::ptr_eq(a, b));
        let of = |action| sorted.iter().filter(|p| p.action == action).cloned().collect();
        Self { deny: of(Action::Deny), allow: of(Action::Allow), audit: of(Action::Audit) }
    }

    /// Whether nothing is attached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.deny.is_empty() && self.allow.is_empty() && self.audit.is_empty()
    }

    /// All that apply.
    pub fn policies(&self) -> impl Iterator<Item = &AuthorizationPolicy> {
        self.deny.iter().chain(&self.allow).chain(&self.audit).map(|policy| &**policy)
    }

    /// Whether a request may pass.
    ///
    /// # Errors
    /// The cause and the policy when it may not.
    pub fn check(&self, request: &impl RequestView, reasons: &mut impl Reasons) -> Result<(), Denied<'_>> {
        self.judge(|policy| policy.matches(request), reasons)
    }

    /// Whether a connection that nobody looks into may pass. What rules say of hosts, methods and paths cannot be seen
    /// there: a `Deny` that names them refuses, an `Allow` that names them grants nothing.
    ///
    /// # Errors
    /// The cause and the policy when it may not.
    pub fn check_opaque(
        &self,
        peer: Option<&SpiffeId>,
        reasons: &mut impl Reasons,
    ) -> Result<(), Denied<'_>> {
        self.judge(|policy| policy.matches_opaque(peer), reasons)
    }

    fn judge(
        &self,
        matches: impl Fn(&AuthorizationPolicy) -> bool,
        reasons: &mut impl Reasons,
    ) -> Result<(), Denied<'_>> {
        for policy in &self.deny {
            if !policy.understood {
                reasons.note(|| policy.reason(Outcome::Refused, "this proxy cannot understand the policy"));
                return Err(Denied { cause: Cause::AuthorizationUnknown, policy });
            }
            if matches(policy) {
                reasons.note(|| policy.reason(Outcome::Refused, "a Deny rule matches"));
                return Err(Denied { cause: Cause::AuthorizationDenied, policy });
            }
            reasons.note(|| policy.reason(Outcome::Skipped, "no Deny rule matches"));
        }
        let Some(first) = self.allow.first() else { return Ok(()) };
        for policy in &self.allow {
            if matches(policy) {
                reasons.note(|| policy.reason(Outcome::Chosen, "an Allow rule matches"));
                return Ok(());
            }
            reasons.note(|| policy.reason(Outcome::Skipped, "no Allow rule matches"));
        }
        reasons.note(|| first.reason(Outcome::Refused, "Allow policies are attached and none matches"));
        Err(Denied { cause: Cause::AuthorizationDenied, policy: first })
    }

    /// The `Audit` policies that match a request.
    pub fn audits<'p>(
        &'p self,
        request: &'p impl RequestView,
    ) -> impl Iterator<Item = &'p AuthorizationPolicy> {
        self.audit.iter().map(|p| &**p).filter(|p| p.matches(request))
    }

    /// The `Audit` policies that match a connection that nobody looks into.
    pub fn audits_opaque<'p>(
        &'p self,
        peer: Option<&'p SpiffeId>,
    ) -> impl Iterator<Item = &'p AuthorizationPolicy> {
        self.audit.iter().map(|p| &**p).filter(move |p| p.matches_opaque(peer))
    }
}

impl AuthorizationPolicy {
    /// Stands for a policy that could not be understood.
    pub(crate) fn closed(origin: Arc<Origin>) -> Self {
        Self { origin, action: Action::Deny, rules: Box::default(), understood: false }
    }

    fn matches(&self, request: &impl RequestView) -> bool {
        self.rules.iter().any(|rule| rule.matches(request))
    }

    /// What cannot be seen counts against the caller.
    fn matches_opaque(&self, peer: Option<&SpiffeId>) -> bool {
        let unseen = self.action != Action::Allow;
        self.rules.iter().any(|rule| {
            (rule.from.is_empty() || rule.from.iter().any(|p| p.matches(peer)))
                && (rule.to.is_empty() || rule.to.iter().any(|o| unseen || o.is_any()))
        })
    }

    fn reason(&self, outcome: Outcome, why: &str) -> Reason {
        Reason { phase: Phase::Authorize, subject: self.origin.to_string(), outcome, why: why.to_owned() }
    }
}

impl AuthorizationRule {
    pub(crate) fn matches(&self, request: &impl RequestView) -> bool {
        (self.from.is_empty() || self.from.iter().any(|p| p.matches(request.peer())))
            && (self.to.is_empty() || self.to.iter().any(|o| o.matches(request)))
    }
}

impl Peers {
    fn matches(&self, peer: Option<&SpiffeId>) -> bool {
        if self.spiffe_ids.is_empty() && self.namespaces.is_empty() {
            return true;
        }
        // Who did not prove an identity has none that a list could name.
        let Some(peer) = peer else { return false };
        (self.spiffe_ids.is_empty() || self.spiffe_ids.iter().any(|r| r.matches(peer.as_str())))
            && (self.namespaces.is_empty() || self.namespaces.iter().any(|n| **n == *peer.namespace()))
    }
}

impl Operation {
    fn is_any(&self) -> bool {
        self.hosts.is_empty() && self.methods.is_empty() && self.paths.is_empty()
    }

    fn matches(&self, request: &impl RequestView) -> bool {
        let host = || {
            let host = Host::new(request.host());
            self.hosts.iter().any(|h| h.0.matches(host.as_str()))
        };
        (self.hosts.is_empty() || host())
            && (self.methods.is_empty() || self.methods.iter().any(|m| **m == *request.method()))
            && (self.paths.is_empty() || self.paths.iter().any(|p| p.matches(request.path())))
    }
}

impl TextRule {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *text,
            Self::Prefix(start) => text.starts_with(&**start),
        }
    }
}

#[cfg(test)]
mod tests;
