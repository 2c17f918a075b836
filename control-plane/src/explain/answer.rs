//! The answer: JSON in camelCase, to which keys are only ever added.

use std::collections::BTreeMap;

use meshwork_decision::{Cause, Origin, OwnedRequest, Reason, Reasons};
use serde::Serialize;

/// So many roads not taken are told.
const SKIPPED: usize = 50;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answer {
    /// The revision it speaks of.
    pub(super) revision: u64,
    /// `gateway`, or `mesh` where somebody within it asks.
    pub(super) side: &'static str,
    pub(super) request: Seen,
    pub(super) verdict: Verdict,
    pub(super) listener: Option<Place>,
    pub(super) service: Option<Place>,
    pub(super) route: Option<Rule>,
    /// What filters made of it.
    pub(super) forwarded: Option<Seen>,
    /// The authorization policies that it met, by name, and what each does.
    #[serde(skip)]
    pub(super) authorization: Vec<(String, Said)>,
    pub(super) backends: Vec<Backend>,
    pub(super) steps: Vec<Step>,
    /// Roads not taken that are not among the steps, because there are too many.
    pub(super) omitted: usize,
}

/// A request.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Seen {
    method: String,
    scheme: &'static str,
    host: String,
    port: Option<u16>,
    path: String,
    query: Option<String>,
    headers: Vec<(String, String)>,
    from: Option<String>,
}

impl Seen {
    pub(super) fn of(request: &OwnedRequest) -> Self {
        Self {
            method: request.method.clone(),
            scheme: request.scheme.as_str(),
            host: request.host.clone(),
            port: request.port,
            path: request.path.clone(),
            query: request.query.clone(),
            headers: request.headers.clone(),
            from: request.peer.as_ref().map(ToString::to_string),
        }
    }
}

/// What becomes of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Verdict {
    /// `forwarded`, `redirected`, `failed`; `notListening` and `handshakeRefused` where there is no answer at all.
    pub(super) outcome: &'static str,
    /// What the proxy answers by itself.
    pub(super) status: Option<u16>,
    pub(super) cause: Option<&'static str>,
    pub(super) flag: Option<&'static str>,
    pub(super) location: Option<String>,
    /// The policy that refuses it.
    pub(super) policy: Option<String>,
    /// How many percent of such requests fail because their backend does, or a policy answers instead of it.
    pub(super) failing_percent: Part,
}

/// A part of the requests, told in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    millionths: u64,
}

impl Part {
    const WHOLE: u64 = 1_000_000;
    pub(super) const ALL: Self = Self { millionths: Self::WHOLE };

    /// The sum of parts of as much each, of so much; what is less than can be told is told as that.
    pub(super) fn of(parts: impl IntoIterator<Item = (u64, Self)>, whole: u64) -> Self {
        let some = parts
            .into_iter()
            .fold(0, |sum: u128, (weight, part)| sum + u128::from(weight) * u128::from(part.millionths));
        let least = u128::from(some > 0);
        Self {
            millionths: u64::try_from((some / u128::from(whole.max(1))).max(least)).unwrap_or(Self::WHOLE),
        }
    }
}

impl Serialize for Part {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let of_percent = Self::WHOLE / 100;
        match self.millionths % of_percent {
            0 => serializer.serialize_u64(self.millionths / of_percent),
            _ => serializer.serialize_f64(self.millionths as f64 / of_percent as f64),
        }
    }
}

impl Verdict {
    pub(super) fn of(outcome: &'static str) -> Self {
        Self { outcome, ..Self::default() }
    }

    pub(super) fn failed(cause: Cause) -> Self {
        Self {
            outcome: "failed",
            status: cause.status(),
            cause: Some(cause.as_str()),
            flag: Some(cause.flag().as_str()),
            failing_percent: Part::ALL,
            ..Self::default()
        }
    }
}

/// An object by name.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) source: Option<Source>,
}

impl Place {
    pub(super) fn new(name: &str, origin: &Origin) -> Self {
        Self { name: name.to_owned(), source: Source::of(origin) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Source {
    kind: String,
    name: String,
    file: String,
    line: u32,
}

impl Source {
    pub(super) fn of(origin: &Origin) -> Option<Self> {
        (!origin.kind.is_empty()).then(|| Self {
            kind: origin.kind.to_string(),
            name: origin.qualified.to_string(),
            file: origin.file.to_string(),
            line: origin.line,
        })
    }
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rule {
    #[serde(flatten)]
    pub(super) route: Place,
    /// Its position among the route's rules.
    pub(super) rule: usize,
    /// Its section name, may be empty.
    pub(super) rule_name: String,
    /// The position of the match that held.
    #[serde(rename = "match")]
    pub(super) matched: usize,
    /// When nobody is called by it for a while.
    pub(super) circuit_breaker: Option<Breaker>,
    pub(super) rate_limit: Option<Said>,
}

impl Rule {
    /// Whether it is of this route, `NAMESPACE/NAME`.
    pub(super) fn is_of(&self, route: &str) -> bool {
        self.route.source.as_ref().is_some_and(|source| source.name == route)
    }
}

/// One destination of the rule.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Backend {
    pub(super) service: String,
    pub(super) port: u16,
    pub(super) source: Option<Source>,
    pub(super) weight: u32,
    /// What would become of a request that is sent there.
    pub(super) verdict: Verdict,
    pub(super) protocol: Option<String>,
    pub(super) algorithm: Option<String>,
    pub(super) limits: Option<Limits>,
    pub(super) circuit_breaker: Option<Breaker>,
    /// What the caller keeps from it; where it has sidecars these do it.
    pub(super) overload: Option<Said>,
    pub(super) admission_control: Option<Admission>,
    /// What a policy answers instead of it, and how often.
    pub(super) fault_abort: Option<Said>,
    pub(super) timeouts: Option<Timeouts>,
    pub(super) retry: Option<Retry>,
    /// The request with the backend's own filters applied, where it has some.
    pub(super) forwarded: Option<Seen>,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) inbound: Option<Inbound>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Limits {
    pub(super) max_connections: Option<u32>,
    pub(super) max_pending_requests: Option<u32>,
    pub(super) max_requests: Option<u32>,
    pub(super) max_retries: Option<u32>,
    pub(super) per_endpoint: EndpointLimits,
    /// Who says each of them, by its name.
    pub(super) sources: BTreeMap<String, Source>,
}

/// How much may be under way to any one endpoint.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointLimits {
    pub(super) max_connections: Option<u32>,
    pub(super) max_pending_requests: Option<u32>,
    pub(super) max_requests: Option<u32>,
    pub(super) max_retries: Option<u32>,
}

/// How many calls of the backend are held back when too few succeed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Admission {
    pub(super) sampling_window: String,
    pub(super) success_rate_threshold: u32,
    pub(super) max_rejection_probability: u32,
    pub(super) source: Option<Source>,
    /// Who says each field, by its name.
    pub(super) sources: BTreeMap<String, Source>,
}

/// When a backend, or by a rule, is not called for a while.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Breaker {
    pub(super) mode: String,
    pub(super) minimum_calls: u32,
    pub(super) failure_percent: Option<u32>,
    pub(super) slow_percent: Option<u32>,
    pub(super) open_time: String,
    pub(super) source: Option<Source>,
    /// Who says each field, by its name.
    pub(super) sources: BTreeMap<String, Source>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Endpoint {
    pub(super) address: String,
    /// Where the proxy connects: the sidecar's port where there is one.
    pub(super) connect_to: String,
    pub(super) spiffe_id: Option<String>,
    pub(super) instance: String,
    pub(super) workload: String,
    pub(super) version: String,
    pub(super) zone: String,
    pub(super) weight: u32,
    pub(super) health: &'static str,
    /// Why it is never picked.
    pub(super) excluded: Option<&'static str>,
    /// Whether it may be picked.
    pub(super) candidate: bool,
}

/// What is said, and who says so.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Said {
    pub(super) value: String,
    /// Of several, the one of the narrowest target.
    pub(super) source: Option<Source>,
    /// Who says each field of it, by its name, where it has several.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) sources: BTreeMap<String, Source>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Timeouts {
    pub(super) request: Option<Said>,
    pub(super) backend_request: Option<Said>,
    /// An attempt has no longer than that, as no `perTryTimeout` is shorter.
    #[serde(skip)]
    pub(super) backend_request_ends_attempts: bool,
    pub(super) connect: Option<Said>,
    pub(super) idle: Option<Said>,
    pub(super) stream_idle: Option<Said>,
    pub(super) max_stream_duration: Option<Said>,
    pub(super) caller_deadline: Option<Said>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Retry {
    pub(super) attempts: u32,
    pub(super) status_codes: Vec<u16>,
    pub(super) grpc_codes: Vec<u16>,
    pub(super) on: Vec<&'static str>,
    pub(super) per_try_timeout: Option<String>,
    pub(super) backoff_base: String,
    pub(super) backoff_max: String,
    pub(super) budget_percent: Option<u32>,
    pub(super) source: Option<Source>,
    /// Who says each field, by its name.
    pub(super) sources: BTreeMap<String, Source>,
}

/// The other side of the call, in the mesh.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Inbound {
    /// `NAMESPACE/INSTANCE`.
    pub(super) instance: String,
    pub(super) spiffe_id: String,
    pub(super) mtls: &'static str,
    pub(super) app_port: u16,
    /// What its sidecar keeps from the application.
    pub(super) rate_limit: Option<Said>,
    pub(super) overload: Option<Said>,
}

/// One line of the story.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Step {
    pub(super) phase: &'static str,
    pub(super) subject: String,
    /// `chosen`, `skipped`, `refused`, `noted`.
    pub(super) outcome: &'static str,
    pub(super) why: String,
}

/// The story so far. Decisions write their reasons into it.
#[derive(Debug, Default)]
pub(super) struct Story {
    pub(super) steps: Vec<Step>,
    pub(super) omitted: usize,
    skipped: usize,
}

impl Story {
    pub(super) fn tell(
        &mut self,
        phase: &'static str,
        subject: impl Into<String>,
        outcome: &'static str,
        why: impl Into<String>,
    ) {
        self.skipped += usize::from(outcome == "skipped");
        if outcome == "skipped" && self.skipped > SKIPPED {
            self.omitted += 1;
        } else {
            self.steps.push(Step { phase, subject: subject.into(), outcome, why: why.into() });
        }
    }
}

impl Reasons for Story {
    fn note(&mut self, reason: impl FnOnce() -> Reason) {
        let Reason { phase, subject, outcome, why } = reason();
        self.tell(phase.as_str(), subject, outcome.as_str(), why);
    }

    fn notes<I: IntoIterator<Item = Reason>>(&mut self, reasons: impl FnOnce() -> I) {
        for reason in reasons() {
            self.note(|| reason);
        }
    }
}
