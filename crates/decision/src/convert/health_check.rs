//! How endpoints are asked whether they serve.

use std::time::Duration;

use meshwork_messages::v1;
use meshwork_messages::v1::health_check::{Http, Probe, StatusRange};

use super::policy::or;
use super::{Result, unknown, value};
use crate::health_check::{HealthCheck, HealthProbe};

/// What the interval is where nobody says it, in milliseconds.
const INTERVAL_MS: u32 = 3_000;
const TIMEOUT_MS: u32 = 1_000;

pub(super) fn health_check(message: &v1::HealthCheck) -> Result<HealthCheck> {
    let probe = match message.probe.as_ref().ok_or_else(|| unknown("health_check.probe"))? {
        Probe::Http(message) => http(message)?,
        Probe::Tcp(message) => {
            HealthProbe::Tcp { send: Box::from(&message.send[..]), receive: Box::from(&message.receive[..]) }
        }
        Probe::Grpc(message) => HealthProbe::Grpc { service: message.service.as_str().into() },
    };
    let millis = |millis: u32| Duration::from_millis(millis.into());
    let interval = or(message.interval_ms, INTERVAL_MS);
    Ok(HealthCheck {
        probe,
        interval: millis(interval),
        interval_jitter: millis(message.interval_jitter_ms.unwrap_or(interval / 10)),
        timeout: millis(or(message.timeout_ms, TIMEOUT_MS)),
        no_traffic_interval: millis(or(message.no_traffic_interval_ms, interval)),
        unhealthy_threshold: or(message.unhealthy_threshold, 3),
        healthy_threshold: or(message.healthy_threshold, 1),
    })
}

fn http(message: &Http) -> Result<HealthProbe> {
    if !message.path.starts_with('/') {
        return value("health_check.http.path", &message.path, "write a path that begins with `/`");
    }
    if message.method == "CONNECT" {
        return value("health_check.http.method", &message.method, "write another method");
    }
    let status = |number: u32| match u16::try_from(number) {
        Ok(status @ 100..=600) => Ok(status),
        _ => value("health_check.http.expected", number, "write 100 to 600"),
    };
    let ok = [StatusRange { start: 200, end: 201 }];
    let ranges = if message.expected.is_empty() { &ok[..] } else { &message.expected[..] };
    let expected: Box<[_]> =
        ranges.iter().map(|range| Ok(status(range.start)?..status(range.end)?)).collect::<Result<_>>()?;
    if expected.iter().any(|range| range.is_empty()) {
        return value("health_check.http.expected", "", "write no range that is empty");
    }
    Ok(HealthProbe::Http {
        method: if message.method.is_empty() { "GET".into() } else { message.method.as_str().into() },
        path: message.path.as_str().into(),
        host: (!message.host.is_empty()).then(|| message.host.as_str().into()),
        expected,
    })
}
