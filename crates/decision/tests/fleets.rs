//! Balancers compared on the fleets of the simulator: what the default balancer promises.
//!
//! Every run is fixed by its seed, and a promise that is broken names it. The whole form (`--ignored`, see `tests/long`)
//! takes a hundred seeds and prints the table; `FLEET=b` takes one fleet, `SEED=17` one seed.

use std::fmt::Write;

use meshwork_decision::simulator::{Report, Scenario, fleets, median, run};
use meshwork_decision::{Algorithm, OutlierDetection};

const ALGORITHMS: [Algorithm; 4] =
    [Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random];

/// Envoy's defaults.
const OUTLIER_DETECTION: OutlierDetection = OutlierDetection::DEFAULT;

/// One fleet under all algorithms.
struct Compared {
    scenario: Scenario,
    reports: Vec<(Algorithm, Vec<Report>)>,
}

impl Compared {
    fn new(scenario: Scenario, seeds: &[u64]) -> Self {
        let under = |algorithm| {
            let mut scenario = scenario.clone();
            scenario.policies.algorithm = algorithm;
            (algorithm, seeds.iter().map(|&seed| run(&scenario, seed)).collect())
        };
        let reports = ALGORITHMS.map(under).into();
        Self { scenario, reports }
    }

    fn of(&self, algorithm: Algorithm) -> &[Report] {
        let (_, reports) = self.reports.iter().find(|(of, _)| *of == algorithm).expect("all were run");
        reports
    }

    fn quantile(&self, algorithm: Algorithm, share: f64) -> f64 {
        median(self.of(algorithm).iter().map(|report| 1e3 * report.quantile(share).as_secs_f64()))
    }

    fn imbalance(&self, algorithm: Algorithm) -> f64 {
        let weights: Vec<u32> = self.scenario.instances.iter().map(|instance| instance.weight).collect();
        median(self.of(algorithm).iter().map(|report| report.imbalance(&weights)))
    }

    fn rows(&self) -> String {
        let mut rows = String::new();
        for algorithm in ALGORITHMS {
            let of = |number: fn(&Report) -> f64| median(self.of(algorithm).iter().map(number));
            let quantile = |share| self.quantile(algorithm, share);
            writeln!(
                rows,
                "| {:<21} | {:<12} | {:>6.1} | {:>7.1} | {:>7.1} | {:>6.2} % | {:>5.3} | {:>6.1} % |",
                self.scenario.name,
                format!("{algorithm:?}"),
                quantile(0.5),
                quantile(0.99),
                quantile(0.999),
                of(|report| 100.0 * report.failed()),
                of(|report| report.attempts as f64 / report.requests as f64),
                100.0 * self.imbalance(algorithm),
            )
            .expect("a string takes everything");
        }
        rows
    }

    /// What does not hold.
    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let name = self.scenario.name;
        for (algorithm, reports) in &self.reports {
            for report in reports {
                let place = format!("{name}, {algorithm:?}, seed {}", report.seed);
                if let Some(why) = &report.broken {
                    broken.push(format!("{place}: {why}"));
                }
                if 100 * report.attempts > 120 * report.requests {
                    broken.push(format!("{place}: more than 1.2 attempts per request: {report}"));
                }
            }
        }
        let p99 = |algorithm| self.quantile(algorithm, 0.99);
        let (ours, turns) = (p99(Algorithm::PeakEwma), p99(Algorithm::RoundRobin));
        let best = ALGORITHMS.map(p99).into_iter().fold(f64::MAX, f64::min);
        if ours > 1.05 * best {
            broken.push(format!("{name}: p99 {ours:.1} ms, of the best {best:.1}"));
        }
        let is_even = name.starts_with('a');
        if is_even && self.imbalance(Algorithm::PeakEwma) > 0.1 {
            broken.push(format!("{name}: load by weight differs by more than 10 %"));
        }
        // Where outlier detection does the balancer's work, taking turns is not that bad.
        let halves = self.scenario.policies.outlier_detection.is_none()
            && ["b: one slow", "d: one hanging", "e: three lost"].contains(&name);
        if halves && ours > 0.5 * turns {
            broken.push(format!("{name}: p99 {ours:.1} ms, of round robin {turns:.1}"));
        }
        broken
    }
}

/// All fleets; `each` sees what came of one.
fn compare(outlier_detection: Option<OutlierDetection>, seeds: &[u64], each: impl Fn(&Compared)) {
    let only = std::env::var("FLEET").unwrap_or_default();
    let seed: Option<u64> = std::env::var("SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seeds = seed.as_ref().map_or(seeds, std::slice::from_ref);
    let mut broken = Vec::new();
    for mut scenario in fleets::all() {
        if scenario.name.starts_with(&only) {
            scenario.policies.outlier_detection = outlier_detection;
            let compared = Compared::new(scenario, seeds);
            each(&compared);
            broken.extend(compared.broken());
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_default_balancer_keeps_its_promises_alone() {
    compare(None, &[1], |_| {});
}

#[test]
fn the_default_balancer_keeps_its_promises_beside_outlier_detection() {
    compare(Some(OUTLIER_DETECTION), &[1], |_| {});
}

#[test]
#[ignore = "a hundred seeds take minutes: see tests/long"]
fn the_default_balancer_keeps_its_promises_over_a_hundred_seeds() {
    let seeds: Vec<u64> = (0..100).collect();
    for (title, outlier_detection) in [("alone", None), ("with outlier detection", Some(OUTLIER_DETECTION))] {
        println!("\n{title}, medians of {} seeds, times in ms:\n", seeds.len());
        println!("| fleet | algorithm | p50 | p99 | p99.9 | failed | tries | imbalance |");
        println!("|---|---|---:|---:|---:|---:|---:|---:|");
        compare(outlier_detection, &seeds, |compared| print!("{}", compared.rows()));
    }
}

#[test]
fn a_seed_fixes_a_run() {
    let scenario = fleets::three_lost();
    let (first, again, other) = (run(&scenario, 7), run(&scenario, 7), run(&scenario, 8));
    assert_eq!(first.to_string(), again.to_string());
    assert_ne!(first.to_string(), other.to_string());
}
