//! What a policy does to requests to shape them: limits of their rate, faults.

use std::sync::Arc;
use std::time::Duration;

use meshwork_messages::v1;

use super::{Result, unknown, value};
use crate::fault::{Abort, FaultInjection, Share};
use crate::origin::Origin;
use crate::rate_limit::{RateLimit, RateSpec};

pub(super) fn rate_limit(origin: &Arc<Origin>, message: &v1::RateLimit) -> Result<RateLimit> {
    for (at, number) in [("requests", message.requests), ("per_ms", message.per_ms), ("burst", message.burst)]
    {
        if number == 0 {
            return value(format!("rate_limit.{at}"), number, "write at least 1");
        }
    }
    let spec = RateSpec {
        requests: message.requests,
        per: Duration::from_millis(message.per_ms.into()),
        burst: message.burst,
        fair_share: message.fair_share,
        shadow: message.shadow,
    };
    Ok(RateLimit::new(Arc::clone(origin), spec))
}

pub(super) fn fault(origin: &Arc<Origin>, message: &v1::FaultInjection) -> Result<FaultInjection> {
    let field = |field: &v1::Field| (field.name.to_ascii_lowercase().into(), field.value.as_str().into());
    let delay = |delay: &v1::fault_injection::Delay| -> Result<_> {
        Ok((
            share("fault_injection.delay", delay.share.as_ref())?,
            Duration::from_millis(delay.time_ms.into()),
        ))
    };
    let bandwidth = |bandwidth: &v1::fault_injection::Bandwidth| {
        if bandwidth.bytes_per_second == 0 {
            return value("fault_injection.bandwidth.bytes_per_second", 0, "write at least 1");
        }
        Ok((share("fault_injection.bandwidth", bandwidth.share.as_ref())?, bandwidth.bytes_per_second))
    };
    Ok(FaultInjection {
        origin: Arc::clone(origin),
        headers: message.headers.iter().map(field).collect(),
        delay: message.delay.as_ref().map(delay).transpose()?,
        abort: message.abort.as_ref().map(abort).transpose()?,
        bandwidth: message.bandwidth.as_ref().map(bandwidth).transpose()?,
    })
}

fn abort(message: &v1::fault_injection::Abort) -> Result<(Share, Abort)> {
    use v1::fault_injection::abort::With;
    let with = match message.with {
        Some(With::Status(status)) => match u16::try_from(status) {
            Ok(status @ 200..=599) => Abort::Status(status),
            _ => return value("fault_injection.abort.status", status, "write 200 to 599"),
        },
        Some(With::GrpcStatus(status)) => match u8::try_from(status) {
            Ok(status @ 0..=16) => Abort::Grpc(status),
            _ => return value("fault_injection.abort.grpc_status", status, "write 0 to 16"),
        },
        None => return Err(unknown("fault_injection.abort.with")),
    };
    Ok((share("fault_injection.abort", message.share.as_ref())?, with))
}

/// How many of all; `at` is what is shared.
pub(super) fn share(at: &str, message: Option<&v1::Share>) -> Result<Share> {
    match message {
        Some(share) if share.denominator > 0 => {
            Ok(Share { numerator: share.numerator, denominator: share.denominator })
        }
        Some(share) => value(format!("{at}.share"), share.denominator, "write a denominator above 0"),
        None => Err(unknown(format!("{at}.share"))),
    }
}
