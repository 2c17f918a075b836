//! `meshwork simulate FILE --live`: a scenario in a mesh of its own, with what happens to it as faults of processes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/mod.rs"]
mod support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::platform::{Spawned, is_alive, pid_in, signal};
use support::{command, until, until_within};
use tempfile::TempDir;

/// How long a run may take in all, of which the longest takes half a minute. It has a minute for the start of each process
/// itself, and says so where that is not enough.
const RUN: Duration = Duration::from_mins(5);

/// A scenario in a folder of its own, and where its mesh has its state. When dropped, what still runs of it is ended.
struct Live {
    folder: TempDir,
    file: PathBuf,
}

impl Live {
    fn new(scenario: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("fleet.yaml");
        std::fs::write(&file, scenario).unwrap();
        std::fs::create_dir(folder.path().join("mesh")).unwrap();
        Self { folder, file }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("mesh")
    }

    fn command(&self) -> std::process::Command {
        let mut command = command(&["simulate", "--live", "-o", "json"]);
        command.arg(&self.file).env("TMPDIR", self.state()).stdin(Stdio::null());
        command
    }

    fn start(&self) -> Spawned {
        let file = |name| File::create(self.folder.path().join(name)).unwrap();
        Spawned::telling(&mut self.command(), file("said"), file("log"))
    }

    fn said(&self) -> Vec<u8> {
        std::fs::read(self.folder.path().join("said")).unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn told(&self) -> Value {
        let mut run = self.start();
        let ended = until_within(RUN, "the run ends", || run.has_ended());
        assert!(ended.success(), "{ended}: {}", self.log());
        assert_eq!(self.left(), Vec::<PathBuf>::new(), "nothing is left of it");
        serde_json::from_slice(&self.said()).unwrap()
    }

    /// Sidecar and application of three, server and gateway, once all are there.
    fn all_run(&self, run: &mut Spawned) -> Vec<(PathBuf, u64)> {
        until_within(RUN, "all run", || {
            assert!(run.has_ended().is_none(), "{}", self.log());
            Some(self.pids()).filter(|pids| pids.len() == 8)
        })
    }

    fn left(&self) -> Vec<PathBuf> {
        folders(&self.state())
    }

    /// The numbers of all its processes, by their files.
    fn pids(&self) -> Vec<(PathBuf, u64)> {
        let roles = self.left().into_iter().flat_map(|mesh| folders(&mesh));
        let files = roles.flat_map(|role| [role.join("pid"), role.join("app.pid")]);
        files.filter_map(|file| pid_in(&file).map(|pid| (file, pid))).collect()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        for mesh in self.left() {
            drop(command(&["down", "--data-dir"]).arg(mesh).output());
        }
    }
}

fn folders(of: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(of).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

fn median(live: &Value, key: &str) -> f64 {
    live[key]["median"].as_f64().unwrap()
}

fn load(live: &Value, instance: usize) -> f64 {
    live["loads"][instance]["percent"]["median"].as_f64().unwrap()
}

/// One of the five serves, one has crashed, one is on a host that is gone, one answers 503, one hangs.
const FLEET: &str = "\
name: one of five is left
duration: 8s
warmUp: 4s
clients: 2
arrivals: {perSecond: 20}
instances:
- {concurrency: 8, service: {mean: 5ms}}
- {service: {mean: 5ms}, phases: [{at: 0s, state: Away}]}
- {service: {mean: 5ms}, phases: [{at: 0s, state: Lost}, {at: 1s, state: Lost}]}
- {service: {mean: 5ms}, phases: [{at: 0s, state: Failing, after: 1ms}]}
- {service: {mean: 5ms}, phases: [{at: 0s, state: Hanging}]}
policies:
  outlierDetection: {consecutive5xx: 1, maxEjectionPercent: 100, baseEjectionTime: 60s}
  retry:
    {attempts: 10, perTryTimeout: 1s, backoff: {base: 1ms, max: 20ms}, budget: {percent: 100, minPerSecond: 1000}}
  hedge: {delay: 10s}
  timeouts: {request: 20s}
";

#[test]
fn a_scenario_runs_in_a_mesh_whose_sidecars_do_as_its_policies_say() {
    let live = Live::new(FLEET).told();
    assert!(live["requests"].as_u64().unwrap() > 80, "{live}");
    assert_eq!(median(&live, "failedPercent"), 0.0, "{live}");
    assert!(median(&live, "retries") >= 4.0 && median(&live, "attemptsPerRequest") > 1.0, "{live}");
    // Each of two clients finds each of the four.
    assert!(median(&live, "ejections") >= 8.0, "{live}");
    assert!(load(&live, 0) > 70.0 && load(&live, 1) == 0.0 && load(&live, 2) == 0.0, "{live}");
    assert!(load(&live, 3) > 0.0 && load(&live, 4) > 0.0, "{live}");
}

/// One has three times the weight; of the others one joins, one comes back from a crash, one with its host. They have most of
/// the time for that: a sidecar has to start, join and register, on a machine that may have much to do.
const COMING: &str = "\
name: three come
duration: 30s
clients: 1
arrivals: {perSecond: 12}
instances:
- {service: {mean: 1ms}, concurrency: 8}
- {service: {mean: 1ms}, concurrency: 8, weight: 3}
- {service: {mean: 1ms}, concurrency: 8, joins: 5s}
- {service: {mean: 1ms}, concurrency: 8, phases: [{at: 0s, state: Away}, {at: 5s, state: Serving}]}
- {service: {mean: 1ms}, concurrency: 8, phases: [{at: 0s, state: Lost}, {at: 5s, state: Serving}]}
policies:
  loadBalancer: {algorithm: RoundRobin}
  retry: {attempts: 10, perTryTimeout: 500ms, backoff: {base: 1ms, max: 20ms}, budget: {percent: 100, minPerSecond: 1000}}
  timeouts: {request: 20s}
";

#[test]
fn instances_are_registered_with_their_weight_when_they_join_and_when_they_come_back() {
    let live = Live::new(COMING).told();
    assert_eq!(median(&live, "failedPercent"), 0.0, "{live}");
    let shares: Vec<f64> = (0..5).map(|instance| load(&live, instance)).collect();
    assert!(shares.iter().all(|share| *share > 0.0), "{live}");
    assert!((2.0..4.5).contains(&(shares[1] / shares[0])), "{live}");
    assert!(shares[2..].iter().all(|share| *share < shares[0]), "{live}");
}

/// Twice of what one instance can do, a quarter of it of high priority.
const OVERLOAD: &str = "\
name: too much
duration: 5s
warmUp: 2s
arrivals: {perSecond: 80, highPercent: 25}
instances:
- {concurrency: 2, service: {mean: 50ms, spread: Constant}}
policies:
  retry: {attempts: 0}
  overload: {adaptiveConcurrency: {}, queue: {maxRequests: 8}}
  timeouts: {request: 1s}
";

#[test]
fn a_live_instance_has_a_sidecar_that_keeps_it_from_overload() {
    let live = Live::new(OVERLOAD).told();
    let (high, low) = (median(&live, "failedHighPercent"), median(&live, "failedLowPercent"));
    // Half can be answered. Without it whatever is answered has waited in the instance's queue for longer than anybody asks.
    assert!((20.0..80.0).contains(&median(&live, "failedPercent")), "{live}");
    // A machine that does other work can do less than the instance, and some of high priority fail too.
    assert!(high < low / 2.0 && low > 30.0, "{live}");
}

/// Nothing happens, for longer than anybody waits.
const LONG: &str = "\
name: long
duration: 1h
arrivals: {perSecond: 1}
instances:
- {service: {mean: 1ms}}
- {service: {mean: 1ms}, phases: [{at: 0s, state: Lost}]}
";

fn is_lost(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T')
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_signal_ends_all_that_a_run_has_started() {
    let live = Live::new(LONG);
    let mut run = live.start();
    let fleet = |file: &Path| file.parent().unwrap().ends_with("fleet-1");
    let pids = live.all_run(&mut run);
    let (_, lost) = pids.iter().find(|(file, _)| fleet(file)).unwrap();
    until_within(RUN, "one is lost", || is_lost(*lost).then_some(()));
    signal("INT", run.id());
    assert_eq!(until_within(RUN, "the run ends", || run.has_ended()).code(), Some(1));
    let words = live.log();
    assert!(words.contains("ended by a signal"), "{words}");
    until("nothing runs", || pids.iter().all(|(_, pid)| !is_alive(*pid)).then_some(()));
    assert_eq!(live.left(), Vec::<PathBuf>::new());
}

#[test]
fn a_sidecar_that_ends_by_itself_ends_the_run_and_what_explains_it_stays() {
    let live = Live::new(LONG);
    let mut run = live.start();
    let pids = live.all_run(&mut run);
    let (file, pid) = pids.iter().find(|(file, _)| file.ends_with("fleet-0/pid")).unwrap();
    signal("KILL", *pid);
    assert_eq!(until_within(RUN, "the run ends", || run.has_ended()).code(), Some(1));
    let words = live.log();
    let place = file.with_file_name("log");
    assert!(words.contains("fleet-0 ended by itself") && words.contains(place.to_str().unwrap()), "{words}");
    assert!(place.is_file());
    until("nothing runs", || pids.iter().all(|(_, pid)| !is_alive(*pid)).then_some(()));
}

#[test]
fn a_test_that_ends_too_early_leaves_nothing_that_runs() {
    let live = Live::new(LONG);
    let mut run = live.start();
    let pids = live.all_run(&mut run);
    until_within(RUN, "one is lost", || pids.iter().any(|(_, pid)| is_lost(*pid)).then_some(()));
    drop(run);
    drop(live);
    until("nothing runs", || pids.iter().all(|(_, pid)| !is_alive(*pid)).then_some(()));
}

#[test]
fn what_no_process_can_do_is_refused() {
    let refused = |scenario: &str, word: &str| {
        let live = Live::new(scenario);
        let output = live.command().output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(said(&output).contains(word), "{}", said(&output));
        assert_eq!(live.left(), Vec::<PathBuf>::new());
    };
    refused(
        &LONG.replace("- {service: {mean: 1ms}}", "- {count: 300, service: {mean: 1ms}}"),
        "302 sidecars",
    );
    refused(&LONG.replace("state: Lost", "state: Away}, {at: 1s, state: Lost"), "instances[1].phases: at 1s");
    refused(&format!("{LONG}policies:\n  retry: {{attempts: 1000}}\n"), "attempts");
}
