//! What each service does for each of its operations.

use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;

/// Services by name, operations by name.
pub type Model = HashMap<String, HashMap<String, Operation>>;

#[derive(Deserialize)]
pub struct Operation {
    #[serde(flatten)]
    healthy: Times,
    /// What it is like in the instance that has the fault.
    faulty: Times,
    pub calls: Vec<Call>,
}

/// Of one execution without what it calls: log-normal, by the median and the standard deviation of the logarithm.
#[derive(Deserialize)]
struct Times {
    own_us: f64,
    sigma: f64,
    /// Before it begins, as a slow network has it.
    #[serde(default)]
    arrival_us: f64,
}

#[derive(Deserialize)]
pub struct Call {
    pub service: String,
    pub operation: String,
    /// How often per execution, on average.
    pub per: f64,
}

impl Operation {
    pub fn takes(&self, faulty: bool) -> Duration {
        let times = if faulty { &self.faulty } else { &self.healthy };
        let own = times.own_us * (times.sigma * normal()).exp();
        Duration::from_secs_f64((own + times.arrival_us) / 1e6)
    }
}

impl Call {
    /// How often this time.
    pub fn times(&self) -> usize {
        let whole = self.per.floor();
        whole as usize + usize::from(fastrand::f64() < self.per - whole)
    }
}

/// Standard normal (Box and Muller).
fn normal() -> f64 {
    let radius = (-2.0 * (1.0 - fastrand::f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * fastrand::f64()).cos()
}
