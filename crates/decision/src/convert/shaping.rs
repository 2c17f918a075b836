//! What a policy does to requests to shape them: limits of their rate, faults.

use std::sync::Arc;
use std::time::Duration;

use meshwork_messages::v1;

use super::policy::or;
use super::{Result, unknown, value};
use crate::fault::{Abort, FaultInjection, Injection, Share};
use crate::origin::Origin;
use crate::rate_limit::RateSpec;

pub(crate) fn rate_limit(message: &v1::RateLimit) -> Result<RateSpec> {
    if message.requests == 0 {
        return value("rate_limit.requests", 0, "write at least 1");
    }
    Ok(RateSpec {
        requests: message.requests,
        per: Duration::from_millis(or(message.per_ms, 1_000).into()),
        burst: or(message.burst, message.requests),
        fair_share: message.fair_share.unwrap_or_default(),
        shadow: message.shadow.unwrap_or_default(),
    })
}

/// `origins`: who says of delay, abort and bandwidth.
pub(crate) fn fault(origins: [Arc<Origin>; 3], message: &v1::FaultInjection) -> Result<FaultInjection> {
    let [delays, aborts, slows] = origins;
    let field = |field: &v1::Field| (field.name.to_ascii_lowercase().into(), field.value.as_str().into());
    let delay = |delay: &v1::fault_injection::Delay| -> Result<_> {
        let share = share_or_all("fault_injection.delay", delay.share.as_ref())?;
        Ok(Injection { origin: delays, share, what: Duration::from_millis(delay.time_ms.into()) })
    };
    let bandwidth = |bandwidth: &v1::fault_injection::Bandwidth| {
        if bandwidth.bytes_per_second == 0 {
            return value("fault_injection.bandwidth.bytes_per_second", 0, "write at least 1");
        }
        let share = share_or_all("fault_injection.bandwidth", bandwidth.share.as_ref())?;
        Ok(Injection { origin: slows, share, what: bandwidth.bytes_per_second })
    };
    let abort = |message: &v1::fault_injection::Abort| -> Result<_> {
        let share = share_or_all("fault_injection.abort", message.share.as_ref())?;
        Ok(Injection { origin: aborts, share, what: abort(message)? })
    };
    Ok(FaultInjection {
        headers: message.headers.iter().map(field).collect(),
        delay: message.delay.as_ref().map(delay).transpose()?,
        abort: message.abort.as_ref().map(abort).transpose()?,
        bandwidth: message.bandwidth.as_ref().map(bandwidth).transpose()?,
    })
}

fn share_or_all(at: &str, message: Option<&v1::Share>) -> Result<Share> {
    message.map_or(Ok(Share::ALL), |said| share(at, Some(said)))
}

fn abort(message: &v1::fault_injection::Abort) -> Result<Abort> {
    use v1::fault_injection::abort::With;
    Ok(match message.with {
        Some(With::Status(status)) => match u16::try_from(status) {
            Ok(status @ 200..=599) => Abort::Status(status),
            _ => return value("fault_injection.abort.status", status, "write 200 to 599"),
        },
        Some(With::GrpcStatus(status)) => match u8::try_from(status) {
            Ok(status @ 0..=16) => Abort::Grpc(status),
            _ => return value("fault_injection.abort.grpc_status", status, "write 0 to 16"),
        },
        None => return Err(unknown("fault_injection.abort.with")),
    })
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
