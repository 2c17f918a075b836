//! A process that panics: what it said before comes first, and whoever has stopped reading does not hold it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Child, Command, Stdio};

use meshwork_telemetry::{LogFormat, MetricsRegistry, flush_log, init_logging};

/// Set for the child, which is this test binary again, to how many lines it has to say.
const CHILD: &str = "MESHWORK_TEST_PANIC_CHILD";

fn child(lines: &str) -> ! {
    init_logging(LogFormat::Text, "info", &MetricsRegistry::default()).unwrap();
    (0..lines.parse::<u32>().unwrap()).for_each(|number| tracing::info!(number, "it works"));
    let ended = std::panic::catch_unwind(|| panic!("it does not work"));
    assert!(ended.is_err());
    flush_log();
    std::process::exit(7);
}

fn start(test: &str, lines: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", test])
        .env(CHILD, lines)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_panic_is_told_after_what_was_said_before() {
    if let Ok(lines) = std::env::var(CHILD) {
        child(&lines);
    }
    let output = start("a_panic_is_told_after_what_was_said_before", "1").wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let (before, _) = text.split_once("panicked at").expect("it is told");
    assert_eq!(before.matches("it works").count(), 1);
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn a_panic_that_nobody_reads_holds_nobody() {
    if let Ok(lines) = std::env::var(CHILD) {
        child(&lines);
    }
    // More than a pipe takes, and less than is kept.
    let mut held = start("a_panic_that_nobody_reads_holds_nobody", "5000");
    // Its reader is there, and reads nothing. `wait` would close only what the child reads.
    let _reader = held.stderr.take().unwrap();
    assert_eq!(held.wait().unwrap().code(), Some(7));
}
