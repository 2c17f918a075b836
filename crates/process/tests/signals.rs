//! Signals reach the drain of a real process: SIGTERM begins it, a second one cuts it off, SIGHUP reopens.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test that talks to its child over stderr")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use meshwork_process::{Drain, Drained};

/// Set for the child, which is this test binary again.
const CHILD: &str = "MESHWORK_TEST_SIGNAL_CHILD";

/// Serves until drained; says on stderr what happens. With `busy` something stays in flight.
fn child(busy: bool) -> ! {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let outcome = runtime.block_on(async {
        let drain = Drain::new(Duration::from_secs(600));
        let guard = busy.then(|| drain.guard());
        let watched = drain.clone();
        tokio::spawn(async move { watched.on_signals(|| eprintln!("reopened")).await });
        // One turn of the loop installs the handlers.
        tokio::task::yield_now().await;
        eprintln!("serving");
        drain.draining().cancelled().await;
        eprintln!("draining");
        let outcome = drain.wait().await;
        drop(guard);
        outcome
    });
    std::process::exit(match outcome {
        Drained::Clean => 0,
        Drained::CutOff { left } => i32::try_from(left).unwrap(),
    });
}

struct Process {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStderr>>,
}

impl Process {
    fn start(test: &str, mode: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", test])
            .env(CHILD, mode)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut process = Self { child, lines };
        process.expect("serving");
        process
    }

    fn expect(&mut self, line: &str) {
        assert!(
            self.lines.by_ref().map_while(Result::ok).any(|l| l == line),
            "the process never said `{line}`"
        );
    }

    fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn in_child() -> Option<bool> {
    std::env::var(CHILD).ok().map(|mode| mode == "busy")
}

#[test]
fn sigterm_drains_and_an_idle_process_exits_with_zero() {
    if let Some(busy) = in_child() {
        child(busy);
    }
    let mut process = Process::start("sigterm_drains_and_an_idle_process_exits_with_zero", "idle");
    process.signal("HUP");
    process.expect("reopened");
    process.signal("TERM");
    process.expect("draining");
    assert_eq!(process.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_signal_stops_a_busy_process_at_once() {
    if let Some(busy) = in_child() {
        child(busy);
    }
    let mut process = Process::start("a_second_signal_stops_a_busy_process_at_once", "busy");
    process.signal("INT");
    process.expect("draining");
    assert_eq!(process.child.try_wait().unwrap(), None, "something is in flight");
    process.signal("TERM");
    assert_eq!(process.child.wait().unwrap().code(), Some(1), "one guard was left");
}
