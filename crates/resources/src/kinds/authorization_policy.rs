//! `AuthorizationPolicy`: who may call a target.

use meshwork_base::{Namespace, SpiffeId};

use super::target::{self, PolicyTarget};
use crate::codes;
use crate::decode::text::{Hostname, text_types};
use crate::decode::{Cx, choice, record};
use crate::kinds::{Body, in_spec};
use crate::object::{ObjectKind, ObjectMeta};
use crate::span::{Span, Spanned};

record! {
    /// Who may call a target. A `Deny` that matches refuses; where an `Allow` is attached, one must match.
    pub struct AuthorizationPolicy {
        /// What it is attached to.
        pub target_refs: Vec<Spanned<PolicyTarget>> as "targetRefs" [1..=16],
        /// What a match means.
        pub action: Spanned<AuthorizationAction>,
        /// Any of them. An `Allow` without rules allows nobody.
        pub rules: Vec<Spanned<AuthorizationRule>> [0..=512],
    }
}

choice! {
    /// What a match means.
    pub enum AuthorizationAction {
        /// The request may pass.
        Allow = "Allow",
        /// The request is refused.
        Deny = "Deny",
        /// The request is noted, and nothing else.
        Audit = "Audit",
    }
}

record! {
    /// Some callers and some operations. It matches when one of each does.
    pub struct AuthorizationRule {
        /// Callers; every caller when empty.
        pub from: Vec<Spanned<AuthorizationFrom>> [0..=512],
        /// Operations; every operation when empty.
        pub to: Vec<Spanned<AuthorizationTo>> [0..=512],
    }
}

record! {
    /// Some callers: of each list that is not empty, one member must match.
    pub struct AuthorizationFrom {
        /// Their SPIFFE IDs.
        pub spiffe_ids: Vec<Spanned<SpiffeIdPattern>> as "spiffeIds" [0..=512],
        /// Their namespaces.
        pub namespaces: Vec<Spanned<Namespace>> [0..=512],
    }
}

record! {
    /// Some operations: of each list that is not empty, one member must match.
    pub struct AuthorizationTo {
        /// Hosts, without port.
        pub hosts: Vec<Spanned<HostPattern>> [0..=512],
        /// Methods.
        pub methods: Vec<Spanned<MethodName>> [0..=64],
        /// Paths, without query.
        pub paths: Vec<Spanned<PathPattern>> [0..=512],
    }
}

text_types! {
    /// A SPIFFE ID, or its beginning with `*` at the end.
    SpiffeIdPattern = |text| {
        let ok = match text.strip_suffix('*') {
            Some(start) => start.starts_with("spiffe://") && !start.contains('*'),
            None => SpiffeId::parse(text).is_ok(),
        };
        if ok { Ok(()) } else { Err("write spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/WORKLOAD, or its beginning with `*` at the end") }
    };
    /// A host name, or `*.` before one: any number of labels.
    HostPattern = |text| {
        Hostname::new(text).map(|_| ()).map_err(|_| "write a host name in lower case, perhaps with `*.` before it, without a port")
    };
    /// A method; case matters.
    MethodName = |text| {
        let ok = !text.is_empty() && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        if ok { Ok(()) } else { Err("methods are written in capitals: `GET`, `POST`, …") }
    };
    /// A path, or its beginning with `*` at the end.
    PathPattern = |text| {
        let start = text.strip_suffix('*').unwrap_or(text);
        let ok = start.starts_with('/') && !start.contains(['*', '?', '#']) && !start.chars().any(|c| c.is_control() || c == ' ');
        if ok { Ok(()) } else { Err("a path begins with `/` and has no query; `*` may stand at its end only") }
    };
}

/// Where authorization can be attached.
const TARGETS: [ObjectKind; 4] =
    [ObjectKind::Service, ObjectKind::HTTPRoute, ObjectKind::Gateway, ObjectKind::Namespace];

impl Body for AuthorizationPolicy {
    in_spec!();

    fn validate(&self, meta: &ObjectMeta, cx: &mut Cx) {
        target::validate(&self.target_refs, &TARGETS, meta, cx);
        if self.rules.is_empty() && *self.action != AuthorizationAction::Allow {
            let message = format!("a policy with `action: {}` and no rules never matches", *self.action);
            cx.error(self.action.span, codes::CONFLICTING_FIELDS, message).help =
                Some("add `rules`; `rules: [{}]` matches every request".to_owned());
        }
        for rule in &self.rules {
            rule.validate(cx);
        }
    }
}

impl AuthorizationRule {
    /// An entry that says nothing would match everything: too easily written by a slip of indentation.
    fn validate(&self, cx: &mut Cx) {
        let mut refuse = |span: Span, list: &str, fields: &str| {
            let message = format!("an entry of `{list}` says nothing and would match everything");
            cx.error(span, codes::CONFLICTING_FIELDS, message).help =
                Some(format!("give it {fields}, or remove `{list}` to mean every one"));
        };
        for from in self.from.iter().filter(|from| from.spiffe_ids.is_empty() && from.namespaces.is_empty()) {
            refuse(from.span, "from", "`spiffeIds` or `namespaces`");
        }
        for to in
            self.to.iter().filter(|to| to.hosts.is_empty() && to.methods.is_empty() && to.paths.is_empty())
        {
            refuse(to.span, "to", "`hosts`, `methods` or `paths`");
        }
    }
}
