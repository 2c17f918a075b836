//! How endpoints are asked whether they serve.

use meshwork_messages::v1;
use meshwork_messages::v1::health_check::{Grpc, Http, Probe, StatusRange, Tcp};
use meshwork_resources::{HealthCheck, HttpHealthCheck};

use crate::rule::{millis, said_ms};

pub(super) fn message(spec: &HealthCheck) -> v1::HealthCheck {
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
        interval_ms: said_ms(spec.interval.as_deref()),
        interval_jitter_ms: spec.interval_jitter.map(millis),
        timeout_ms: said_ms(spec.timeout.as_deref()),
        no_traffic_interval_ms: said_ms(spec.no_traffic_interval.as_deref()),
        unhealthy_threshold: spec.unhealthy_threshold.unwrap_or_default(),
        healthy_threshold: spec.healthy_threshold.unwrap_or_default(),
    }
}

fn http(spec: &HttpHealthCheck) -> Http {
    let range = |start, end| StatusRange { start, end };
    let written = spec.expected_statuses.iter().map(|said| range(said.start, said.end));
    Http {
        method: spec.method.as_ref().map(|method| method.inner.as_str().to_owned()).unwrap_or_default(),
        path: spec.path.inner.clone(),
        host: spec.host.as_ref().map(ToString::to_string).unwrap_or_default(),
        expected: written.collect(),
    }
}
