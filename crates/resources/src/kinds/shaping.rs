//! What a traffic policy does to requests to shape them: a limit of their rate, and faults.

use super::grpc_status::GrpcStatus;
use super::http_filter::HTTPHeader;
use crate::codes;
use crate::decode::duration::GatewayDuration;
use crate::decode::overlay::{layered, words};
use crate::decode::{Cx, choice, record};
use crate::span::{Span, Spanned};

layered! {
    /// So many requests in a time, in each proxy.
    pub struct RateLimit {
        /// How many.
        pub requests: u32 [1..=u32::MAX.into()],
        /// In which time; 1 s when absent.
        pub per: Option<GatewayDuration>,
        /// So many at once after a pause; as many as `requests` when absent.
        pub burst: Option<u32> [1..=u32::MAX.into()],
        /// Every caller (by its SPIFFE ID, else by its address, of IPv6 the /64) has a share of its own: what one asks for too much does not
        /// take from the others.
        pub fair_share: Option<bool> as "fairShare",
        /// Who is refused; `Enforce` when absent.
        pub mode: Option<RateLimitMode>,
    }
}

choice! {
    /// Who is refused.
    pub enum RateLimitMode {
        /// Whoever is over the limit.
        Enforce = "Enforce",
        /// Nobody: metrics tell who would be.
        Shadow = "Shadow",
    }
}

layered! {
    /// What is done to some requests. Of each kind it is drawn by itself whether it happens.
    pub struct FaultInjection {
        /// Only to requests that have all of these header fields.
        pub headers: Vec<Spanned<HTTPHeader>> [0..=16],
        /// They wait before they are sent on.
        pub delay: Option<FaultDelay>,
        /// They are answered instead of being sent on.
        pub abort: Option<Spanned<FaultAbort>>,
        /// Their responses come slowly.
        pub bandwidth: Option<FaultBandwidth>,
    }
}

layered! {
    /// A time before a request is sent on.
    pub struct FaultDelay {
        /// So many of a hundred; all when neither this nor `fraction` is there.
        pub percent: Option<u32> [0..=100],
        /// So many, more exactly.
        pub fraction: Option<Spanned<Fraction>>,
        /// How long.
        pub time: Spanned<GatewayDuration>,
    }
    one_of { [percent] [fraction] }
}

layered! {
    /// An answer instead of sending a request on: one of the two statuses.
    pub struct FaultAbort {
        /// So many of a hundred; all when neither this nor `fraction` is there.
        pub percent: Option<u32> [0..=100],
        /// So many, more exactly.
        pub fraction: Option<Spanned<Fraction>>,
        /// The status of HTTP.
        pub http_status: Option<u32> as "httpStatus" [200..=599],
        /// The status of gRPC by its name (`not-found`, …); callers that speak no gRPC get the status of HTTP that stands for
        /// it.
        pub grpc_status: Option<GrpcStatus> as "grpcStatus",
    }
    one_of { [percent] [fraction] }
    one_of { [http_status] [grpc_status] }
}

layered! {
    /// How fast a response's body comes.
    pub struct FaultBandwidth {
        /// So many of a hundred; all when neither this nor `fraction` is there.
        pub percent: Option<u32> [0..=100],
        /// So many, more exactly.
        pub fraction: Option<Spanned<Fraction>>,
        /// Kibibytes per second.
        pub kib_per_second: u32 as "kibPerSecond" [1..=4_194_303],
    }
    one_of { [percent] [fraction] }
}

record! {
    /// A part of all, as Gateway API writes it.
    pub struct Fraction {
        /// So many …
        pub numerator: u32,
        /// … of so many; 100 when absent.
        pub denominator: Option<u32> [1..=u32::MAX.into()],
    }
}

words!(RateLimitMode, Fraction, GrpcStatus);

impl RateLimit {
    pub(super) fn validate(&self, span: Span, cx: &mut Cx) {
        if self.per.is_some_and(GatewayDuration::is_zero) {
            let message = "`rateLimit.per` is 0s: in no time there is no request";
            cx.error(span, codes::CONFLICTING_FIELDS, message).help =
                Some("write a time longer than none, or leave it out for 1s".to_owned());
        }
        if self.fair_share == Some(true) && self.burst.unwrap_or(self.requests) < 2 {
            let message = "`rateLimit.fairShare` needs a burst of two at least: of one, nothing can be kept for who \
                           comes later";
            cx.error(span, codes::CONFLICTING_FIELDS, message).help = Some(
                "write `burst: 2` or more (it is as many as `requests` when absent), or remove `fairShare`"
                    .to_owned(),
            );
        }
    }
}

impl FaultInjection {
    pub(super) fn validate(&self, span: Span, cx: &mut Cx) {
        if self.delay.is_none() && self.abort.is_none() && self.bandwidth.is_none() {
            let message = "`faultInjection` has none of `delay`, `abort` and `bandwidth`";
            cx.error(span, codes::CONFLICTING_FIELDS, message).help =
                Some("add one of them (`delay: {percent: 10, time: 1s}`), or remove it".to_owned());
        }
        if let Some(time) = self.delay.as_ref().map(|delay| &delay.time).filter(|time| time.is_zero()) {
            let message = "`faultInjection.delay.time` is 0s: nobody would wait";
            cx.error(time.span, codes::CONFLICTING_FIELDS, message).help =
                Some("write a time longer than none, or remove `delay`".to_owned());
        }
        if let Some(abort) = &self.abort {
            let wrong = match (abort.http_status, abort.grpc_status) {
                (None, None) => {
                    Some(("has no status", "write `httpStatus: 503` or `grpcStatus: unavailable`"))
                }
                (Some(_), Some(_)) => {
                    Some(("has both an `httpStatus` and a `grpcStatus`", "remove one of the two"))
                }
                _ => None,
            };
            if let Some((what, help)) = wrong {
                let message = format!("`faultInjection.abort` {what}");
                cx.error(abort.span, codes::CONFLICTING_FIELDS, message).help = Some(help.to_owned());
            }
        }
        let shares = [
            ("delay", self.delay.as_ref().map(|d| (d.percent, &d.fraction))),
            ("abort", self.abort.as_ref().map(|a| (a.percent, &a.fraction))),
            ("bandwidth", self.bandwidth.as_ref().map(|b| (b.percent, &b.fraction))),
        ];
        for (field, share) in shares {
            if let Some((percent, Some(fraction))) = share {
                Fraction::validate(fraction, percent, &format!("faultInjection.{field}"), cx);
            }
        }
    }
}

impl Fraction {
    /// `of`: what has it, and perhaps a percentage besides.
    pub(super) fn validate(this: &Spanned<Self>, percent: Option<u32>, of: &str, cx: &mut Cx) {
        let (numerator, denominator) = (this.numerator, this.denominator.unwrap_or(100));
        if percent.is_some() {
            let message = format!("`{of}` has both a `percent` and a `fraction`");
            cx.error(this.span, codes::CONFLICTING_FIELDS, message).help =
                Some("remove one of the two".to_owned());
        }
        if numerator > denominator {
            let message = format!("`{of}.fraction` is {numerator} of {denominator}");
            cx.error(this.span, codes::CONFLICTING_FIELDS, message).help = Some(
                "write a `numerator` that is not above the `denominator`, which is 100 when absent"
                    .to_owned(),
            );
        }
    }
}
