//! How services stand here, told to an operator who asks: breakers, limits, who is ejected, and whether there is memory.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Clock as _, Tick};
use meshwork_decision::{
    BreakerMode, BreakerState, BreakerView, Cluster, Endpoint, EndpointStats, Guard, InboundPort, Limited,
    RouteBreaker, Shed,
};
use meshwork_messages::v1;

use crate::engine::Shared;

/// Services in one observation, so that a message stays far below gRPC's limit of 4 MiB.
const SERVICES: usize = 256;

/// Everything there is to tell, and then that there is nothing more.
pub(crate) fn answers(probe: u64, shared: &Shared) -> Vec<v1::Observation> {
    let now = shared.clock.now();
    let snapshot = shared.snapshot.load();
    let apps = snapshot.inbounds().flat_map(|inbound| &inbound.ports).filter_map(|port| of_app(port, now));
    let called = snapshot.clusters().filter_map(|cluster| of_cluster(cluster, now));
    let services: Vec<_> = called.chain(apps).collect();
    let of_memory = v1::Standings { memory: memory(shared), ..v1::Standings::default() };
    let of_services = services
        .chunks(SERVICES)
        .map(|some| v1::Standings { services: some.to_vec(), ..v1::Standings::default() });
    let of_routes = snapshot.route_breakers().chunks(SERVICES).map(|some| v1::Standings {
        routes: some.iter().map(|breaker| of_route(breaker, now)).collect(),
        ..v1::Standings::default()
    });
    let told = std::iter::once(of_memory)
        .chain(of_services)
        .chain(of_routes)
        .map(|standings| v1::Observation { probe, standings: Some(standings), ..v1::Observation::default() });
    let done = v1::Done {
        workers: u32::try_from(shared.settings.workers).unwrap_or(u32::MAX),
        ..v1::Done::default()
    };
    let done = v1::Observation { probe, done: Some(done), ..v1::Observation::default() };
    told.chain([done]).collect()
}

fn of_route(route: &RouteBreaker, now: Tick) -> v1::RouteStanding {
    v1::RouteStanding { route: route.name.to_string(), breaker: Some(breaker(&route.view(now), now)) }
}

fn memory(shared: &Shared) -> Option<v1::MemoryStanding> {
    Some(v1::MemoryStanding {
        limit_bytes: shared.settings.max_memory?,
        resident_bytes: shared.settings.memory.used().unwrap_or_default(),
        pressure: shared.memory.get().as_str().to_owned(),
    })
}

/// What the application beside us gets at once, where a policy says that.
fn of_app(port: &InboundPort, now: Tick) -> Option<v1::ServiceStanding> {
    Some(v1::ServiceStanding {
        service: port.key.service.to_string(),
        port: port.key.port.into(),
        limits: overload(port.guard()?, now),
        ..v1::ServiceStanding::default()
    })
}

/// How many are under way and how many wait; nothing before the first request.
fn overload((gate, policy): Guard<'_>, now: Tick) -> Vec<v1::LimitStanding> {
    let view = gate.view(now);
    let shed = |reasons: &[Shed]| -> u64 {
        let of =
            |shed: &[u64; Shed::ALL.len()]| reasons.iter().map(|&reason| shed[reason as usize]).sum::<u64>();
        view.tally.shed.iter().map(of).sum()
    };
    let limit = |limit: &str, in_use, allowed, rejected| v1::LimitStanding {
        limit: limit.to_owned(),
        in_use,
        allowed,
        rejected,
        shedding: String::new(),
    };
    let most = policy.queue.max_requests;
    let at_once = v1::LimitStanding {
        shedding: gate.sheds(now).map_or("", Shed::as_str).to_owned(),
        ..limit("overload.adaptiveConcurrency", view.in_flight, view.limit, shed(&Shed::ALL))
    };
    let waiting =
        limit("overload.queue.maxRequests", view.queued, most, shed(&[Shed::QueueFull, Shed::Preempted]));
    // 0 would say that there is no limit.
    [at_once, waiting].into_iter().filter(|limit| limit.allowed > 0 && view.limit > 0).collect()
}

/// `None` where neither a policy nor an operator nor a refusal gives anything to tell.
fn of_cluster(cluster: &Cluster, now: Tick) -> Option<v1::ServiceStanding> {
    let view = cluster.breaker(now);
    let limits = Limited::ALL.iter().filter_map(|&what| limit(cluster, what));
    let limits: Vec<_> = limits
        .chain(limits_per_endpoint(cluster))
        .chain(cluster.guard().map(|guard| overload(guard, now)).unwrap_or_default())
        .collect();
    let has_breaker = view.is_in_use();
    let watches = cluster.outlier_detection.is_some() || cluster.health_check.is_some();
    let breaks_endpoints = cluster.endpoint_breaker.is_some();
    let admission = cluster.admissions(now);
    if !has_breaker && limits.is_empty() && !watches && !breaks_endpoints && admission.is_none() {
        return None;
    }
    let set = cluster.endpoints();
    let EndpointBreakers { tripped, nearest, .. } = endpoint_breakers(cluster, now);
    let of_endpoint = |(endpoint, view): (Arc<Endpoint>, BreakerView)| v1::EndpointBreaker {
        address: endpoint.address().to_string(),
        instance: endpoint.instance.to_string(),
        breaker: Some(breaker(&view, now)),
    };
    Some(v1::ServiceStanding {
        tripped: tripped.into_iter().map(of_endpoint).collect(),
        nearest: nearest.map(of_endpoint),
        service: cluster.name.to_string(),
        port: cluster.key.port.into(),
        breaker: has_breaker.then(|| breaker(&view, now)),
        limits,
        admission: admission.map(|view| v1::AdmissionStanding {
            rejection_percent: view.rejection_percent,
            calls: view.calls,
            failed: view.failed,
            rejected: view.refused,
            success_rate_threshold: view.threshold,
            headroom_percent: view.headroom,
            state: view.state.as_str().to_owned(),
            cause: view.cause.map_or("", |cause| cause.as_str()).to_owned(),
        }),
        ejected: set.pickable().iter().filter_map(|endpoint| ejected(endpoint, now)).collect(),
        failing: set.pickable().iter().filter_map(|endpoint| failing(endpoint)).collect(),
        endpoints: u32::try_from(set.pickable().len()).unwrap_or(u32::MAX),
    })
}

/// Of a service whose endpoints have breakers of their own.
#[derive(Default)]
pub(crate) struct EndpointBreakers {
    /// How many there are by the state that calls meet: closed, open, half-open.
    pub(crate) counts: [u64; 3],
    /// Those that are not closed, and where a policy only observes those that would not be.
    pub(crate) tripped: Vec<(Arc<Endpoint>, BreakerView)>,
    /// The one of the others that has the least headroom.
    pub(crate) nearest: Option<(Arc<Endpoint>, BreakerView)>,
}

/// Each is looked at once: it is locked for that.
pub(crate) fn endpoint_breakers(cluster: &Cluster, now: Tick) -> EndpointBreakers {
    let mut all = EndpointBreakers::default();
    let Some(policy) = &cluster.endpoint_breaker else { return all };
    let left = |view: &BreakerView| view.headroom.unwrap_or(u32::MAX);
    for endpoint in cluster.endpoints().pickable() {
        let view = endpoint.stats.breaker(policy, now);
        let state = view.in_effect();
        all.counts[state as usize] += 1;
        if state != BreakerState::Closed || view.observed().is_some() {
            all.tripped.push((Arc::clone(endpoint), view));
        } else if all.nearest.as_ref().is_none_or(|(_, nearest)| left(&view) < left(nearest)) {
            all.nearest = Some((Arc::clone(endpoint), view));
        }
    }
    all
}

fn breaker(view: &BreakerView, now: Tick) -> v1::BreakerStanding {
    let mode = view.mode.map_or("", |mode| match mode {
        BreakerMode::Enforce => "enforce",
        BreakerMode::Observe => "observe",
        BreakerMode::ForcedOpen => "forced_open",
        BreakerMode::ForcedClosed => "forced_closed",
    });
    v1::BreakerStanding {
        state: view.in_effect().as_str().to_owned(),
        rates: view.state.as_str().to_owned(),
        mode: mode.to_owned(),
        cause: view.cause.map_or("", |cause| cause.as_str()).to_owned(),
        open_ms_left: view.until.map_or(0, |until| millis(until.since(now))),
        forced: view.forced.map_or("", |(forced, _)| forced.state().as_str()).to_owned(),
        forced_ms_left: view.forced.map_or(0, |(_, until)| millis(until.since(now))),
        calls: view.calls,
        failed: view.failed,
        slow: view.slow,
        rejected: view.refused,
        would_reject: view.spared,
        headroom_percent: view.headroom,
    }
}

fn limit(cluster: &Cluster, what: Limited) -> Option<v1::LimitStanding> {
    Some(v1::LimitStanding {
        limit: what.as_str().to_owned(),
        in_use: cluster.in_use(what),
        allowed: cluster.told_limit(what)?,
        rejected: cluster.refused(what),
        shedding: String::new(),
    })
}

/// A limit of each endpoint's, how much it is, and how much of it one has in use.
type PerEndpoint = (Limited, Option<u32>, fn(&EndpointStats) -> u32);

/// Of each, the endpoint that is nearest to its own limit. Refusals are counted together, with those of the service's limit
/// where it has one.
pub(crate) fn limits_per_endpoint(cluster: &Cluster) -> impl Iterator<Item = v1::LimitStanding> {
    let (limits, set) = (cluster.limits, cluster.endpoints());
    let most = move |count: fn(&EndpointStats) -> u32| {
        set.all().iter().map(|endpoint| count(&endpoint.stats)).max().unwrap_or_default()
    };
    let each: [PerEndpoint; 4] = [
        (Limited::Connection, limits.max_connections_per_endpoint, EndpointStats::connections),
        (Limited::Pending, limits.max_pending_requests_per_endpoint, EndpointStats::pending),
        (Limited::Request, limits.max_requests_per_endpoint, EndpointStats::in_flight),
        (Limited::Retry, limits.max_retries_per_endpoint, EndpointStats::retries),
    ];
    each.into_iter().filter_map(move |(what, allowed, in_use)| {
        // Without a limit nobody walks through all endpoints.
        let allowed = allowed?;
        let is_alone = cluster.limits.of(what).is_none();
        Some(v1::LimitStanding {
            limit: format!("perEndpoint.{}", what.as_str()),
            in_use: most(in_use),
            allowed,
            rejected: if is_alone { cluster.refused(what) } else { 0 },
            shedding: String::new(),
        })
    })
}

fn ejected(endpoint: &Endpoint, now: Tick) -> Option<v1::EjectedEndpoint> {
    let cause = endpoint.stats.ejection_cause()?;
    Some(v1::EjectedEndpoint {
        address: endpoint.address().to_string(),
        instance: endpoint.instance.to_string(),
        cause: cause.as_str().to_owned(),
        count: endpoint.stats.ejections(),
        ms_left: millis(endpoint.stats.ejected_until().since(now)),
    })
}

fn failing(endpoint: &Endpoint) -> Option<v1::FailingEndpoint> {
    let (state, why) = match endpoint.stats.check_failure() {
        Some(why) => ("unhealthy", why.to_string()),
        None if endpoint.stats.is_out_for_all() => {
            ("ejected_for_all", format!("{} of its callers have ejected it", endpoint.ejected_by))
        }
        None => return None,
    };
    Some(v1::FailingEndpoint {
        address: endpoint.address().to_string(),
        instance: endpoint.instance.to_string(),
        why,
        state: state.to_owned(),
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
