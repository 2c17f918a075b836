//! How endpoints are asked whether they serve.

use meshwork_messages::v1;
use meshwork_messages::v1::health_check::{Grpc, Http, Probe, StatusRange, Tcp};
use meshwork_resources::{HTTPMethod, HealthCheck, HttpHealthCheck};

use crate::rule::millis;

/// What the interval is where nobody says it, in milliseconds.
const INTERVAL_MS: u32 = 3_000;
const TIMEOUT_MS: u32 = 1_000;

pub(super) fn message(spec: &HealthCheck) -> v1::HealthCheck {
    let interval_ms = spec.interval.as_ref().map_or(INTERVAL_MS, |interval| millis(interval.inner).max(1));
    let probe = match (&spec.http, &spec.tcp, &spec.grpc) {
        (Some(http_check), _, _) => Some(Probe::Http(http(http_check))),
        (_, Some(tcp), _) => {
            let bytes = |text: &Option<String>| text.as_ref().map(|text| text.clone().into());
            Some(Probe::Tcp(Tcp {
                send: bytes(&tcp.send).unwrap_or_default(),
                receive: bytes(&tcp.receive).unwrap_or_default(),
            }))
        }
        (_, _, Some(grpc)) => Some(Probe::Grpc(Grpc { service: grpc.service.clone().unwrap_or_default() })),
        (None, None, None) => None,
    };
    v1::HealthCheck {
        probe,
        interval_ms,
        interval_jitter_ms: spec.interval_jitter.map_or(interval_ms / 10, millis),
        timeout_ms: spec.timeout.as_ref().map_or(TIMEOUT_MS, |timeout| millis(timeout.inner).max(1)),
        no_traffic_interval_ms: spec
            .no_traffic_interval
            .as_ref()
            .map_or(interval_ms, |interval| millis(interval.inner).max(1)),
        unhealthy_threshold: spec.unhealthy_threshold.unwrap_or(3),
        healthy_threshold: spec.healthy_threshold.unwrap_or(1),
    }
}

fn http(spec: &HttpHealthCheck) -> Http {
    let range = |start, end| StatusRange { start, end };
    let written = spec.expected_statuses.iter().map(|said| range(said.start, said.end));
    let method = spec.method.as_ref().map_or(HTTPMethod::Get, |method| method.inner);
    Http {
        method: method.as_str().to_owned(),
        path: spec.path.inner.clone(),
        host: spec.host.as_ref().map(ToString::to_string).unwrap_or_default(),
        expected: if spec.expected_statuses.is_empty() { vec![range(200, 201)] } else { written.collect() },
    }
}
