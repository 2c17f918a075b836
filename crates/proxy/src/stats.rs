//! What this proxy has counted, by service, for `top`.

use meshwork_base::Tick;
use meshwork_decision::{BreakerView, Guard, Snapshot};
use meshwork_messages::v1;
use meshwork_telemetry::MetricsRegistry;
use meshwork_telemetry::metrics::DURATION_BOUNDS_MS;

use crate::standing::endpoint_breakers;

/// Counters, and the states of circuit breakers and of what is kept from overload at this moment.
pub(crate) fn of(metrics: &MetricsRegistry, snapshot: &Snapshot, now: Tick) -> v1::Stats {
    let services = metrics.by_service().into_iter().map(|((reporter, service), tally)| v1::ServiceStats {
        service,
        reporter: reporter.to_owned(),
        requests: tally.requests,
        failed: tally.failed,
        buckets: tally.buckets,
    });
    let of_services = snapshot.clusters().flat_map(|cluster| {
        let of = |view: &BreakerView| v1::BreakerState {
            service: cluster.name.to_string(),
            port: cluster.key.port.into(),
            ..breaker(view)
        };
        let view = cluster.breaker(now);
        let own = view.is_in_use().then(|| of(&view));
        let each = endpoint_breakers(cluster, now);
        let each = each.tripped.into_iter().chain(each.nearest);
        let each = each.map(|(endpoint, view)| v1::BreakerState {
            address: endpoint.address().to_string(),
            ..of(&view)
        });
        own.into_iter().chain(each).collect::<Vec<_>>()
    });
    let of_routes = snapshot
        .route_breakers()
        .iter()
        .map(|route| v1::BreakerState { route: route.name.to_string(), ..breaker(&route.view(now)) });
    let admissions = snapshot.clusters().filter_map(|cluster| {
        let view = cluster.admissions(now)?;
        Some(v1::AdmissionState {
            service: cluster.name.to_string(),
            port: cluster.key.port.into(),
            rejection_percent: view.rejection_percent,
            headroom_percent: view.headroom,
        })
    });
    let called = snapshot
        .clusters()
        .filter_map(|cluster| Some(overload(&cluster.name, cluster.key.port, cluster.guard()?, now)));
    let served = snapshot.inbounds().flat_map(|inbound| &inbound.ports);
    let served =
        served.filter_map(|port| Some(overload(&port.key.service, port.key.port, port.guard()?, now)));
    v1::Stats {
        bounds_ms: DURATION_BOUNDS_MS.to_vec(),
        services: services.collect(),
        breakers: of_services.chain(of_routes).collect(),
        admissions: admissions.collect(),
        overloads: called.chain(served).collect(),
    }
}

fn breaker(view: &BreakerView) -> v1::BreakerState {
    v1::BreakerState {
        state: view.in_effect().as_str().to_owned(),
        observed: view.observed().map_or("", |state| state.as_str()).to_owned(),
        headroom_percent: view.headroom,
        ..v1::BreakerState::default()
    }
}

fn overload(service: &str, port: u16, (gate, _): Guard<'_>, now: Tick) -> v1::OverloadState {
    let view = gate.view(now);
    v1::OverloadState {
        service: service.to_owned(),
        port: port.into(),
        in_flight: view.in_flight,
        limit: view.limit,
        queued: view.queued,
        shed: view.tally.shed.iter().flatten().sum(),
    }
}
