//! What is simulated.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Rng;

use crate::admission::AdmissionControl;
use crate::balance::SlowStart;
use crate::breaker::CircuitBreaker;
use crate::cluster::Algorithm;
use crate::hedge::HedgePolicy;
use crate::outlier::OutlierDetection;
use crate::overload::{AdaptiveConcurrency, Queue};
use crate::retry::{RetryBudget, RetryPolicy};

/// A fleet, who calls it, and how.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// For people.
    pub name: &'static str,
    /// How long requests arrive.
    pub duration: Duration,
    /// What arrives earlier is not measured.
    pub warm_up: Duration,
    /// Proxies that call the fleet, each knowing only what it sees.
    pub clients: usize,
    /// How requests arrive; they do not wait for each other.
    pub arrivals: Arrivals,
    /// The fleet.
    pub instances: Vec<Instance>,
    /// From proxy to instance, one way.
    pub network: Duration,
    /// Zones over which the proxies are spread evenly; 0: they know none.
    pub zones: usize,
    /// How the proxies behave.
    pub policies: Policies,
}

/// Requests arrive at random and independently.
#[derive(Clone, Debug)]
pub struct Arrivals {
    /// Requests per second of all clients together, outside bursts.
    pub per_second: f64,
    /// Each client's bursts.
    pub burst: Option<Burst>,
    /// From a time on so many times as much comes, in the order of time.
    pub loads: Vec<(Duration, f64)>,
    /// Percent of the requests that have high priority; the others have low.
    pub high: u32,
}

impl Arrivals {
    /// How much comes after so long, in relation to the usual.
    #[must_use]
    pub fn load(&self, after: Duration) -> f64 {
        let begun = self.loads.iter().take_while(|(at, _)| *at <= after);
        begun.last().map_or(1.0, |(_, times)| *times)
    }

    /// The time to the next request, after so long, of somebody from whom this share of all comes; `drawn` has mean one. It
    /// goes at the pace of each load that it comes to: what began when little came does not sleep through much.
    #[must_use]
    pub fn gap(&self, after: Duration, share: f64, drawn: f64) -> Duration {
        let (mut at, mut left) = (after, drawn);
        loop {
            let per_second = self.per_second * share * self.load(at);
            let whole = Duration::try_from_secs_f64(left / per_second).unwrap_or(Duration::MAX);
            let next = self.loads.iter().map(|(next, _)| *next).find(|next| *next > at);
            match next {
                Some(next) if at.saturating_add(whole) > next => {
                    left = (left - per_second * (next - at).as_secs_f64()).max(0.0);
                    at = next;
                }
                _ => return (at - after).saturating_add(whole),
            }
        }
    }
}

/// From time to time more comes.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    /// The mean time from the end of one to the beginning of the next.
    pub every: Duration,
    /// How long it lasts.
    pub lasts: Duration,
    /// So many times as much.
    pub times: f64,
}

/// An instance of the service.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its weight as endpoint.
    pub weight: u32,
    /// The number of its zone, where the proxies know zones.
    pub zone: usize,
    /// How many requests it works on at once; the others queue.
    pub concurrency: u32,
    /// The longest queue; what comes beyond is answered 503 at once.
    pub queue: usize,
    /// The mean time of work on a request.
    pub service: Duration,
    /// How that time varies.
    pub spread: Spread,
    /// It works also on what nobody waits for any more, as whoever does not notice that its caller has hung up.
    pub is_deaf: bool,
    /// When the proxies hear of it.
    pub joins: Duration,
    /// What happens to it, in the order of time.
    pub phases: Vec<Phase>,
}

/// From a moment on it is in a state.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// The moment.
    pub at: Duration,
    /// The state.
    pub state: State,
}

/// What an instance does with requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum State {
    /// It works, so many times slower than usual.
    Serving(f64),
    /// It answers everything 503 after this time.
    Failing(Duration),
    /// It takes requests and does not answer.
    Hanging,
    /// Its process is gone: what it worked on is reset, and connections are refused.
    Away,
    /// Its host is gone: nobody hears anything any more, not even that there is nobody.
    Lost,
}

/// How times vary around their mean.
#[derive(Clone, Copy, Debug)]
pub enum Spread {
    /// Not at all.
    Constant,
    /// Exponentially.
    Exponential,
    /// Log-normally, with this standard deviation of the logarithm.
    LogNormal(f64),
}

impl Spread {
    /// A number with mean 1.
    pub fn draw(self, rng: &mut impl Rng) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::Exponential => exponential(rng),
            Self::LogNormal(sigma) => {
                // Box and Muller.
                let (radius, angle) = ((2.0 * exponential(rng)).sqrt(), std::f64::consts::TAU * rng.unit());
                (sigma * radius * angle.cos() - sigma * sigma / 2.0).exp()
            }
        }
    }
}

/// A number with mean 1, exponentially distributed.
pub(super) fn exponential(rng: &mut impl Rng) -> f64 {
    -(1.0 - rng.unit()).ln()
}

/// How the proxies behave.
#[derive(Clone, Debug)]
pub struct Policies {
    /// How an endpoint is chosen.
    pub algorithm: Algorithm,
    /// How an endpoint begins; absent: with its whole weight.
    pub slow_start: Option<SlowStart>,
    /// How many of the instances each proxy calls; absent: all.
    pub subset_size: Option<u32>,
    /// When an endpoint is ejected.
    pub outlier_detection: Option<OutlierDetection>,
    /// When and how often an attempt is repeated.
    pub retry: RetryPolicy,
    /// When a second attempt is made beside the first; absent: never.
    pub hedge: Option<HedgePolicy>,
    /// When the fleet, or one of its endpoints, is not called for a while.
    pub circuit_breaker: Option<Breaking>,
    /// How many calls are held back when too few succeed. Who has high priority never is, whatever `priorities` say.
    pub admission: Option<Arc<AdmissionControl>>,
    /// The time of a request, all attempts included. A request that fails counts as having taken it.
    pub timeout: Duration,
    /// What each instance's own proxy keeps from it.
    pub overload: Option<(AdaptiveConcurrency, Queue)>,
}

/// Whose circuit breaker it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaking {
    /// When it opens, and for how long.
    pub policy: CircuitBreaker,
    /// Each endpoint has one, and the service none.
    pub per_endpoint: bool,
}

impl Default for Policies {
    /// The default balancer, and a retry policy that names everything.
    fn default() -> Self {
        Self {
            algorithm: Algorithm::default(),
            slow_start: None,
            subset_size: None,
            outlier_detection: None,
            retry: RetryPolicy {
                attempts: 2,
                status_codes: [503].into(),
                grpc_codes: [].into(),
                on_reset: true,
                on_connect_failure: true,
                on_refused: true,
                per_try_timeout: Some(Duration::from_secs(1)),
                backoff_base: Duration::from_millis(25),
                backoff_max: Duration::from_millis(250),
                budget: RetryBudget { percent: 20, min_per_second: 0 },
            },
            hedge: None,
            circuit_breaker: None,
            admission: None,
            timeout: Duration::from_secs(5),
            overload: None,
        }
    }
}
