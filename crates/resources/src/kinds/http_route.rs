//! `HTTPRoute`: which request goes where.

use meshwork_base::{Namespace, ObjectName};

use super::http_filter::{self, HTTPPathModifier, HTTPRouteFilter};
use super::http_match::{HTTPRouteMatch, PathMatchType};
use super::references::{self, ParentReference, core_group, kind};
use super::session_persistence::SessionPersistence;
use crate::codes;
use crate::decode::duration::LongDuration;
use crate::decode::text::{Group, Hostname, KindRef, SectionName};
use crate::decode::{Cx, record};
use crate::kinds::{Body, first_repeated, in_spec};
use crate::object::ObjectMeta;
use crate::span::{Span, Spanned};

record! {
    /// Which request goes where.
    pub struct HTTPRoute {
        /// What it attaches to.
        pub parent_refs: Vec<Spanned<ParentReference>> as "parentRefs" [0..=32],
        /// The hosts it serves; every host of its parents when empty.
        pub hostnames: Vec<Spanned<Hostname>> [0..=16],
        /// Its rules; the standard's default is one rule that matches everything and leads nowhere.
        pub rules: Vec<Spanned<HTTPRouteRule>> [1..=16] = vec![Spanned::unwritten(HTTPRouteRule::default())],
    }
    unimplemented { "useDefaultGateways" }
}

record! {
    /// Matches, filters and backends.
    pub struct HTTPRouteRule {
        /// Its name, unique in the route; policies attach to it by `sectionName`.
        pub name: Option<Spanned<SectionName>>,
        /// Any of them must match.
        pub matches: Vec<Spanned<HTTPRouteMatch>> [0..=64] = default_matches(),
        /// What is done, in order.
        pub filters: Vec<Spanned<HTTPRouteFilter>> [0..=16],
        /// Where it goes, by weight.
        pub backend_refs: Vec<Spanned<HTTPBackendRef>> as "backendRefs" [0..=16],
        /// How long it may take.
        pub timeouts: Option<Spanned<HTTPRouteTimeouts>>,
        /// Whether a failed attempt is repeated.
        pub retry: Option<Spanned<HTTPRouteRetry>>,
        /// Whether callers stay with the endpoint that answered them.
        pub session_persistence: Option<Spanned<SessionPersistence>> as "sessionPersistence",
    }
}

fn default_matches() -> Vec<Spanned<HTTPRouteMatch>> {
    vec![Spanned::unwritten(HTTPRouteMatch::default())]
}

impl Default for HTTPRouteRule {
    /// The standard's default rule.
    fn default() -> Self {
        Self {
            name: None,
            matches: default_matches(),
            filters: Vec::new(),
            backend_refs: Vec::new(),
            timeouts: None,
            retry: None,
            session_persistence: None,
        }
    }
}

record! {
    /// A backend with its share and its own filters.
    pub struct HTTPBackendRef {
        /// Its API group.
        pub group: Group = core_group(),
        /// Its kind.
        pub kind: KindRef = kind("Service"),
        /// Its name.
        pub name: ObjectName,
        /// Its namespace; the route's own when absent. Another one needs a `ReferenceGrant`.
        pub namespace: Option<Namespace>,
        /// Its port; required for a `Service`.
        pub port: Option<u16> [1..=65_535],
        /// Its share among the rule's backends; 0 takes it out.
        pub weight: u32 [0..=1_000_000] = 1,
        /// What is done to requests that go there.
        pub filters: Vec<Spanned<HTTPRouteFilter>> [0..=16],
    }
}

record! {
    /// How long a request may take.
    pub struct HTTPRouteTimeouts {
        /// From the request's arrival to the response's end, all attempts included; zero: no limit.
        pub request: Option<LongDuration>,
        /// One attempt; zero: no limit.
        pub backend_request: Option<LongDuration> as "backendRequest",
    }
}

record! {
    /// Whether a failed attempt is repeated.
    pub struct HTTPRouteRetry {
        /// Statuses after which it is.
        pub codes: Vec<Spanned<u16>>,
        /// How often at most.
        pub attempts: Option<u32> [1..=i64::MAX],
        /// The least time between attempts.
        pub backoff: Option<LongDuration>,
    }
}

/// Matches in one route.
const MATCHES: usize = 128;

impl Body for HTTPRoute {
    in_spec!();

    fn validate(&self, _: &ObjectMeta, cx: &mut Cx) {
        cx.in_field("spec", |cx| {
            references::validate_parents(&self.parent_refs, cx);
            if let Some((later, _)) = first_repeated(&self.hostnames, |hostname| Some(hostname.inner.clone()))
            {
                let hostname = &self.hostnames[later];
                cx.error(
                    hostname.span,
                    codes::DUPLICATE_ENTRY,
                    format!("hostname `{}` stands above", hostname.inner),
                );
            }
            if let Some((later, _)) =
                first_repeated(&self.rules, |rule| rule.name.as_ref().map(|name| name.inner.clone()))
                && let Some(name) = &self.rules[later].name
            {
                cx.error(
                    name.span,
                    codes::DUPLICATE_ENTRY,
                    format!("a rule named `{}` stands above", name.inner),
                );
            }
            self.validate_match_count(cx);
            for (index, rule) in self.rules.iter().enumerate() {
                cx.in_field("rules", |cx| cx.in_item(index, |cx| rule.validate(rule.span, cx)));
            }
        });
    }
}

impl HTTPRoute {
    fn validate_match_count(&self, cx: &mut Cx) {
        let mut count = 0;
        for found in self.rules.iter().flat_map(|rule| &rule.matches) {
            count += 1;
            if count == MATCHES + 1 {
                let total: usize = self.rules.iter().map(|rule| rule.matches.len()).sum();
                let message =
                    format!("the route has {total} matches in all its rules; at most {MATCHES} are allowed");
                cx.error(found.span, codes::OUT_OF_RANGE, message).help = Some("split the route".to_owned());
            }
        }
    }
}

impl HTTPRouteRule {
    fn validate(&self, span: Span, cx: &mut Cx) {
        for (index, found) in self.matches.iter().enumerate() {
            cx.in_field("matches", |cx| cx.in_item(index, |cx| found.validate(cx)));
        }
        cx.in_field("filters", |cx| http_filter::validate(&self.filters, cx));
        self.validate_prefix_rewrites(&self.filters, cx);
        let redirect = self.filters.iter().find(|f| matches!(f.inner, HTTPRouteFilter::RequestRedirect(_)));
        if let (Some(redirect), false) = (redirect, self.backend_refs.is_empty()) {
            let message = format!("`{}` has both a `RequestRedirect` filter and `backendRefs`", cx.path());
            cx.error(redirect.span, codes::CONFLICTING_FIELDS, message).help =
                Some("a redirect is answered by the gateway itself: keep one of them".to_owned());
        }
        for (index, backend) in self.backend_refs.iter().enumerate() {
            cx.in_field("backendRefs", |cx| cx.in_item(index, |cx| backend.validate(backend.span, cx)));
            self.validate_prefix_rewrites(&backend.filters, cx);
        }
        if let Some(timeouts) = &self.timeouts {
            timeouts.validate(timeouts.span, cx);
        }
        if let Some(retry) = &self.retry {
            retry.validate(cx);
        }
        if let Some(session) = &self.session_persistence {
            session.validate(session.span, cx);
        }
        debug_assert!(span.line > 0 || self == &Self::default(), "only the default rule was not written");
    }

    /// Which prefix `replacePrefixMatch` replaces must be clear.
    fn validate_prefix_rewrites(&self, filters: &[Spanned<HTTPRouteFilter>], cx: &mut Cx) {
        let one_prefix =
            matches!(self.matches.as_slice(), [only] if only.path.match_type == PathMatchType::PathPrefix);
        for filter in filters {
            if let Some(HTTPPathModifier::ReplacePrefixMatch { .. }) = filter.path_modifier()
                && !one_prefix
            {
                let message = format!(
                    "`replacePrefixMatch` needs a rule with exactly one match, of type PathPrefix; `{}` has another",
                    cx.path()
                );
                cx.error(filter.span, codes::CONFLICTING_FIELDS, message).help =
                    Some("give each prefix a rule of its own, or use `replaceFullPath`".to_owned());
            }
        }
    }
}

impl HTTPBackendRef {
    fn validate(&self, span: Span, cx: &mut Cx) {
        references::validate_port(&self.group, &self.kind, &self.name, self.port, span, cx);
        cx.in_field("filters", |cx| http_filter::validate(&self.filters, cx));
    }
}

impl HTTPRouteTimeouts {
    fn validate(&self, span: Span, cx: &mut Cx) {
        let (Some(request), Some(attempt)) = (self.request, self.backend_request) else { return };
        if !request.is_zero() && attempt > request {
            let message = format!(
                "`timeouts.backendRequest` ({attempt}) is longer than `timeouts.request` ({request})"
            );
            cx.error(span, codes::CONFLICTING_FIELDS, message).help =
                Some("an attempt is part of the request: make it shorter, or `request` longer".to_owned());
        }
    }
}

impl HTTPRouteRetry {
    fn validate(&self, cx: &mut Cx) {
        for code in &self.codes {
            if !(400..=599).contains(&code.inner) {
                let message = format!("`retry.codes` cannot contain {}; 400 to 599 is allowed", code.inner);
                cx.error(code.span, codes::OUT_OF_RANGE, message);
            }
        }
    }
}
