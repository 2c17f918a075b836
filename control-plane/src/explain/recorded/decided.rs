//! What is published now of the policies that a hop met: on the way to its service, or before the application that it is beside.

use meshwork_decision::{InboundPort, Snapshot, SnapshotBuilder};
use meshwork_messages::v1::{RequestRecord, request_record::Side};
use meshwork_xds::server::Observed;

use super::advice::Field;
use crate::explain::answer::{Answer, Backend, Breaker, Limits, Retry, Said, Source};
use crate::explain::ask::Ask;
use crate::explain::live::record;
use crate::explain::{Explainer, policy, run};

/// A field's value, and who wrote it.
pub(super) type Word = (Option<String>, Option<Source>);

/// See the module's text.
pub(super) enum Decided {
    Way(Box<Answer>),
    Application(Box<Application>),
}

/// What stands before an application.
pub(super) struct Application {
    rate_limit: Option<Said>,
    overload: Option<Said>,
    authorization: Vec<(String, Said)>,
}

/// What is published now about such a request, if the same rule takes it still.
pub(super) fn decided(explainer: &Explainer, hop: &Observed) -> Option<Decided> {
    let is = record(hop);
    let world = explainer.world().ok()?;
    let mut held = explainer.held.lock();
    let snapshot = held.follow(world);
    let from = match is.side() {
        Side::Outbound => Some(hop.proxy.identity.as_ref()?.to_string()),
        Side::Gateway => None,
        Side::Inbound => return before_application(&held.builder, &snapshot, &hop.proxy.node.id, is),
    };
    let said = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let ask = Ask {
        host: is.host.clone(),
        method: said(&is.method),
        path: said(&is.path),
        listener: said(&is.listener),
        from,
        ..Ask::default()
    };
    let answer = run::explain(&held.builder, &snapshot, &ask, |_| None).ok()?;
    let same = answer.route.as_ref().map_or(is.route.is_empty(), |rule| rule.is_of(&is.route));
    same.then(|| Decided::Way(Box::new(answer)))
}

fn before_application(
    builder: &SnapshotBuilder,
    snapshot: &Snapshot,
    instance: &str,
    is: &RequestRecord,
) -> Option<Decided> {
    let inbound = snapshot.inbounds().find(|inbound| *inbound.name == *instance)?;
    let port: &InboundPort = inbound.ports.iter().find(|port| *port.label == *is.service)?;
    let sources = builder.sources_of_inbound(&port.key);
    Some(Decided::Application(Box::new(Application {
        rate_limit: port.rate_limit.as_deref().map(|limit| policy::rate_limit(limit, &sources)),
        overload: port.overload.as_deref().map(|overload| policy::gate(overload, &sources)),
        authorization: port.authorization.policies().map(policy::action).collect(),
    })))
}

impl Decided {
    /// What the rule's circuit breaker says.
    pub(super) fn of_route_breaker(&self) -> Word {
        let Self::Way(answer) = self else { return (None, None) };
        let breaker = answer.route.as_ref().and_then(|route| route.circuit_breaker.as_ref());
        (breaker.map(told), breaker.and_then(|breaker| breaker.source.clone()))
    }

    /// The field that has decided, of those that a cause can turn on.
    pub(super) fn deciding(&self, field: Field, is: &RequestRecord) -> Field {
        let Self::Way(answer) = self else { return field };
        let Some(backend) = backend(answer, is) else { return field };
        let Some(limits) = &backend.limits else { return of_attempt(field, backend) };
        let per_endpoint = &limits.per_endpoint;
        // A proxy writes down that a limit was reached and not which of the two: it is that which is reached first.
        let (each, all, narrow) = match field {
            Field::MaxConnections => {
                (per_endpoint.max_connections, limits.max_connections, Field::ConnectionsPerEndpoint)
            }
            Field::MaxPending => {
                (per_endpoint.max_pending_requests, limits.max_pending_requests, Field::PendingPerEndpoint)
            }
            Field::MaxRequests => {
                (per_endpoint.max_requests, limits.max_requests, Field::RequestsPerEndpoint)
            }
            Field::MaxRetries => (per_endpoint.max_retries, limits.max_retries, Field::RetriesPerEndpoint),
            field => return of_attempt(field, backend),
        };
        let together = |each: u32| u64::from(each) * backend.endpoints.len() as u64;
        let is_first = |each: u32| all.is_none_or(|all| together(each) < u64::from(all));
        if each.is_some_and(is_first) { narrow } else { field }
    }

    /// What a field says of a request like this.
    pub(super) fn said(&self, field: Field, is: &RequestRecord) -> Word {
        let (authorization, said) = match self {
            Self::Application(before) => {
                let said = match field {
                    Field::RateLimit => before.rate_limit.as_ref(),
                    Field::Overload => before.overload.as_ref(),
                    _ => None,
                };
                (&before.authorization, word(said))
            }
            Self::Way(answer) => {
                let said = match field {
                    Field::RateLimit => {
                        word(answer.route.as_ref().and_then(|route| route.rate_limit.as_ref()))
                    }
                    _ => backend(answer, is).map_or((None, None), |backend| of_backend(field, backend)),
                };
                (&answer.authorization, said)
            }
        };
        if field != Field::Authorization {
            return said;
        }
        let is_named = |name: &str| {
            let rest = is.cause_detail.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        word(authorization.iter().find(|(name, _)| is_named(name)).map(|(_, said)| said))
    }
}

fn word(said: Option<&Said>) -> Word {
    said.map_or((None, None), |said| (Some(said.value.clone()), said.source.clone()))
}

fn backend<'a>(answer: &'a Answer, is: &RequestRecord) -> Option<&'a Backend> {
    answer.backends.iter().find(|backend| format!("{}:{}", backend.service, backend.port) == is.service)
}

/// Of the two that bound an attempt, the shorter.
fn of_attempt(field: Field, backend: &Backend) -> Field {
    let is_backend_request =
        backend.timeouts.as_ref().is_some_and(|times| times.backend_request_ends_attempts);
    if field == Field::Attempt && is_backend_request { Field::BackendRequest } else { field }
}

fn of_backend(field: Field, backend: &Backend) -> Word {
    let times = backend.timeouts.as_ref();
    let limits = backend.limits.as_ref();
    let retry = backend.retry.as_ref();
    let limit = |name: &str, value: fn(&Limits) -> Option<u32>| {
        let value = limits.and_then(value).map(|value| value.to_string());
        (value, limits.and_then(|limits| limits.sources.get(name).cloned()))
    };
    let said = match field {
        Field::Request => times.and_then(|times| times.request.as_ref()),
        Field::Connect => times.and_then(|times| times.connect.as_ref()),
        Field::StreamIdle => times.and_then(|times| times.stream_idle.as_ref()),
        Field::MaxStream => times.and_then(|times| times.max_stream_duration.as_ref()),
        Field::CallerDeadline => times.and_then(|times| times.caller_deadline.as_ref()),
        Field::Overload => backend.overload.as_ref(),
        Field::Abort => backend.fault_abort.as_ref(),
        Field::Attempt => {
            let time = retry.and_then(|retry| retry.per_try_timeout.clone());
            let source = retry.and_then(|retry| retry.sources.get("perTryTimeout").cloned());
            return (time, source);
        }
        Field::BackendRequest => times.and_then(|times| times.backend_request.as_ref()),
        Field::Retry => {
            let said = |retry: &Retry| format!("{} more attempts", retry.attempts);
            let author = |retry: &Retry| retry.sources.get("attempts").or(retry.source.as_ref()).cloned();
            return (retry.map(said), retry.and_then(author));
        }
        Field::MaxConnections => return limit("maxConnections", |limits| limits.max_connections),
        Field::MaxPending => return limit("maxPendingRequests", |limits| limits.max_pending_requests),
        Field::MaxRequests => return limit("maxRequests", |limits| limits.max_requests),
        Field::MaxRetries => return limit("maxRetries", |limits| limits.max_retries),
        Field::ConnectionsPerEndpoint => {
            return limit("perEndpoint.maxConnections", |limits| limits.per_endpoint.max_connections);
        }
        Field::PendingPerEndpoint => {
            let most = |limits: &Limits| limits.per_endpoint.max_pending_requests;
            return limit("perEndpoint.maxPendingRequests", most);
        }
        Field::RequestsPerEndpoint => {
            return limit("perEndpoint.maxRequests", |limits| limits.per_endpoint.max_requests);
        }
        Field::RetriesPerEndpoint => {
            return limit("perEndpoint.maxRetries", |limits| limits.per_endpoint.max_retries);
        }
        Field::Breaker => {
            let breaker = backend.circuit_breaker.as_ref();
            return (breaker.map(told), breaker.and_then(|breaker| breaker.source.clone()));
        }
        Field::Admission => {
            let admission = backend.admission_control.as_ref();
            let said = admission.map(|said| {
                format!(
                    "up to {} % when less than {} % of the calls of {} succeed",
                    said.max_rejection_probability, said.success_rate_threshold, said.sampling_window
                )
            });
            return (said, admission.and_then(|said| said.source.clone()));
        }
        Field::None | Field::RateLimit | Field::Authorization | Field::Flag(_) => None,
    };
    word(said)
}

/// The rates that open it, where they do.
fn told(breaker: &Breaker) -> String {
    if matches!(&*breaker.mode, "ForcedOpen" | "ForcedClosed") {
        return breaker.mode.clone();
    }
    let rate = |what: &str, percent: Option<u32>| percent.map(|percent| format!("{what} {percent} %"));
    let rates = [rate("failurePercent", breaker.failure_percent), rate("slowCalls", breaker.slow_percent)];
    let rates: Vec<String> = rates.into_iter().flatten().collect();
    format!(
        "{}, {} of at least {} calls, open for {}",
        breaker.mode,
        rates.join(", "),
        breaker.minimum_calls,
        breaker.open_time
    )
}
