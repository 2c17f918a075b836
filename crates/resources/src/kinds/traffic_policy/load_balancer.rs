//! Which endpoint is called.

use std::collections::BTreeMap;

use super::slow_start::{self, SlowStart};
use crate::codes;
use crate::decode::duration::LongDuration;
use crate::decode::overlay::{layered, words};
use crate::decode::{Cx, choice, record};
use crate::kinds::label_selector;
use crate::span::{Span, Spanned};

layered! {
    /// Which endpoint is called.
    pub struct LoadBalancer {
        /// The rule of choice; `PeakEwma` when nobody says one.
        pub algorithm: Option<LoadBalancerAlgorithm>,
        /// What tells requests apart, for `RingHash` and `Maglev`: in order, and all count up to a terminal one. On layer 4
        /// only `SourceAddress` does.
        pub hash_policy: Vec<Spanned<HashRule>> as "hashPolicy" [0..=16],
        /// Percent of an even load that an endpoint may have, for `RingHash` and `Maglev`; as much as comes when absent.
        pub hash_balance_factor: Option<Spanned<u32>> as "hashBalanceFactor" [100..=100_000],
        /// Who goes first, and when others help.
        pub failover: Option<Spanned<Failover>>,
        /// How an endpoint that has just begun gets a share that grows; with its whole weight when absent. Not for
        /// `RingHash` and `Maglev`.
        pub slow_start: Option<Spanned<SlowStart>> as "slowStart",
        /// How many of the endpoints each proxy calls; all when absent. Not for `RingHash` and `Maglev`.
        pub subsetting: Option<Spanned<Subsetting>>,
    }
}

layered! {
    /// Each proxy calls a part of the endpoints, drawn by its identity: for fleets so large that not every proxy can have
    /// a connection to every endpoint.
    pub struct Subsetting {
        /// How many; where there are zones or priorities, of each.
        pub size: u32 [1..=100_000],
    }
}

choice! {
    /// The rule by which an endpoint is chosen.
    pub enum LoadBalancerAlgorithm {
        /// Of two drawn by chance, the one that is likely to answer sooner: latency times requests under way. The default.
        PeakEwma = "PeakEwma",
        /// Of two drawn by chance, the one with fewer requests under way.
        LeastRequest = "LeastRequest",
        /// One after the other.
        RoundRobin = "RoundRobin",
        /// By chance.
        Random = "Random",
        /// Where the request's hash leads on a ring of endpoints: a change of the endpoints moves the fewest requests.
        RingHash = "RingHash",
        /// Where the request's hash leads in a table of endpoints: load is the most even.
        Maglev = "Maglev",
    }
}

layered! {
    /// Who goes first, and when others help.
    pub struct Failover {
        /// How far nearness to the proxy is looked at; `Zone` when absent.
        pub prefer: Option<FailoverPreference>,
        /// Labels of who goes first, who comes second, and so on, before nearness; who has none of them comes last.
        pub priorities: Vec<FailoverPriority> [0..=16],
        /// Percent of its part that each priority, zone or region is taken to be able to carry: 140 when absent, so that it
        /// carries everything down to five of seven.
        pub overprovisioning_factor: Option<u32> as "overprovisioningFactor" [100..=1_000],
        /// Where fewer percent of the endpoints than this are not ejected, ejections are disregarded: 50 when absent, 0
        /// for never.
        pub panic_threshold: Option<u32> as "healthyPanicThreshold" [0..=100],
    }
}

record! {
    /// Endpoints with these labels.
    pub struct FailoverPriority {
        /// All of them, as in a `ServiceSubset`: `version` is also the version that an instance was registered with; of the
        /// endpoints of an `EndpointSlice` nothing else is known.
        pub match_labels: Spanned<BTreeMap<String, String>> as "matchLabels" [1..=16],
    }
}

choice! {
    /// How far nearness is looked at.
    pub enum FailoverPreference {
        /// The proxy's zone, then its region, then all others. The default.
        Zone = "Zone",
        /// The proxy's region, then all others. Not for services of an `EndpointSlice`, whose endpoints have none.
        Region = "Region",
        /// Not at all.
        Nothing = "None",
    }
}

record! {
    /// One thing that tells requests apart.
    pub struct HashRule {
        /// What it is.
        pub rule_type: HashRuleType as "type",
        /// The name of the header, cookie or query parameter.
        pub name: Option<Spanned<String>> [1..=256],
        /// How long a cookie lives that is made where there is none; `0s`: until the browser ends. None is made when absent.
        /// Of several cookies with a time only the first is made; another that is not there says nothing.
        pub ttl: Option<Spanned<LongDuration>>,
        /// The path of such a cookie.
        pub path: Option<Spanned<String>> [1..=1_024],
        /// Where this one says something, nothing after it counts.
        pub terminal: bool = false,
    }
}

choice! {
    /// What tells requests apart.
    pub enum HashRuleType {
        /// A header.
        Header = "Header",
        /// A cookie.
        Cookie = "Cookie",
        /// A query parameter.
        QueryParameter = "QueryParameter",
        /// The caller's IP address.
        SourceAddress = "SourceAddress",
    }
}

words!(LoadBalancerAlgorithm, FailoverPreference);

impl LoadBalancer {
    /// Leaves out what has no meaning for an algorithm.
    pub(super) fn keep_what_fits(&mut self, algorithm: LoadBalancerAlgorithm) {
        if algorithm.is_hashing() {
            (self.slow_start, self.subsetting) = (None, None);
        } else {
            self.hash_policy.clear();
            self.hash_balance_factor = None;
        }
    }
}

impl LoadBalancerAlgorithm {
    /// Whether it goes by a hash of the request.
    #[must_use]
    pub const fn is_hashing(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }
}

/// What helps where a name is none (RFC 9110 section 5.6.2).
pub(in crate::kinds) const TOKEN: &str = "use letters, digits and any of !#$%&'*+-.^_`|~";

pub(super) fn validate(balancer: &Spanned<LoadBalancer>, cx: &mut Cx) {
    let beside = balancer.slow_start.is_some() || balancer.subsetting.is_some();
    if balancer.algorithm.is_none() && balancer.failover.is_none() && !beside {
        let message = "`loadBalancer` says nothing";
        cx.error(balancer.span, codes::MISSING_FIELD, message).help =
            Some("write `algorithm`, `failover`, `slowStart`, `subsetting`, or several of them".to_owned());
    }
    let algorithm = balancer.algorithm.unwrap_or(LoadBalancerAlgorithm::PeakEwma);
    if let Some(slow_start) = &balancer.slow_start {
        let hashing = algorithm.is_hashing().then(|| algorithm.to_string());
        slow_start::validate(slow_start, hashing.as_deref(), cx);
    }
    if let Some(subsetting) = balancer.subsetting.as_ref().filter(|_| algorithm.is_hashing()) {
        let message = format!("`loadBalancer.subsetting` has no meaning for `algorithm: {algorithm}`");
        cx.error(subsetting.span, codes::CONFLICTING_FIELDS, message).help =
            Some("a hash leads to the same endpoint from every proxy; remove it".to_owned());
    }
    if !algorithm.is_hashing() {
        let policy = balancer.hash_policy.first().map(|rule| (rule.span, "hashPolicy"));
        let factor = balancer.hash_balance_factor.as_ref().map(|factor| (factor.span, "hashBalanceFactor"));
        for (span, field) in policy.into_iter().chain(factor) {
            let message = format!("`loadBalancer.{field}` has no meaning for `algorithm: {algorithm}`");
            cx.error(span, codes::CONFLICTING_FIELDS, message).help =
                Some("use `RingHash` or `Maglev`, or remove it".to_owned());
        }
    } else if balancer.hash_policy.is_empty() {
        let message = format!("`loadBalancer` has no `hashPolicy`, which `algorithm: {algorithm}` goes by");
        cx.error(balancer.span, codes::MISSING_FIELD, message).help =
            Some("say what tells requests apart: `hashPolicy: [{type: Header, name: x-user}]`".to_owned());
    }
    let priorities = balancer.failover.iter().flat_map(|failover| &failover.priorities);
    for priority in priorities {
        label_selector::named(&priority.match_labels, cx);
    }
    for rule in &balancer.hash_policy {
        rule.inner.validate(rule.span, cx);
    }
}

impl HashRule {
    fn validate(&self, span: Span, cx: &mut Cx) {
        let kind = self.rule_type;
        match (&self.name, kind) {
            (None, HashRuleType::SourceAddress) => {}
            (Some(name), HashRuleType::SourceAddress) => {
                let message = "`hashPolicy` of type SourceAddress takes no `name`: a caller has one address";
                cx.error(name.span, codes::CONFLICTING_FIELDS, message).help = Some("remove it".to_owned());
            }
            (None, _) => {
                cx.error(span, codes::MISSING_FIELD, format!("`hashPolicy` of type {kind} has no `name`"))
                    .help = Some(format!("say which {kind}: `{{type: {kind}, name: …}}`"));
            }
            // What a cookie is called, and a header: RFC 9110 section 5.6.2.
            (Some(name), HashRuleType::Header | HashRuleType::Cookie) => {
                let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
                if !name.bytes().all(fits) {
                    let message = format!("`hashPolicy.name` cannot be the name of a {kind}");
                    cx.error(name.span, codes::INVALID_VALUE, message).help = Some(TOKEN.to_owned());
                }
            }
            (Some(_), HashRuleType::QueryParameter) => {}
        }
        let of_cookies =
            [("ttl", self.ttl.as_ref().map(|ttl| ttl.span)), ("path", self.path.as_ref().map(|p| p.span))];
        for (field, span) in of_cookies {
            if let (Some(span), true) = (span, kind != HashRuleType::Cookie) {
                let message = format!("`hashPolicy.{field}` is for cookies; the type is {kind}");
                cx.error(span, codes::CONFLICTING_FIELDS, message).help =
                    Some("remove it, or write `type: Cookie`".to_owned());
            }
        }
        if let Some(path) = &self.path {
            if self.ttl.is_none() {
                let message = "`hashPolicy.path` is that of a cookie that is made, and without `ttl` none is";
                cx.error(path.span, codes::CONFLICTING_FIELDS, message).help = Some("add `ttl`".to_owned());
            }
            if !path.starts_with('/')
                || path.bytes().any(|byte| byte == b';' || !(0x20..0x7f).contains(&byte))
            {
                let message =
                    "`hashPolicy.path` begins with `/` and has neither `;` nor what cannot be printed";
                cx.error(path.span, codes::INVALID_VALUE, message).help =
                    Some("write it as `/cart`".to_owned());
            }
        }
    }
}
