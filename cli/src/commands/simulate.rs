//! `meshwork simulate FILE`: a fleet, its clients and their policies, run over many seeds by the simulator of the decision
//! core: what traffic would meet, and what must hold and does not.

mod file;
mod live;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::{Clock as _, SystemClock};
use meshwork_decision::simulator::{Answered, Report, Scenario, median, run as simulate};
use parking_lot::Mutex;
use serde::Serialize;

use super::Outcome;
use crate::output::{self, Format};

/// Run a fleet through the simulator
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// The scenario, as YAML; examples are in `examples/fleets`
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Run it once, in real time, in a mesh on this machine: a platform, and programs beside sidecars that call each other
    #[arg(long, conflicts_with = "seeds")]
    live: bool,
    /// Be the application of this instance; what --live starts beside its sidecar
    #[arg(long, value_name = "INSTANCE", hide = true, conflicts_with_all = ["live", "seeds"])]
    application: Option<usize>,
    /// How many seeds
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    seeds: u64,
    /// The first seed
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// A value over all seeds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.collect();
        let edge = |pick: fn(f64, f64) -> f64| values.iter().copied().reduce(pick).unwrap_or_default();
        Self { median: median(values.iter().copied()), min: edge(f64::min), max: edge(f64::max) }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Latency {
    p50: Spread,
    p90: Spread,
    p99: Spread,
    p999: Spread,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Load {
    instance: usize,
    weight: u32,
    /// Percent of all attempts.
    percent: Spread,
}

/// A seed with which something does not hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Broken {
    seed: u64,
    what: String,
}

/// What came of it: keys are only ever added.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    name: String,
    first_seed: u64,
    seeds: usize,
    seeds_per_second: f64,
    requests: u64,
    latency_ms: Latency,
    failed_percent: Spread,
    /// Of the requests of high priority, where `highPercent` says that there are some, and of the others.
    failed_high_percent: Option<Spread>,
    failed_low_percent: Option<Spread>,
    attempts_per_request: Spread,
    retries: Spread,
    /// Attempts that were not made: held back since too few succeed, or refused by a circuit breaker.
    held_back: Option<Spread>,
    refused: Option<Spread>,
    ejections: Spread,
    loads: Vec<Load>,
    broken: Option<Broken>,
}

/// What is kept of a seed's run: millions of seeds must not cost what their requests do.
struct Outline {
    seed: u64,
    requests: u64,
    /// By the quantiles of [`QUANTILES`].
    latencies: [f64; 4],
    failed: f64,
    /// Of high priority, and of low.
    failed_by_priority: Option<[f64; 2]>,
    attempts_per_request: f64,
    retries: u64,
    held_back: u64,
    refused: u64,
    ejections: u64,
    loads: Vec<u64>,
    broken: Option<String>,
}

const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

impl Outline {
    fn of(scenario: &Scenario, report: Report) -> Self {
        Self {
            seed: report.seed,
            requests: report.requests,
            latencies: QUANTILES.map(|share| millis(report.quantile(share))),
            failed: 100.0 * report.failed(),
            failed_by_priority: (!report.answers.is_empty())
                .then(|| [true, false].map(|high| failed_of(scenario, &report, high))),
            attempts_per_request: ratio(report.attempts, report.requests),
            retries: report.retries,
            held_back: report.held_back,
            refused: report.refused,
            ejections: report.ejections,
            broken: broken(scenario, &report),
            loads: report.loads,
        }
    }
}

/// Percent of the measured requests of a priority that failed.
fn failed_of(scenario: &Scenario, report: &Report, high: bool) -> f64 {
    let is_of = |answer: &&Answered| answer.high == high && answer.arrived >= scenario.warm_up;
    let (of, failed) = report
        .answers
        .iter()
        .filter(is_of)
        .fold((0, 0), |(of, failed), answer| (of + 1, failed + u64::from(!answer.well)));
    100.0 * ratio(failed, of)
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let text = std::fs::read_to_string(&arguments.file)
        .map_err(|error| format!("{}: {error}; name a file with a scenario", arguments.file.display()))?;
    let (name, scenario) = file::read(&text).map_err(|why| format!("{}: {why}", arguments.file.display()))?;
    if let Some(instance) = arguments.application {
        live::serve(&scenario, instance, arguments.seed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let clock = SystemClock::new();
    let begun = clock.now();
    let reports = if arguments.live {
        vec![live::run(&scenario, &text, arguments.seed)?]
    } else {
        all(&scenario, arguments.seed, arguments.seeds)
    };
    let took = clock.now().since(begun);
    let summary = summary(name, &scenario, arguments.seed, &reports, took);
    if arguments.output == Format::Table {
        show(&summary)?;
    } else {
        output::value(arguments.output, &summary)?;
    }
    let Some(Broken { seed, what }) = &summary.broken else { return Ok(ExitCode::SUCCESS) };
    let again = arguments.file.display();
    let once = if arguments.live { "--live" } else { "--seeds 1" };
    output::note(&format!(
        "error: seed {seed}: {what}; `meshwork simulate {again} --seed {seed} {once}` runs it again"
    ));
    Ok(ExitCode::FAILURE)
}

/// Every core works on the seed that is next. In the order of seeds.
fn all(scenario: &Scenario, first: u64, count: u64) -> Vec<Outline> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = Arc::new(AtomicU64::new(0));
    let reports = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let outline = Outline::of(scenario, simulate(scenario, first.wrapping_add(number)));
                    reports.lock().push((number, outline));
                }
            });
        }
    });
    let mut reports = reports.into_inner();
    reports.sort_unstable_by_key(|(number, _)| *number);
    reports.into_iter().map(|(_, report)| report).collect()
}

/// The first thing that does not hold.
fn broken(scenario: &Scenario, report: &Report) -> Option<String> {
    if let Some(what) = &report.broken {
        return Some(what.clone());
    }
    if report.ended != report.requests {
        return Some(format!("{} requests arrived and {} ended", report.requests, report.ended));
    }
    let budget = scenario.policies.retry.budget;
    if budget.min_per_second > 0 {
        return None;
    }
    let most = report.requests * u64::from(100 + budget.percent);
    (report.attempts * 100 > most).then(|| {
        format!(
            "{} attempts for {} requests, with a budget of {} %",
            report.attempts, report.requests, budget.percent
        )
    })
}

fn summary(name: String, scenario: &Scenario, first: u64, seeds: &[Outline], took: Duration) -> Summary {
    let over = |of: &dyn Fn(&Outline) -> f64| Spread::of(seeds.iter().map(of));
    let quantile = |at: usize| over(&|seed| seed.latencies[at]);
    let by_priority = |at: usize| {
        let failed: Option<Vec<f64>> = seeds.iter().map(|of| Some(of.failed_by_priority?[at])).collect();
        failed.map(|failed| Spread::of(failed.into_iter()))
    };
    let loads = scenario.instances.iter().enumerate().map(|(instance, plan)| Load {
        instance,
        weight: plan.weight,
        percent: over(&|seed| 100.0 * ratio(seed.loads[instance], seed.loads.iter().sum())),
    });
    let policies = &scenario.policies;
    let broken = seeds.iter().find_map(|of| Some(Broken { seed: of.seed, what: of.broken.clone()? }));
    Summary {
        name,
        first_seed: first,
        seeds: seeds.len(),
        seeds_per_second: seeds.len() as f64 / took.as_secs_f64().max(1e-9),
        requests: seeds.iter().map(|seed| seed.requests).sum(),
        latency_ms: Latency { p50: quantile(0), p90: quantile(1), p99: quantile(2), p999: quantile(3) },
        failed_percent: over(&|seed| seed.failed),
        failed_high_percent: by_priority(0),
        failed_low_percent: by_priority(1),
        attempts_per_request: over(&|seed| seed.attempts_per_request),
        retries: over(&|seed| seed.retries as f64),
        held_back: policies.admission.as_ref().map(|_| over(&|seed| seed.held_back as f64)),
        refused: policies.circuit_breaker.map(|_| over(&|seed| seed.refused as f64)),
        ejections: over(&|seed| seed.ejections as f64),
        loads: loads.collect(),
        broken,
    }
}

fn ratio(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { part as f64 / of as f64 }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// A rate in as many digits as tell something.
fn pace(per_second: f64) -> String {
    let digits = match per_second {
        10.0.. => 0,
        1.0.. => 1,
        _ => 2,
    };
    format!("{per_second:.digits$}")
}

fn show(summary: &Summary) -> std::io::Result<()> {
    output::print(&format!(
        "{}: {} seeds from {}, {} requests, {} seeds per second\n\n",
        summary.name,
        summary.seeds,
        summary.first_seed,
        summary.requests,
        pace(summary.seeds_per_second)
    ))?;
    let row = |name: &str, spread: &Spread, digits: usize| {
        let cell = |value: f64| format!("{value:.digits$}");
        vec![name.to_owned(), cell(spread.median), cell(spread.min), cell(spread.max)]
    };
    let Latency { p50, p90, p99, p999 } = &summary.latency_ms;
    let mut rows = vec![
        row("p50 ms", p50, 1),
        row("p90 ms", p90, 1),
        row("p99 ms", p99, 1),
        row("p99.9 ms", p999, 1),
        row("failed %", &summary.failed_percent, 2),
    ];
    let by_priority = [
        ("failed of high priority %", &summary.failed_high_percent),
        ("failed of low %", &summary.failed_low_percent),
    ];
    rows.extend(by_priority.into_iter().filter_map(|(name, spread)| Some(row(name, spread.as_ref()?, 2))));
    rows.extend([
        row("attempts per request", &summary.attempts_per_request, 3),
        row("retries", &summary.retries, 0),
    ]);
    let not_made = [
        ("held back by admissionControl", &summary.held_back),
        ("refused by circuit breakers", &summary.refused),
    ];
    rows.extend(not_made.into_iter().filter_map(|(name, spread)| Some(row(name, spread.as_ref()?, 0))));
    rows.push(row("ejections", &summary.ejections, 0));
    rows.extend(
        summary.loads.iter().map(|load| {
            row(&format!("load of {} (weight {}) %", load.instance, load.weight), &load.percent, 2)
        }),
    );
    output::table(&["", "MEDIAN", "MIN", "MAX"], rows)
}

#[cfg(test)]
mod tests {
    use meshwork_decision::SlowStart;
    use meshwork_decision::simulator::fleets;

    use super::*;

    #[test]
    fn a_slow_pace_is_told_too() {
        assert_eq!([1234.4, 12.2, 3.21, 0.04].map(pace), ["1234", "12", "3.2", "0.04"]);
    }

    const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/fleets");

    /// Those of all algorithms, the one of slow start, and those of overload.
    fn compared() -> impl Iterator<Item = Scenario> {
        let slow_start =
            SlowStart { window: Duration::from_secs(10), aggression: 1_000, min_weight_percent: 10 };
        fleets::all().into_iter().chain([
            fleets::one_cold(Some(slow_start)),
            fleets::overloaded(),
            fleets::held_back(),
        ])
    }

    /// Of what matters, much less fails than where nobody holds back.
    fn holding_back_helps(name: &str, scenario: &Scenario, with: &Outline) {
        let mut alone = scenario.clone();
        alone.policies.admission = None;
        let without = Outline::of(&alone, simulate(&alone, with.seed));
        let high = |of: &Outline| of.failed_by_priority.unwrap()[0];
        let counts = (with.held_back, without.held_back);
        assert!(counts.0 > 1_000 && counts.1 == 0, "{name}: {counts:?} were held back");
        assert!(
            high(with) + 5.0 < high(&without),
            "{name}: of high priority {} % fail, without it {} %",
            high(with),
            high(&without)
        );
    }

    #[test]
    fn the_fleets_of_the_folder_are_those_that_balancers_are_compared_on() {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let mut names = Vec::new();
        for path in &files {
            let (name, mut scenario) = file::read(&std::fs::read_to_string(path).unwrap())
                .unwrap_or_else(|why| panic!("{}: {why}", path.display()));
            let mut fleet = compared()
                .find(|fleet| fleet.name == name)
                .unwrap_or_else(|| panic!("{}: no fleet is called `{name}`", path.display()));
            // A second of them tells as much, and is over sooner; nobody is held back before somebody has failed.
            let begins = fleet.arrivals.loads.get(1).map_or(Duration::from_secs(2), |(at, _)| *at);
            let more = if fleet.policies.admission.is_some() { 5 } else { 1 };
            let lasts = begins + Duration::from_secs(more);
            assert_eq!(
                (scenario.duration, &scenario.arrivals.loads),
                (fleet.duration, &fleet.arrivals.loads)
            );
            scenario.duration = lasts;
            fleet.duration = lasts;
            let (report, wanted) = (simulate(&scenario, 17), simulate(&fleet, 17));
            assert_eq!(report.to_string(), wanted.to_string(), "{}", path.display());
            assert_eq!(broken(&scenario, &report), None, "{name}");
            let outline = Outline::of(&scenario, report);
            if let Some([high, low]) = outline.failed_by_priority {
                assert!(high < low, "{name}: {high} % of high priority failed, {low} % of low");
            }
            assert_eq!(outline.failed_by_priority.is_some(), scenario.arrivals.high > 0, "{name}");
            assert_eq!(scenario.policies.admission, fleet.policies.admission, "{name}");
            if scenario.policies.admission.is_some() {
                holding_back_helps(&name, &scenario, &outline);
            }
            names.push(name);
        }
        names.sort();
        let mut all: Vec<String> = compared().map(|fleet| fleet.name.to_owned()).collect();
        all.sort();
        assert_eq!(names, all, "each has its file");
    }

    #[test]
    fn seeds_are_told_in_their_order_whatever_core_did_which() {
        let mut scenario = fleets::even();
        scenario.duration = Duration::from_millis(300);
        scenario.warm_up = Duration::ZERO;
        let reports = all(&scenario, 5, 20);
        assert_eq!(reports.iter().map(|report| report.seed).collect::<Vec<_>>(), (5..25).collect::<Vec<_>>());
        let alone = Outline::of(&scenario, simulate(&scenario, 8));
        assert_eq!((reports[3].latencies, &reports[3].loads), (alone.latencies, &alone.loads));
    }

    #[test]
    fn what_the_warm_up_has_is_in_no_percentage() {
        let mut scenario = fleets::even();
        (scenario.duration, scenario.warm_up) = (Duration::from_secs(2), Duration::from_secs(1));
        let phase = |at, state| meshwork_decision::simulator::Phase { at, state };
        for instance in &mut scenario.instances {
            instance.phases =
                vec![phase(Duration::ZERO, meshwork_decision::simulator::State::Failing(Duration::ZERO))];
        }
        assert_eq!(Outline::of(&scenario, simulate(&scenario, 1)).failed, 100.0);
    }

    #[test]
    fn a_budget_that_is_exceeded_and_a_request_that_never_ends_are_broken() {
        let scenario = fleets::even();
        let with = |change: fn(&mut Report)| {
            let mut report = Report::default();
            (report.requests, report.ended, report.attempts) = (100, 100, 120);
            change(&mut report);
            report
        };
        assert_eq!(broken(&scenario, &with(|_| ())), None);
        let spent = with(|report| report.attempts = 121);
        assert_eq!(
            broken(&scenario, &spent).unwrap(),
            "121 attempts for 100 requests, with a budget of 20 %"
        );
        let open = with(|report| report.ended = 99);
        assert_eq!(broken(&scenario, &open).unwrap(), "100 requests arrived and 99 ended");
        let told = with(|report| report.broken = Some("so".to_owned()));
        assert_eq!(broken(&scenario, &told).unwrap(), "so");
    }
}
