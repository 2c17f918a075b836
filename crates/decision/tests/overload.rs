//! Line 5 of what an overloaded service must keep, in simulated time: goodput, who goes first, and how soon it is over.
//!
//! The whole form (`--ignored`, see `tests/long`) takes a hundred seeds (`SEEDS`: so many) and prints the table.

use std::time::Duration;

use meshwork_decision::simulator::fleets::{self, BEGINS, OVERLOADED};
use meshwork_decision::simulator::{Answered, Report, Scenario, Spread, median, run};

/// What the fleet can do in a second.
const CAPACITY: f64 = 1_200.0;
/// From when on the overload lasts long enough to be looked at.
const SETTLED: Duration = Duration::from_secs(2);

struct Kept {
    /// Answers in a second of the overload, as a part of what can be done.
    goodput: f64,
    /// Of the requests of high priority in the overload, and of low: the part that was answered.
    high: f64,
    low: f64,
    /// Milliseconds, of those that were answered.
    p50: f64,
    p99: f64,
    /// Seconds from the end of the overload until nothing fails any more and nothing takes twenty times as long as usual.
    recovery: f64,
}

fn kept(report: &Report, until: Duration) -> Kept {
    let ended = |answer: &&Answered| {
        let end = answer.arrived + answer.took;
        answer.well && end >= BEGINS + SETTLED && end < until
    };
    let span = (until - BEGINS - SETTLED).as_secs_f64();
    let goodput = report.answers.iter().filter(ended).count() as f64 / span / CAPACITY;
    let came = |high: bool| {
        let came = report.answers.iter();
        came.filter(move |a| a.high == high && a.arrived >= BEGINS && a.arrived < until)
    };
    let served = |high| came(high).filter(|a| a.well).count() as f64 / came(high).count() as f64;
    let mut times: Vec<Duration> = report.answers.iter().filter(ended).map(|a| a.took).collect();
    times.sort_unstable();
    let quantile = |share: f64| 1e3 * times[(share * times.len() as f64) as usize].as_secs_f64();
    let bad = |a: &&Answered| a.arrived >= until && (!a.well || a.took > Duration::from_millis(400));
    let last = report.answers.iter().filter(bad).map(|a| a.arrived).max();
    Kept {
        goodput,
        high: served(true),
        low: served(false),
        p50: quantile(0.5),
        p99: quantile(0.99),
        recovery: last.map_or(0.0, |last| (last - until).as_secs_f64()),
    }
}

/// The same with an overload that lasts as long as this.
fn lasting(time: Duration) -> (Scenario, Duration) {
    let mut scenario = fleets::overloaded();
    let until = BEGINS + time;
    scenario.arrivals.loads[2].0 = until;
    scenario.duration = until + Duration::from_secs(10);
    (scenario, until)
}

fn broken(report: &Report, kept: &Kept) -> Vec<String> {
    let mut broken: Vec<String> = report.broken.iter().cloned().collect();
    if kept.goodput < 0.9 {
        broken.push(format!("goodput is {:.1} % of capacity", 100.0 * kept.goodput));
    }
    if kept.high < 0.94 || kept.high < 3.0 * kept.low {
        broken.push(format!(
            "of high priority {:.1} % were answered, of low {:.1} %",
            100.0 * kept.high,
            100.0 * kept.low
        ));
    }
    if kept.recovery >= 5.0 {
        broken.push(format!("it took {:.1} s to recover", kept.recovery));
    }
    broken.into_iter().map(|why| format!("seed {}: {why}", report.seed)).collect()
}

#[test]
fn at_three_times_of_what_it_can_do_a_fleet_does_what_it_can_and_what_matters_first() {
    let (scenario, until) = lasting(Duration::from_secs(8));
    let report = run(&scenario, 1);
    let kept = kept(&report, until);
    let broken = broken(&report, &kept);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// As many as each instance works on, and twelve times as many, which is too much.
#[test]
fn under_a_limit_that_is_said_it_does_so_too() {
    for limit in [8, 100] {
        let (mut scenario, until) = lasting(Duration::from_secs(8));
        let (concurrency, _) = scenario.policies.overload.as_mut().expect("it has one");
        (concurrency.min_concurrency, concurrency.max_concurrency) = (limit, limit);
        let report = run(&scenario, 1);
        let kept = kept(&report, until);
        let broken = broken(&report, &kept);
        assert!(broken.is_empty(), "{limit} at once: {}", broken.join("\n"));
    }
}

/// One that works on three at once, 300 ms each, and does not notice who has hung up; who asks waits for little longer.
fn deaf(patience: Duration) -> (Scenario, Duration) {
    let (mut scenario, until) = lasting(Duration::from_secs(60));
    scenario.instances.truncate(1);
    let instance = &mut scenario.instances[0];
    (instance.concurrency, instance.is_deaf) = (3, true);
    (instance.service, instance.spread) = (Duration::from_millis(300), Spread::Constant);
    scenario.arrivals.per_second = 10.0;
    scenario.policies.timeout = patience;
    (scenario, until)
}

#[test]
fn who_works_on_what_nobody_waits_for_is_kept_from_it() {
    for patience in [1_000, 2_000] {
        for seed in 0..10 {
            let (scenario, until) = deaf(Duration::from_millis(patience));
            let report = run(&scenario, seed);
            let is_served = |a: &&Answered| a.well && a.arrived >= BEGINS && a.arrived < until;
            let served = report.answers.iter().filter(is_served).count() as f64;
            let goodput = served / (until - BEGINS).as_secs_f64() / scenario.arrivals.per_second;
            assert!(goodput > 0.7, "{patience} ms, seed {seed}: {:.1} %", 100.0 * goodput);
            assert_eq!(report.broken, None);
        }
    }
}

/// Who says how many it works on at once does not get more of them by its callers giving up.
#[test]
fn a_limit_that_is_said_keeps_it_from_that_too() {
    for seed in 0..5 {
        let (mut scenario, until) = deaf(Duration::from_secs(1));
        let (concurrency, _) = scenario.policies.overload.as_mut().expect("it has one");
        (concurrency.min_concurrency, concurrency.max_concurrency) = (6, 6);
        let report = run(&scenario, seed);
        let is_served = |a: &&Answered| a.well && a.arrived >= BEGINS && a.arrived < until;
        let served = report.answers.iter().filter(is_served).count() as f64;
        let goodput = served / (until - BEGINS).as_secs_f64() / scenario.arrivals.per_second;
        assert!(goodput > 0.9, "seed {seed}: {:.1} %", 100.0 * goodput);
    }
}

#[test]
fn without_a_gate_the_same_fleet_works_for_nobody() {
    let (mut scenario, until) = lasting(Duration::from_secs(8));
    scenario.policies.overload = None;
    let kept = kept(&run(&scenario, 1), until);
    assert!(kept.goodput < 0.6 && kept.high < 0.5, "{:.2} {:.2}", kept.goodput, kept.high);
}

#[test]
#[ignore = "a hundred seeds take minutes: see tests/long"]
fn the_overload_of_a_minute_over_a_hundred_seeds() {
    println!("| fleet i | goodput | high | low | p50 | p99 | recovery |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let mut wrong = Vec::new();
    let seeds: u64 = std::env::var("SEEDS").map_or(100, |seeds| seeds.parse().expect("a number"));
    for (name, gate, spread) in [
        ("with `overload`", true, Spread::Exponential),
        ("with it, all requests alike", true, Spread::Constant),
        ("without it", false, Spread::Exponential),
    ] {
        let (mut scenario, until) = lasting(OVERLOADED);
        if !gate {
            scenario.policies.overload = None;
        }
        scenario.instances.iter_mut().for_each(|instance| instance.spread = spread);
        let mut all = Vec::new();
        for seed in 0..seeds {
            let report = run(&scenario, seed);
            let kept = kept(&report, until);
            if gate {
                wrong.extend(broken(&report, &kept));
            }
            all.push(kept);
        }
        let of = |field: fn(&Kept) -> f64| median(all.iter().map(field));
        let worst = all.iter().map(|kept| kept.recovery).fold(0.0, f64::max);
        println!(
            "| {name} | {:.1} % | {:.1} % | {:.1} % | {:.0} ms | {:.0} ms | {:.2} s, at most {worst:.2} s |",
            100.0 * of(|kept| kept.goodput),
            100.0 * of(|kept| kept.high),
            100.0 * of(|kept| kept.low),
            of(|kept| kept.p50),
            of(|kept| kept.p99),
            of(|kept| kept.recovery),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
