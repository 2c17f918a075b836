//! The fleets on which balancers are compared.
//!
//! An instance works on two requests at once, 10 ms each on average, so it can do 200 a second. Four proxies call, each
//! knowing only what it sees.

use std::sync::Arc;
use std::time::Duration;

use super::scenario::{Arrivals, Burst, Instance, Phase, Policies, Scenario, Spread, State};
use crate::admission::AdmissionControl;
use crate::balance::SlowStart;
use crate::retry::RetryPolicy;

use crate::overload::{AdaptiveConcurrency, Queue};

const CONCURRENCY: u32 = 2;
const SERVICE: Duration = Duration::from_millis(10);
/// Requests per second that an instance can do.
const CAPACITY: f64 = 200.0;

fn instance() -> Instance {
    Instance {
        weight: 1,
        zone: 0,
        concurrency: CONCURRENCY,
        queue: 1_000,
        service: SERVICE,
        spread: Spread::Exponential,
        is_deaf: false,
        joins: Duration::ZERO,
        phases: Vec::new(),
    }
}

fn always(state: State) -> Vec<Phase> {
    vec![Phase { at: Duration::ZERO, state }]
}

fn fleet(name: &'static str, load: f64, instances: Vec<Instance>) -> Scenario {
    #[expect(clippy::cast_precision_loss, reason = "a count of instances")]
    let capacity = instances.len() as f64 * CAPACITY;
    Scenario {
        name,
        duration: Duration::from_secs(20),
        warm_up: Duration::from_secs(2),
        clients: 4,
        arrivals: Arrivals { per_second: load * capacity, burst: None, loads: Vec::new(), high: 0 },
        instances,
        network: Duration::from_micros(250),
        zones: 0,
        policies: Policies::default(),
    }
}

/// Ten of which the first is in this state.
fn one_of_ten(name: &'static str, state: State) -> Scenario {
    let mut instances = vec![instance(); 10];
    instances[0].phases = always(state);
    fleet(name, 0.7, instances)
}

/// Ten even endpoints at 70 % load.
#[must_use]
pub fn even() -> Scenario {
    fleet("a: ten even", 0.7, vec![instance(); 10])
}

/// Ten endpoints of weights 1, 2 and 3, each as strong as its weight, at 70 % load.
#[must_use]
pub fn weighted() -> Scenario {
    let weight = |at: u32| at % 3 + 1;
    let instances: Vec<_> = (0..10)
        .map(|at| Instance { weight: weight(at), concurrency: CONCURRENCY * weight(at), ..instance() })
        .collect();
    let weights: u32 = instances.iter().map(|instance| instance.weight).sum();
    fleet("a: by weight", 0.7 * f64::from(weights) / 10.0, instances)
}

/// One of ten is ten times slower.
#[must_use]
pub fn one_slow() -> Scenario {
    one_of_ten("b: one slow", State::Serving(10.0))
}

/// One of ten fails every request within a millisecond.
#[must_use]
pub fn one_failing() -> Scenario {
    one_of_ten("c: one failing", State::Failing(Duration::from_millis(1)))
}

/// One of ten hangs.
#[must_use]
pub fn one_hanging() -> Scenario {
    one_of_ten("d: one hanging", State::Hanging)
}

/// Three of ten in turns, at half load: five seconds like this, five seconds serving.
fn three_in_turns(name: &'static str, state: State) -> Scenario {
    let mut instances = vec![instance(); 10];
    for (instance, offset) in instances.iter_mut().zip([2_000, 3_500, 4_500]) {
        let at = |half: u64| Duration::from_millis(offset + 5_000 * half);
        let state = |half| if half % 2 == 0 { state } else { State::Serving(1.0) };
        instance.phases = (0..4).map(|half| Phase { at: at(half), state: state(half) }).collect();
    }
    fleet(name, 0.5, instances)
}

/// Three of ten die with their hosts and return every five seconds.
#[must_use]
pub fn three_lost() -> Scenario {
    three_in_turns("e: three lost", State::Lost)
}

/// Three of ten die and return every five seconds; their hosts refuse connections meanwhile.
#[must_use]
pub fn three_crashing() -> Scenario {
    three_in_turns("e: three crash", State::Away)
}

/// Two zones of five, each with two of the proxies, which prefer it; one has other work to do and is three times slower.
#[must_use]
pub fn one_zone_overloaded() -> Scenario {
    let mut instances = vec![instance(); 10];
    for instance in &mut instances[..5] {
        instance.phases = always(State::Serving(3.0));
    }
    for instance in &mut instances[5..] {
        instance.zone = 1;
    }
    Scenario { zones: 2, ..fleet("f: one zone overloaded", 0.45, instances) }
}

/// A hundred endpoints, fifty clients, each of which comes in bursts.
#[must_use]
pub fn many_and_bursts() -> Scenario {
    let burst = Burst { every: Duration::from_millis(1_000), lasts: Duration::from_millis(200), times: 5.0 };
    let many = fleet("g: many, bursts", 0.35, vec![instance(); 100]);
    Scenario {
        duration: Duration::from_secs(6),
        clients: 50,
        arrivals: Arrivals { burst: Some(burst), ..many.arrivals },
        ..many
    }
}

/// Ten, at 66 % load, and after two seconds one more that is cold: twenty times slower at first, and as fast as the others
/// after six seconds. Nobody gives up early on it: attempts have the time of the request.
#[must_use]
pub fn one_cold(slow_start: Option<SlowStart>) -> Scenario {
    let mut instances = vec![instance(); 11];
    let joins = Duration::from_secs(2);
    let warmer = |(at, slower): (u32, f64)| Phase {
        at: joins + Duration::from_millis(500) * at,
        state: State::Serving(slower),
    };
    let times = [20.0, 17.0, 14.0, 11.0, 9.0, 7.0, 5.0, 4.0, 3.0, 2.0, 1.5, 1.0];
    instances[10].joins = joins;
    instances[10].phases = (0..).zip(times).map(warmer).collect();
    let cold = fleet("h: one cold", 0.6, instances);
    let retry = RetryPolicy { per_try_timeout: Some(cold.policies.timeout), ..cold.policies.retry.clone() };
    let policies = Policies { slow_start, retry, ..cold.policies };
    Scenario { warm_up: joins, duration: Duration::from_secs(14), policies, ..cold }
}

/// How long fleet i gets three times of what it can do.
pub const OVERLOADED: Duration = Duration::from_secs(60);
/// When that begins.
pub const BEGINS: Duration = Duration::from_secs(10);

/// Three that do eight requests at once, 20 ms each, so 1,200 a second; half of that comes for ten seconds, three times of it
/// for [`OVERLOADED`], and half again for ten. One of five has high priority; who asks waits for a second at most.
#[must_use]
pub fn overloaded() -> Scenario {
    let instance = Instance {
        concurrency: 8,
        service: Duration::from_millis(20),
        spread: Spread::Exponential,
        ..instance()
    };
    let scenario = fleet("i: overload", 1.0, vec![instance; 3]);
    Scenario {
        duration: BEGINS + OVERLOADED + Duration::from_secs(10),
        arrivals: Arrivals {
            per_second: 1_200.0,
            burst: None,
            loads: vec![(Duration::ZERO, 0.5), (BEGINS, 3.0), (BEGINS + OVERLOADED, 0.5)],
            high: 20,
        },
        policies: Policies {
            timeout: Duration::from_secs(1),
            overload: Some((AdaptiveConcurrency::DEFAULT, Queue::DEFAULT)),
            ..Policies::default()
        },
        ..scenario
    }
}

/// The same fleet without anybody before it: what its callers do not hold back waits in its queues.
#[must_use]
pub fn held_back() -> Scenario {
    let fleet = overloaded();
    let admission =
        AdmissionControl { sampling_window: Duration::from_secs(2), ..AdmissionControl::default() };
    let policies = Policies { overload: None, admission: Some(Arc::new(admission)), ..fleet.policies };
    Scenario { name: "j: held back", policies, ..fleet }
}

/// All on which balancers are compared.
#[must_use]
pub fn all() -> [Scenario; 9] {
    [
        even(),
        weighted(),
        one_slow(),
        one_failing(),
        one_hanging(),
        three_lost(),
        three_crashing(),
        one_zone_overloaded(),
        many_and_bursts(),
    ]
}
