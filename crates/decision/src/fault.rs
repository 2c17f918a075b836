//! Fault injection: what a policy does to some requests so that others can see what becomes of them.
//!
//! Of each kind it is drawn by itself whether it happens, as Envoy does: a request may be delayed and then aborted.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Rng;

use crate::origin::Origin;
use crate::request::RequestView;

/// How many of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// So many …
    pub numerator: u32,
    /// … of so many, at least 1.
    pub denominator: u32,
}

impl Share {
    /// All of them.
    pub const ALL: Self = Self { numerator: 1, denominator: 1 };

    /// Whether it is this one's turn.
    pub fn happens(self, rng: &mut impl Rng) -> bool {
        // Nothing is drawn where nothing is to be decided.
        self.numerator >= self.denominator
            || (self.numerator > 0 && rng.below(self.denominator.into()) < self.numerator.into())
    }
}

/// What an aborted request is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// A status of HTTP, 200 to 599.
    Status(u16),
    /// A status of gRPC, to callers who speak it; others get the status of HTTP that stands for it.
    Grpc(u8),
}

impl Abort {
    /// What callers get who do not speak gRPC.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::Status(status) => status,
            Self::Grpc(code) => http_status(code.into()),
        }
    }
}

/// The status of HTTP that stands for one of gRPC (`google.rpc.Code`).
#[must_use]
pub const fn http_status(code: u16) -> u16 {
    match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// One kind of fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injection<T> {
    /// The policy that says it; of several, the one of the narrowest target.
    pub origin: Arc<Origin>,
    /// How many requests it happens to.
    pub share: Share,
    /// What happens.
    pub what: T,
}

/// What policies inject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultInjection {
    /// Only into requests that have all of these fields. Names are in lower case.
    pub headers: Box<[(Box<str>, Box<str>)]>,
    /// A time before the request goes on.
    pub delay: Option<Injection<Duration>>,
    /// An answer instead of going on.
    pub abort: Option<Injection<Abort>>,
    /// Bytes per second of the response's body.
    pub bandwidth: Option<Injection<u64>>,
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Injected<'f> {
    /// It waits first.
    pub delay: Option<&'f Injection<Duration>>,
    /// It is answered with this.
    pub abort: Option<&'f Injection<Abort>>,
    /// Its response's body comes at so many bytes per second.
    pub bandwidth: Option<&'f Injection<u64>>,
}

impl FaultInjection {
    /// Whether it is about a request: that has all of its fields.
    pub fn is_about(&self, request: &impl RequestView) -> bool {
        let has = |(name, value): &(Box<str>, Box<str>)| request.header(name).any(|v| v == value.as_bytes());
        self.headers.iter().all(has)
    }

    /// What every such request is answered with.
    #[must_use]
    pub fn certain_abort(&self) -> Option<Abort> {
        let abort = self.abort.as_ref()?;
        (abort.share.numerator >= abort.share.denominator).then_some(abort.what)
    }

    /// Draws what happens to a request.
    pub fn draw(&self, request: &impl RequestView, rng: &mut impl Rng) -> Injected<'_> {
        if !self.is_about(request) {
            return Injected::default();
        }
        Injected {
            delay: drawn(self.delay.as_ref(), rng),
            abort: drawn(self.abort.as_ref(), rng),
            bandwidth: drawn(self.bandwidth.as_ref(), rng),
        }
    }
}

fn drawn<'f, T>(what: Option<&'f Injection<T>>, rng: &mut impl Rng) -> Option<&'f Injection<T>> {
    what.filter(|injection| injection.share.happens(rng))
}

#[cfg(test)]
mod tests {
    use meshwork_base::SeededRng;

    use super::*;
    use crate::request::OwnedRequest;

    #[test]
    fn a_share_happens_as_often_as_it_says() {
        let mut rng = SeededRng::new(7);
        let mut of = |numerator, denominator| {
            let share = Share { numerator, denominator };
            (0..10_000).filter(|_| share.happens(&mut rng)).count()
        };
        assert_eq!((of(0, 100), of(100, 100)), (0, 10_000));
        assert!((900..1_100).contains(&of(10, 100)));
        assert!((5..60).contains(&of(2, 1_000)));
    }

    #[test]
    fn only_requests_with_all_the_fields_are_meant() {
        let what = Abort::Status(503);
        let fault = FaultInjection {
            headers: [("x-test".into(), "on".into()), ("x-who".into(), "me".into())].into(),
            delay: None,
            abort: Some(Injection { origin: Arc::default(), share: Share::ALL, what }),
            bandwidth: None,
        };
        let request = |fields: &[(&str, &str)]| {
            let mut request = OwnedRequest::get("shop", "/");
            request.headers.extend(fields.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())));
            fault.draw(&request, &mut SeededRng::new(1)).abort.map(|abort| abort.what)
        };
        assert_eq!(request(&[("x-test", "on"), ("x-who", "me")]), Some(Abort::Status(503)));
        assert_eq!(request(&[("x-test", "on")]), None);
        assert_eq!(request(&[("x-test", "on"), ("x-who", "you")]), None);
    }
}
