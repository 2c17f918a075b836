//! Balancers compared on the fleets of the simulator: what the default balancer promises.
//!
//! Every run is fixed by its seed, and a promise that is broken names it. The whole form (`--ignored`, see `tests/long`)
//! takes a hundred seeds and prints the table; `FLEET=b` takes one fleet, `SEED=17` one seed.

use std::fmt::Write;
use std::time::Duration;

use meshwork_decision::simulator::{
    Chain, Phase, Policies, Reached, Report, Scenario, State, fleets, median, run, run_chain,
};
use meshwork_decision::{
    Algorithm, HedgeDelay, HedgePolicy, OutlierDetection, RetryBudget, RetryPolicy, SlowStart,
};

const ALGORITHMS: [Algorithm; 4] =
    [Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random];

/// Envoy's defaults.
const OUTLIER_DETECTION: OutlierDetection = OutlierDetection::DEFAULT;

/// Longer than the endpoint of fleet h is cold.
const SLOW_START: SlowStart =
    SlowStart { window: Duration::from_secs(10), aggression: 1_000, min_weight_percent: 10 };

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

/// The fleet with a cold endpoint under one algorithm: p99 in milliseconds, and the cold one's percent of an even load.
fn with_a_cold_one(algorithm: Algorithm, slow_start: Option<SlowStart>, seeds: u64) -> (f64, f64) {
    let mut scenario = fleets::one_cold(slow_start);
    scenario.policies.algorithm = algorithm;
    let reports: Vec<Report> = (0..seeds).map(|seed| run(&scenario, seed)).collect();
    for report in &reports {
        assert_eq!(report.broken, None, "{algorithm:?}, seed {}", report.seed);
    }
    let load = |report: &Report| {
        1e2 * report.loads[10] as f64 * report.loads.len() as f64 / report.loads.iter().sum::<u64>() as f64
    };
    (median(reports.iter().map(|r| 1e3 * r.quantile(0.99).as_secs_f64())), median(reports.iter().map(load)))
}

#[test]
fn an_endpoint_that_is_cold_hurts_less_where_it_begins_slowly() {
    for algorithm in ALGORITHMS {
        let (without, whole) = with_a_cold_one(algorithm, None, 3);
        let (with, less) = with_a_cold_one(algorithm, Some(SLOW_START), 3);
        // Who goes by latency finds out anyhow, gives it as little, and its share once it is warm.
        let (bound, most) = match algorithm {
            Algorithm::PeakEwma => (1.05, 1.1),
            Algorithm::LeastRequest => (1.0, 1.0),
            _ => (0.8, 1.0),
        };
        assert!(with < bound * without, "{algorithm:?}: p99 {with:.1} ms, without {without:.1}");
        assert!(less < most * whole, "{algorithm:?}: {less:.0} % of an even load, without {whole:.0} %");
    }
}

#[test]
#[ignore = "a hundred seeds take minutes: see tests/long"]
fn what_slow_start_is_worth_over_a_hundred_seeds() {
    println!("\n| algorithm | slow start | p99 ms | load of the cold one |");
    println!("|---|---|---:|---:|");
    for algorithm in ALGORITHMS {
        for (name, slow_start) in [("none", None), ("10 s", Some(SLOW_START))] {
            let (p99, load) = with_a_cold_one(algorithm, slow_start, 100);
            println!("| {algorithm:?} | {name} | {p99:.1} | {load:.0} % |");
        }
    }
}

/// Fleet b, whose slow one is as fast as the others after eight seconds: its percent of an even load from so many seconds
/// after that on, for ten seconds.
fn of_the_recovered(algorithm: Algorithm, after: u64, seeds: u64) -> f64 {
    let recovers = Duration::from_secs(8);
    let mut scenario = fleets::one_slow();
    scenario.instances[0].phases.push(Phase { at: recovers, state: State::Serving(1.0) });
    scenario.warm_up = recovers + Duration::from_secs(after);
    scenario.duration = scenario.warm_up + Duration::from_secs(10);
    scenario.policies.algorithm = algorithm;
    let load = |seed| {
        let report = run(&scenario, seed);
        assert_eq!(report.broken, None, "{algorithm:?}, seed {seed}");
        1e2 * report.loads[0] as f64 * report.loads.len() as f64 / report.loads.iter().sum::<u64>() as f64
    };
    median((0..seeds).map(load))
}

#[test]
fn an_endpoint_that_has_recovered_has_its_share_again_within_five_seconds() {
    let load = of_the_recovered(Algorithm::PeakEwma, 5, 3);
    assert!(load > 90.0, "{load:.0} % of an even load");
}

#[test]
#[ignore = "a hundred seeds take minutes: see tests/long"]
fn how_soon_an_endpoint_that_has_recovered_has_its_share_over_a_hundred_seeds() {
    println!("\n| algorithm | from 0 s | from 2 s | from 5 s | from 10 s |");
    println!("|---|---:|---:|---:|---:|");
    for algorithm in ALGORITHMS {
        let loads = [0, 2, 5, 10].map(|after| of_the_recovered(algorithm, after, 100));
        let [at_once, soon, later, last] = loads.map(|load| format!("{load:.0} %"));
        println!("| {algorithm:?} | {at_once} | {soon} | {later} | {last} |");
    }
}

/// Who takes turns or draws finds out by failures alone that a zone has too little: some come before it is left, and each time that
/// it is tried again.
#[test]
fn a_zone_with_too_much_to_do_is_left_whatever_the_algorithm() {
    for algorithm in [Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random] {
        let mut scenario = fleets::one_zone_overloaded();
        scenario.policies.algorithm = algorithm;
        let failed = median((0..3).map(|seed| 1e2 * run(&scenario, seed).failed()));
        assert!(failed < 10.0, "{algorithm:?}: {failed:.1} % fail");
    }
}

#[test]
fn a_seed_fixes_a_run() {
    let scenario = fleets::three_lost();
    let (first, again, other) = (run(&scenario, 7), run(&scenario, 7), run(&scenario, 8));
    assert_eq!(first.to_string(), again.to_string());
    assert_ne!(first.to_string(), other.to_string());
}

/// Fleet g, of which each proxy calls so many: p50, p99, and the greatest deviation from an even load.
fn of_a_part(subset_size: Option<u32>, seeds: u64) -> [f64; 3] {
    let mut scenario = fleets::many_and_bursts();
    scenario.policies.subset_size = subset_size;
    let reports: Vec<Report> = (0..seeds).map(|seed| run(&scenario, seed)).collect();
    for report in &reports {
        assert_eq!(report.broken, None, "{subset_size:?}, seed {}", report.seed);
    }
    let quantile = |share| median(reports.iter().map(|r| 1e3 * r.quantile(share).as_secs_f64()));
    let weights = vec![1; scenario.instances.len()];
    [quantile(0.5), quantile(0.99), median(reports.iter().map(|r| 1e2 * r.imbalance(&weights)))]
}

#[test]
fn a_large_fleet_is_served_by_parts_of_it() {
    let [_, whole, _] = of_a_part(None, 1);
    let [_, part, imbalance] = of_a_part(Some(40), 1);
    assert!(part < 1.25 * whole, "p99 {part:.1} ms, of all {whole:.1}");
    assert!(imbalance < 100.0, "{imbalance:.0} %");
}

#[test]
#[ignore = "a hundred seeds take minutes: see tests/long"]
fn what_parts_of_a_large_fleet_cost_over_twenty_seeds() {
    println!("\n| size | p50 ms | p99 ms | imbalance |");
    println!("|---|---:|---:|---:|");
    for size in [None, Some(60), Some(40), Some(20), Some(10)] {
        let [p50, p99, imbalance] = of_a_part(size, 20);
        let name = size.map_or("all".to_owned(), |size| size.to_string());
        println!("| {name} | {p50:.1} | {p99:.1} | {imbalance:.0} % |");
    }
}

/// A second attempt after the time that nineteen of twenty took.
const HEDGE: HedgePolicy = HedgePolicy {
    delay: HedgeDelay::Percentile { percent: 95, least: Duration::from_millis(10) },
    budget_percent: 10,
};

/// Hedging against none: p99 in ms and attempts per request, the greatest of all seeds.
fn hedged(mut scenario: Scenario, algorithm: Algorithm, seeds: &[u64]) -> [(f64, f64, f64); 2] {
    scenario.policies.algorithm = algorithm;
    [None, Some(HEDGE)].map(|hedge| {
        let scenario =
            Scenario { policies: Policies { hedge, ..scenario.policies.clone() }, ..scenario.clone() };
        let reports: Vec<_> = seeds.iter().map(|&seed| run(&scenario, seed)).collect();
        for report in &reports {
            let (name, seed) = (scenario.name, report.seed);
            assert_eq!(report.broken, None, "{name}, {algorithm:?}, seed {seed}");
            let within = 100 * report.attempts <= 120 * report.requests;
            assert!(
                within,
                "{name}, {algorithm:?}, seed {seed}: more than 1.2 attempts per request: {report}"
            );
            assert_eq!(hedge.is_some(), report.hedges > 0, "{name}, seed {seed}: {report}");
        }
        let p99 = median(reports.iter().map(|report| 1e3 * report.quantile(0.99).as_secs_f64()));
        let tries = |report: &Report| report.attempts as f64 / report.requests as f64;
        let share = |report: &Report| 100.0 * report.hedges as f64 / report.requests as f64;
        (p99, median(reports.iter().map(tries)), median(reports.iter().map(share)))
    })
}

/// The table; what does not hold is said at once.
fn hedging(seeds: &[u64]) -> String {
    let mut rows = String::from(
        "| fleet | algorithm | p99 | hedged | tries | hedges |\n|---|---|---:|---:|---:|---:|\n",
    );
    for scenario in [fleets::one_slow(), fleets::one_hanging()] {
        for algorithm in [Algorithm::PeakEwma, Algorithm::RoundRobin] {
            let name = scenario.name;
            let [(without, ..), (with, tries, hedges)] = hedged(scenario.clone(), algorithm, seeds);
            let row =
                format!("| {name} | {algorithm:?} | {without:.1} | {with:.1} | {tries:.3} | {hedges:.1} % |");
            // Where the balancer leaves the slow one alone already, and the others are busy, a hedge is more work for them.
            let most = match algorithm {
                Algorithm::RoundRobin => 0.5,
                _ => 1.25,
            };
            assert!(with <= most * without, "{row}");
            rows = rows + &row + "\n";
        }
    }
    rows
}

#[test]
fn hedging_shortens_the_tail_within_the_budget() {
    print!("{}", hedging(&[1]));
}

#[test]
#[ignore = "a hundred seeds take minutes: see tests/long"]
fn hedging_shortens_the_tail_over_a_hundred_seeds() {
    print!("{}", hedging(&(0..100).collect::<Vec<_>>()));
}

/// Services behind each other that pass on no id: what reaches the last for one request, the median of seeds and the most.
fn along_a_chain(chain: &Chain, seeds: u64) -> (f64, f64) {
    let reached: Vec<_> = (0..seeds).map(|seed| run_chain(chain, seed)).collect();
    assert_eq!(reached.iter().find_map(|one| one.broken.clone()), None);
    let times: Vec<f64> = reached.iter().map(Reached::times).collect();
    (median(times.iter().copied()), times.iter().copied().fold(0.0, f64::max))
}

#[test]
#[ignore = "a hundred seeds take minutes: see tests/long"]
fn what_reaches_the_last_of_three_services_over_a_hundred_seeds() {
    println!("\n| before | requests | a second | fails after | median | most |");
    println!("|---|---:|---:|---:|---:|---:|");
    let retry = RetryPolicy { attempts: 3, budget: RetryBudget::DEFAULT, ..Policies::default().retry };
    for well in [0, 2_000] {
        for requests in [120, 300, 400, 1_000, 4_000] {
            for per_second in [1, 5, 100, 2_000, 1_000_000] {
                for takes in [0, 1_000].map(Duration::from_millis) {
                    let retry = retry.clone();
                    let chain = Chain { depth: 3, per_second, requests, well, takes, retry, traced: false };
                    let (middle, most) = along_a_chain(&chain, 100);
                    let before = if well == 0 { "nothing" } else { "answers" };
                    println!(
                        "| {before} | {requests} | {per_second} | {takes:?} | {middle:.2} | {most:.2} |"
                    );
                    assert!(well > 0 || most <= 1.2, "at {per_second} a second");
                }
            }
        }
    }
}
