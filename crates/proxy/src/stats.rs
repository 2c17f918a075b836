//! What this proxy has counted, by service, for `top`.

use meshwork_decision::Snapshot;
use meshwork_messages::v1;
use meshwork_telemetry::MetricsRegistry;
use meshwork_telemetry::metrics::DURATION_BOUNDS_MS;

/// Counters and the states of circuit breakers at this moment.
pub(crate) fn of(metrics: &MetricsRegistry, snapshot: &Snapshot) -> v1::Stats {
    let services = metrics.by_service().into_iter().map(|((reporter, service), tally)| v1::ServiceStats {
        service,
        reporter: reporter.to_owned(),
        requests: tally.requests,
        failed: tally.failed,
        buckets: tally.buckets,
    });
    let with_breaker = snapshot.clusters().filter(|cluster| cluster.circuit_breaker.is_some());
    let breakers = with_breaker.map(|cluster| v1::BreakerState {
        service: cluster.key.service.to_string(),
        port: cluster.key.port.into(),
        state: cluster.breaker_state().as_str().to_owned(),
    });
    v1::Stats {
        bounds_ms: DURATION_BOUNDS_MS.to_vec(),
        services: services.collect(),
        breakers: breakers.collect(),
    }
}
