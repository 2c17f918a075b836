//! How endpoints are asked whether they serve.

use std::time::Duration;

use meshwork_messages::v1;
use meshwork_messages::v1::health_check::{Http, Probe};

use super::{Result, unknown, value};
use crate::health_check::{HealthCheck, HealthProbe};

pub(super) fn health_check(message: &v1::HealthCheck) -> Result<HealthCheck> {
    let numbers = [
        ("interval_ms", message.interval_ms),
        ("timeout_ms", message.timeout_ms),
        ("no_traffic_interval_ms", message.no_traffic_interval_ms),
        ("unhealthy_threshold", message.unhealthy_threshold),
        ("healthy_threshold", message.healthy_threshold),
    ];
    for (at, number) in numbers {
        if number == 0 {
            return value(format!("health_check.{at}"), number, "write at least 1");
        }
    }
    let probe = match message.probe.as_ref().ok_or_else(|| unknown("health_check.probe"))? {
        Probe::Http(message) => http(message)?,
        Probe::Tcp(message) => {
            HealthProbe::Tcp { send: Box::from(&message.send[..]), receive: Box::from(&message.receive[..]) }
        }
        Probe::Grpc(message) => HealthProbe::Grpc { service: message.service.as_str().into() },
    };
    let millis = |millis: u32| Duration::from_millis(millis.into());
    Ok(HealthCheck {
        probe,
        interval: millis(message.interval_ms),
        interval_jitter: millis(message.interval_jitter_ms),
        timeout: millis(message.timeout_ms),
        no_traffic_interval: millis(message.no_traffic_interval_ms),
        unhealthy_threshold: message.unhealthy_threshold,
        healthy_threshold: message.healthy_threshold,
    })
}

fn http(message: &Http) -> Result<HealthProbe> {
    if !message.path.starts_with('/') {
        return value("health_check.http.path", &message.path, "write a path that begins with `/`");
    }
    if message.method.is_empty() || message.method == "CONNECT" {
        return value("health_check.http.method", &message.method, "write a method, and not CONNECT");
    }
    let status = |number: u32| match u16::try_from(number) {
        Ok(status @ 100..=600) => Ok(status),
        _ => value("health_check.http.expected", number, "write 100 to 600"),
    };
    let expected: Box<[_]> = message
        .expected
        .iter()
        .map(|range| Ok(status(range.start)?..status(range.end)?))
        .collect::<Result<_>>()?;
    if expected.is_empty() || expected.iter().any(|range| range.is_empty()) {
        return value("health_check.http.expected", "", "write at least one range, and none that is empty");
    }
    Ok(HealthProbe::Http {
        method: message.method.as_str().into(),
        path: message.path.as_str().into(),
        host: (!message.host.is_empty()).then(|| message.host.as_str().into()),
        expected,
    })
}
