//! What this proxy has counted, by service, for `top`.

use meshwork_base::Tick;
use meshwork_decision::{Guard, Snapshot};
use meshwork_messages::v1;
use meshwork_telemetry::MetricsRegistry;
use meshwork_telemetry::metrics::DURATION_BOUNDS_MS;

/// Counters, and the states of circuit breakers and of what is kept from overload at this moment.
pub(crate) fn of(metrics: &MetricsRegistry, snapshot: &Snapshot, now: Tick) -> v1::Stats {
    let services = metrics.by_service().into_iter().map(|((reporter, service), tally)| v1::ServiceStats {
        service,
        reporter: reporter.to_owned(),
        requests: tally.requests,
        failed: tally.failed,
        buckets: tally.buckets,
    });
    let breakers = snapshot.clusters().filter_map(|cluster| {
        let view = cluster.breaker(now);
        let is_there = view.is_in_use();
        is_there.then(|| v1::BreakerState {
            service: cluster.name.to_string(),
            port: cluster.key.port.into(),
            state: view.in_effect().as_str().to_owned(),
        })
    });
    let called = snapshot
        .clusters()
        .filter_map(|cluster| Some(overload(&cluster.name, cluster.key.port, cluster.guard()?)));
    let served = snapshot.inbounds().flat_map(|inbound| &inbound.ports);
    let served = served.filter_map(|port| Some(overload(&port.key.service, port.key.port, port.guard()?)));
    v1::Stats {
        bounds_ms: DURATION_BOUNDS_MS.to_vec(),
        services: services.collect(),
        breakers: breakers.collect(),
        overloads: called.chain(served).collect(),
    }
}

fn overload(service: &str, port: u16, (gate, _): Guard<'_>) -> v1::OverloadState {
    let view = gate.view();
    v1::OverloadState {
        service: service.to_owned(),
        port: port.into(),
        in_flight: view.in_flight,
        limit: view.limit,
        queued: view.queued,
        shed: view.tally.shed.iter().flatten().sum(),
    }
}
