//! What a traffic policy does to requests to shape them.

use meshwork_messages::v1;
use meshwork_messages::v1::fault_injection::abort::With;
use meshwork_messages::v1::fault_injection::{Abort, Bandwidth, Delay};
use meshwork_resources::{FaultInjection, Fraction, HTTPHeader, RateLimit, RateLimitMode, Spanned};

use crate::rule::{millis, said_ms};

pub(crate) fn rate_limit(spec: &RateLimit) -> v1::RateLimit {
    v1::RateLimit {
        requests: spec.requests,
        per_ms: said_ms(spec.per.as_ref()),
        burst: spec.burst.unwrap_or_default(),
        fair_share: spec.fair_share,
        shadow: spec.mode.map(|mode| mode == RateLimitMode::Shadow),
    }
}

pub(crate) fn fault(spec: &FaultInjection) -> v1::FaultInjection {
    v1::FaultInjection {
        headers: spec.headers.iter().map(|header| field(header)).collect(),
        delay: spec.delay.as_ref().map(|delay| Delay {
            share: share(delay.percent, delay.fraction.as_ref()),
            time_ms: millis(delay.time.inner),
        }),
        abort: spec.abort.as_ref().map(|abort| Abort {
            share: share(abort.percent, abort.fraction.as_ref()),
            with: match (abort.http_status, abort.grpc_status) {
                (_, Some(status)) => Some(With::GrpcStatus(status.code().into())),
                (status, _) => status.map(With::Status),
            },
        }),
        bandwidth: spec.bandwidth.as_ref().map(|bandwidth| Bandwidth {
            share: share(bandwidth.percent, bandwidth.fraction.as_ref()),
            bytes_per_second: u64::from(bandwidth.kib_per_second) * 1024,
        }),
    }
}

pub(crate) fn field(header: &HTTPHeader) -> v1::Field {
    v1::Field { name: header.name.to_string(), value: header.value.to_string() }
}

/// Of a policy that may not say how many.
fn share(percent: Option<u32>, fraction: Option<&Spanned<Fraction>>) -> Option<v1::Share> {
    (percent.is_some() || fraction.is_some()).then(|| share_or_all(percent, fraction))
}

/// All, where nobody says how many.
pub(crate) fn share_or_all(percent: Option<u32>, fraction: Option<&Spanned<Fraction>>) -> v1::Share {
    match fraction {
        Some(fraction) => {
            v1::Share { numerator: fraction.numerator, denominator: fraction.denominator.unwrap_or(100) }
        }
        None => v1::Share { numerator: percent.unwrap_or(100), denominator: 100 },
    }
}
