//! What is told of services when somebody scrapes: numbers that the snapshot's clusters hold anyhow.

use std::sync::{Arc, Weak};

use meshwork_base::{Clock as _, Tick};
use meshwork_decision::{
    BreakerMode, BreakerState, BreakerView, Checked, Cluster, Guard, Limited, Priority, RouteBreaker, Shed,
};
use meshwork_messages::v1;
use meshwork_telemetry::{Samples, inventory};

use crate::engine::Shared;
use crate::standing::{EndpointBreakers, endpoint_breakers, limits_per_endpoint};

/// Tells them as long as the engine lives.
pub(crate) fn tell(shared: &Arc<Shared>) {
    let weak: Weak<Shared> = Arc::downgrade(shared);
    shared.metrics.ask(move |samples| {
        if let Some(shared) = weak.upgrade() {
            let now = shared.clock.now();
            of_memory(&shared, samples);
            of_windows(&shared, samples);
            if let Some(identity) = &shared.mesh.identity {
                let remaining = identity.remaining().as_secs();
                samples.tell(&inventory::SVID_REMAINING, &[identity.id().as_str()], remaining);
            }
            let snapshot = shared.snapshot.load();
            snapshot.clusters().for_each(|cluster| of_cluster(cluster, now, samples));
            snapshot.route_breakers().iter().for_each(|breaker| of_route(breaker, now, samples));
            let ports = snapshot.inbounds().flat_map(|inbound| &inbound.ports);
            let of_apps = ports.filter_map(|port| Some((&*port.key.service, port.key.port, port.guard()?)));
            let clusters = snapshot.clusters();
            let of_services =
                clusters.filter_map(|cluster| Some((&*cluster.name, cluster.key.port, cluster.guard()?)));
            of_apps.chain(of_services).for_each(|(service, port, guard)| {
                of_gate([service, &port.to_string()], (guard, now), samples);
            });
        }
    });
}

fn of_memory(shared: &Shared, samples: &mut Samples) {
    let Some(limit) = shared.settings.max_memory else { return };
    samples.tell(&inventory::OVERLOAD_MEMORY_LIMIT, &[], limit);
    if let Some(used) = shared.settings.memory.used() {
        samples.tell(&inventory::OVERLOAD_MEMORY_USED, &[], used);
    }
    samples.tell(&inventory::OVERLOAD_MEMORY_PRESSURE, &[shared.memory.get().as_str()], 1);
}

fn of_windows(shared: &Shared, samples: &mut Samples) {
    let windows = shared.memory.windows();
    samples.tell(&inventory::HTTP2_WINDOWS, &[], windows.taken());
    samples.tell(&inventory::HTTP2_WINDOWS_LIMIT, &[], windows.most());
    samples.tell(&inventory::HTTP2_WINDOWS_REFUSED, &[], windows.refused());
}

fn of_cluster(cluster: &Cluster, now: Tick, samples: &mut Samples) {
    let port = cluster.key.port.to_string();
    let labels = [&*cluster.name, &*port];
    for tier in cluster.tiers(now) {
        let priority = tier.rank.priority.to_string();
        let labels = [&*cluster.name, &*port, &*priority, tier.rank.distance.as_str()];
        samples.tell(&inventory::TIER_SHARE, &labels, tier.share.into());
        samples.tell(&inventory::TIER_WELL, &labels, tier.well as u64);
    }
    if cluster.health_check.is_some() {
        checked(cluster, labels, samples);
    }
    if cluster.outlier_detection.is_some() || cluster.health_check.is_some() {
        samples.tell(&inventory::PANIC, &labels, cluster.panics(now).into());
    }
    if cluster.outlier_detection.is_some() {
        let out = cluster.endpoints().pickable().iter().filter(|endpoint| endpoint.stats.is_out()).count();
        samples.tell(&inventory::ENDPOINTS_EJECTED, &labels, out as u64);
    }
    of_breakers(cluster, now, labels, samples);
    of_limits(cluster, labels, samples);
}

/// What holds calls back for a while.
fn of_breakers(cluster: &Cluster, now: Tick, labels: [&str; 2], samples: &mut Samples) {
    let [service, port] = labels;
    if cluster.endpoint_breaker.is_some() {
        let EndpointBreakers { counts, nearest, .. } = endpoint_breakers(cluster, now);
        if let Some(headroom) = nearest.and_then(|(_, view)| view.headroom) {
            samples.tell(&inventory::ENDPOINT_BREAKER_HEADROOM, &labels, headroom.into());
        }
        for (state, count) in BreakerState::ALL.into_iter().zip(counts) {
            samples.tell(&inventory::ENDPOINT_BREAKERS, &[service, port, state.as_str()], count);
        }
    }
    let view = cluster.breaker(now);
    if view.is_in_use() {
        let state = view.in_effect().as_str();
        samples.tell(&inventory::BREAKER_STATE, &[service, port, state], 1);
    }
    if let Some(headroom) = view.headroom {
        samples.tell(&inventory::BREAKER_HEADROOM, &labels, headroom.into());
    }
    if view.mode.is_some() || view.refused > 0 {
        samples.tell(&inventory::BREAKER_REJECTED, &labels, view.refused);
    }
    if observes(&view) {
        samples.tell(&inventory::BREAKER_SPARED, &labels, view.spared);
    }
    if let Some(view) = cluster.admissions(now) {
        samples.tell(&inventory::ADMISSION_REJECTED, &labels, view.refused);
        samples.tell(&inventory::ADMISSION_PERCENT, &labels, view.rejection_percent.into());
        if let Some(headroom) = view.headroom {
            samples.tell(&inventory::ADMISSION_HEADROOM, &labels, headroom.into());
        }
    }
}

fn of_limits(cluster: &Cluster, [service, port]: [&str; 2], samples: &mut Samples) {
    for what in Limited::ALL {
        let limit = what.as_str();
        let (is_said, refused) = (cluster.limits.of(what).is_some(), cluster.refused(what));
        if let Some(allowed) = cluster.told_limit(what) {
            let headroom = allowed.saturating_sub(cluster.in_use(what));
            samples.tell(&inventory::LIMIT_HEADROOM, &[service, port, limit], headroom.into());
        }
        // Also what the limit of one endpoint has refused.
        if is_said || refused > 0 {
            samples.tell(&inventory::LIMIT_REJECTED, &[service, port, limit], refused);
        }
    }
    let limits = &cluster.limits;
    let is_said = limits.max_connections.or(limits.max_connections_per_endpoint).is_some();
    if is_said || cluster.awaited() > 0 {
        let limit = Limited::Connection.as_str();
        samples.tell(&inventory::LIMIT_WAITED, &[service, port, limit], cluster.awaited());
    }
    for v1::LimitStanding { limit, allowed, in_use, .. } in limits_per_endpoint(cluster) {
        let headroom = allowed.saturating_sub(in_use);
        samples.tell(&inventory::LIMIT_HEADROOM, &[service, port, &*limit], headroom.into());
    }
}

fn of_route(breaker: &RouteBreaker, now: Tick, samples: &mut Samples) {
    let (route, view) = (&*breaker.name, breaker.view(now));
    samples.tell(&inventory::ROUTE_BREAKER_STATE, &[route, view.in_effect().as_str()], 1);
    samples.tell(&inventory::ROUTE_BREAKER_REJECTED, &[route], view.refused);
    if observes(&view) {
        samples.tell(&inventory::ROUTE_BREAKER_SPARED, &[route], view.spared);
    }
    if let Some(headroom) = view.headroom {
        samples.tell(&inventory::ROUTE_BREAKER_HEADROOM, &[route], headroom.into());
    }
}

/// Whether it does, or has done so.
fn observes(view: &BreakerView) -> bool {
    view.mode == Some(BreakerMode::Observe) || view.spared > 0
}

fn checked(cluster: &Cluster, [service, port]: [&str; 2], samples: &mut Samples) {
    let set = cluster.endpoints();
    for state in [Checked::Healthy, Checked::Unhealthy, Checked::Unknown] {
        let count = set.pickable().iter().filter(|endpoint| endpoint.stats.checked() == state).count();
        samples.tell(&inventory::HEALTH_STATES, &[service, port, state.as_str()], count as u64);
    }
}

fn of_gate([service, port]: [&str; 2], ((gate, _), now): (Guard<'_>, Tick), samples: &mut Samples) {
    let view = gate.view(now);
    samples.tell(&inventory::OVERLOAD_LIMIT, &[service, port], view.limit.into());
    samples.tell(&inventory::OVERLOAD_IN_FLIGHT, &[service, port], view.in_flight.into());
    samples.tell(&inventory::OVERLOAD_QUEUED, &[service, port], view.queued.into());
    let min_rtt = view.min_rtt.map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    samples.tell(&inventory::OVERLOAD_MIN_RTT, &[service, port], min_rtt);
    for priority in Priority::ALL {
        let (passed, shed) = (view.tally.passed[priority as usize], view.tally.shed[priority as usize]);
        let priority = priority.as_str();
        if passed > 0 {
            samples.tell(&inventory::OVERLOAD_PASSED, &[service, port, priority], passed);
        }
        for reason in Shed::ALL.into_iter().filter(|&reason| shed[reason as usize] > 0) {
            samples.tell(
                &inventory::OVERLOAD_SHED,
                &[service, port, priority, reason.as_str()],
                shed[reason as usize],
            );
        }
    }
}
