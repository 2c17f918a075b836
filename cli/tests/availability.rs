//! What a customer notices when instances crash, are restarted in turn, and when nobody is there to configure them:
//! nothing. Requests come in an open loop while it happens, and each is counted.
//!
//! What is run in CI is short; `tests/long` runs the whole (500 requests a second, two minutes with twenty kills, two of
//! restarts in turn, ten minutes of absence, three seeds each; and twelve minutes in which nothing happens).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "what was counted is the result")]

#[path = "support/mod.rs"]
mod support;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use meshwork_base::{Clock as _, Rng as _, SeededRng, SystemClock, Tick};
use parking_lot::Mutex;
use support::load::{Kind, Load, Outcome, Tally};
use support::platform::{Platform, assert_ok, is_alive, pid_in, shop_is_built};
use support::{get, until};

/// Each measures the whole machine: one at a time.
static MACHINE: Mutex<()> = Mutex::new(());

const INSTANCES: [&str; 6] =
    ["catalog-1", "catalog-2", "inventory-1", "inventory-2", "reviews-1", "storefront-1"];
/// What is saved again and again; its name is that of the catalogue.
const PRODUCT: &str = r#"{"sku": "TE1001", "name": "Larkfold 1 Solo Tent", "category": "Tents & Shelters", "brand": "Fellgate", "pricePence": 18900}"#;

/// A sidecar gives up what it has not used for ten minutes.
const QUIET: Duration = Duration::from_secs(720);

/// How much of it.
#[derive(Clone, Copy)]
struct Form {
    seeds: &'static [u64],
    rate: u32,
    /// While instances are killed.
    duration: Duration,
    kills: usize,
    /// Rounds of restarts are begun for so long; one is always made.
    rolling: Duration,
    /// Of control plane, registry and config service.
    absence: Duration,
    /// Of 10,000 requests so many may fail. The short form has too few requests to tell a rate: there only what a
    /// killed process perhaps had done, and nobody may do again, is forgiven, once for each kill.
    per_ten_thousand: Option<usize>,
}

const SHORT: Form = Form {
    seeds: &[1],
    rate: 100,
    duration: Duration::from_secs(30),
    kills: 6,
    // Each is restarted often enough for a supervisor's pause between crashes to show.
    rolling: Duration::from_secs(12),
    absence: Duration::from_secs(30),
    per_ten_thousand: None,
};

const WHOLE: Form = Form {
    seeds: &[1, 2, 3],
    rate: 500,
    duration: Duration::from_secs(120),
    kills: 20,
    rolling: Duration::from_secs(120),
    absence: Duration::from_secs(600),
    per_ten_thousand: Some(1),
};

fn load(platform: &Platform, form: Form, seed: u64) -> Load {
    let get = |name, percent, path| Kind { name, percent, method: Method::GET, path, body: Bytes::new() };
    let kinds = vec![
        get("GET product", 85, "/api/catalog/products/TE1001"),
        Kind {
            name: "POST product",
            percent: 10,
            method: Method::POST,
            path: "/api/catalog/products",
            body: Bytes::from_static(PRODUCT.as_bytes()),
        },
        get("GET page", 5, "/products/TE1001"),
    ];
    Load { address: platform.at(8080), rate: form.rate, seed, kinds }
}

/// Runs the platform under load while something happens to it.
fn under_load(form: Form, seed: u64, happens: impl FnOnce(&Platform)) -> Tally {
    let platform = Platform::new();
    assert_ok(&platform.up(&[]));
    let load = load(&platform, form, seed);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let loading = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(load.run(stopped))
    });
    happens(&platform);
    stop.store(true, Ordering::SeqCst);
    let tally = loading.join().expect("the load is measured");
    if tally.failed().next().is_some() {
        keep_logs(&platform);
    }
    tally
}

/// Where `MESHWORK_KEEP_LOGS` says, for who asks why.
fn keep_logs(platform: &Platform) {
    let Some(folder) = std::env::var_os("MESHWORK_KEEP_LOGS") else { return };
    let copy = std::process::Command::new("cp").arg("-r").arg(platform.data.path()).arg(folder).status();
    assert!(copy.unwrap().success());
}

/// Waits until a moment of the schedule.
#[expect(
    clippy::disallowed_methods,
    reason = "what happens, happens when it is due, not when something is ready"
)]
fn sleep_until(clock: &SystemClock, due: Tick) {
    std::thread::sleep(due.since(clock.now()));
}

/// Kills a running process at once; false when it is not there.
fn kill(file: &Path) -> bool {
    let Some(pid) = pid_in(file).filter(|&pid| is_alive(pid)) else { return false };
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok()
}

fn ready(platform: &Platform, instance: &str) -> Option<()> {
    let index = INSTANCES.iter().position(|name| *name == instance).unwrap();
    let address = u32::from(platform.base) + u32::try_from(index).unwrap() + 1;
    let address = SocketAddr::new(std::net::Ipv4Addr::from(address).into(), 15021);
    (get(address, "/healthz/ready")?.0 == 200).then_some(())
}

/// Sidecars and applications are killed at moments that chance chooses, some while another is still starting.
fn kills(platform: &Platform, form: Form, seed: u64) {
    let clock = SystemClock::new();
    let begin = clock.now();
    let mut rng = SeededRng::new(seed);
    let mut times: Vec<f64> = (0..form.kills).map(|_| 0.02 + 0.93 * rng.unit()).collect();
    times.sort_by(f64::total_cmp);
    for time in times {
        sleep_until(&clock, begin.after(form.duration.mul_f64(time)));
        // One that is dead already cannot be killed: another is.
        loop {
            let instance = INSTANCES[usize::try_from(rng.below(INSTANCES.len() as u64)).unwrap()];
            let file = if rng.below(2) == 0 { "pid" } else { "app.pid" };
            if kill(&platform.file(instance, file)) {
                println!("  {:.2} kill -9 {instance}/{file}", clock.now().since(begin).as_secs_f64());
                break;
            }
        }
    }
    sleep_until(&clock, begin.after(form.duration));
}

/// Each instance is told to end, and the next one when it is back, round after round while the time lasts.
fn roll(platform: &Platform, form: Form) {
    let clock = SystemClock::new();
    let begin = clock.now();
    let mut restarted = 0;
    loop {
        for instance in INSTANCES {
            let file = platform.file(instance, "pid");
            let before = pid_in(&file).unwrap();
            support::platform::signal("TERM", before);
            until(&format!("{instance} is another process, and ready"), || {
                pid_in(&file).filter(|&pid| pid != before).and_then(|_| ready(platform, instance))
            });
            restarted += 1;
        }
        if clock.now().since(begin) >= form.rolling {
            break;
        }
    }
    println!("  restarted {restarted} times in {:.1?}", clock.now().since(begin));
}

/// Control plane, registry and config service are gone; a sidecar is killed meanwhile, and serves again.
fn absence(platform: &Platform, form: Form) {
    let clock = SystemClock::new();
    let begin = clock.now();
    // Whoever wants to start them finds their port taken.
    let taken = until("the server is gone", || {
        kill(&platform.file("server", "pid"));
        TcpListener::bind(platform.at(15012)).ok()
    });
    sleep_until(&clock, begin.after(form.absence / 3));
    let file = platform.file("catalog-1", "pid");
    let before = pid_in(&file).unwrap();
    assert!(kill(&file));
    let log = platform.file("catalog-1", "access.log");
    let lines = || std::fs::read_to_string(&log).unwrap_or_default().lines().count();
    until("the sidecar is another process, and ready", || {
        pid_in(&file).filter(|&pid| pid != before).and_then(|_| ready(platform, "catalog-1"))
    });
    let (restarted, served) = (clock.now(), lines());
    until("it serves", || (lines() > served).then_some(()));
    println!("  restarted after {:.1?}, serves", restarted.since(begin.after(form.absence / 3)));
    sleep_until(&clock, begin.after(form.absence));
    let answer = get(platform.at(15014), "/healthz/ready");
    assert!(answer.is_none_or(|(status, _)| status != 200), "the server was away all the time");
    drop(taken);
    until("the server is back", || {
        get(platform.at(15014), "/healthz/ready").filter(|(status, _)| *status == 200)
    });
}

/// Prints what was counted, and holds it against what is asked for; gives what is wrong.
fn judge(form: Form, what: &str, seed: u64, kills: usize, tally: &Tally) -> Option<String> {
    println!("{what}, seed {seed}, {} requests/s: {}", form.rate, tally.report());
    assert!(tally.sent() > 0);
    let perhaps_done = |kind: &str, outcome: &Outcome| {
        let Outcome::Status(503, why) = outcome else { return false };
        kind == "POST product" && matches!(why.as_str(), "upstream_reset" | "upstream_closed")
    };
    let (forgiven, failed): (Vec<_>, Vec<_>) =
        tally.failed().partition(|(kind, _, outcome)| perhaps_done(kind, outcome));
    let wrong = match form.per_ten_thousand {
        Some(allowed) => (forgiven.len() + failed.len()) * 10_000 > allowed * tally.sent(),
        None => !failed.is_empty() || forgiven.len() > kills,
    };
    wrong.then(|| format!("{what}, seed {seed}: lost {failed:?}, perhaps done {forgiven:?}"))
}

/// The seeds of a form, or those that `MESHWORK_SEEDS` names: one that failed can be run again.
fn seeds(form: Form) -> Vec<u64> {
    let named = std::env::var("MESHWORK_SEEDS").ok();
    let named = named.map(|text| text.split(',').map(|seed| seed.trim().parse().unwrap()).collect());
    named.unwrap_or_else(|| form.seeds.to_vec())
}

/// Runs it for every seed; the worst run counts.
fn each(form: Form, what: &str, kills: usize, happens: impl Fn(&Platform, u64)) {
    let run = |seed| {
        let tally = under_load(form, seed, |platform| happens(platform, seed));
        judge(form, what, seed, kills, &tally)
    };
    let wrong: Vec<String> = seeds(form).into_iter().filter_map(run).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn instances_are_killed(form: Form) {
    each(form, "kills", form.kills, |platform, seed| kills(platform, form, seed));
}

fn instances_are_restarted_in_turn(form: Form) {
    each(form, "rolling restart", 0, |platform, _| roll(platform, form));
}

fn nobody_configures(form: Form) {
    each(form, "absence", 1, |platform, _| absence(platform, form));
}

/// Longer than anything that nobody uses is kept, so that what is dropped then is missed.
fn nothing_happens(form: Form) {
    each(form, "quiet", 0, |_, _| {
        let clock = SystemClock::new();
        sleep_until(&clock, clock.now().after(QUIET));
    });
}

/// Runs one test, alone on the machine.
fn alone(test: impl FnOnce()) {
    if shop_is_built() {
        let _machine = MACHINE.lock();
        test();
    }
}

#[test]
fn no_request_is_lost_when_instances_are_killed() {
    alone(|| instances_are_killed(SHORT));
}

#[test]
fn no_request_is_lost_when_instances_are_restarted_in_turn() {
    alone(|| instances_are_restarted_in_turn(SHORT));
}

#[test]
fn no_request_is_lost_while_nobody_configures_and_a_sidecar_restarted_meanwhile_serves() {
    alone(|| nobody_configures(SHORT));
}

#[test]
#[ignore = "twelve minutes: tests/long runs it"]
fn no_request_is_lost_while_nothing_happens() {
    alone(|| nothing_happens(Form { seeds: &[1], rate: 50, per_ten_thousand: None, ..WHOLE }));
}

#[test]
#[ignore = "ten minutes: tests/long runs it"]
fn of_ten_thousand_requests_one_may_be_lost_when_instances_are_killed() {
    alone(|| instances_are_killed(WHOLE));
}

#[test]
#[ignore = "minutes: tests/long runs it"]
fn of_ten_thousand_requests_one_may_be_lost_when_instances_are_restarted_in_turn() {
    alone(|| instances_are_restarted_in_turn(WHOLE));
}

#[test]
#[ignore = "half an hour: tests/long runs it"]
fn of_ten_thousand_requests_one_may_be_lost_while_nobody_configures() {
    alone(|| nobody_configures(WHOLE));
}
