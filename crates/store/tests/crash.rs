//! `kill -9` at random moments: what was acknowledged is there, nothing is torn.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Rng, SeededRng, SystemClock};
use meshwork_store::embedded::{Options, open};
use meshwork_store::{Store, StoreError};

const KILLS: u32 = 500;

/// What a store must show at least: task to its last acknowledged number.
type Acknowledged = BTreeMap<u64, u64>;

/// Starts the writer, kills it after `after` (not later than that many bytes of acknowledgements), returns what it told.
fn run_and_kill(store: &Path, mode: &[&str], after: Duration) -> Acknowledged {
    let mut child = Command::new(env!("CARGO_BIN_EXE_store-crash-writer"))
        .arg(store)
        .args(mode)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        told.read_to_string(&mut text).unwrap();
        text
    });
    #[expect(clippy::disallowed_methods, reason = "the moment of death is the random input of the test")]
    std::thread::sleep(after);
    assert!(child.try_wait().unwrap().is_none(), "the writer ended by itself: the store failed it");
    child.kill().unwrap();
    child.wait().unwrap();
    let text = reader.join().unwrap();
    let mut acknowledged = Acknowledged::new();
    for line in text.lines() {
        let (task, number) = line.split_once(' ').unwrap();
        acknowledged.insert(task.parse().unwrap(), number.parse().unwrap());
    }
    acknowledged
}

fn reopen(path: &Path) -> Result<Store, StoreError> {
    open(path, Options::new(Arc::new(SystemClock::new()), Box::new(SeededRng::new(1))))
}

/// The first thing that is wrong with the store, given what was acknowledged; takes over what it holds.
async fn fault(path: &Path, acknowledged: &mut Acknowledged) -> Option<String> {
    let store = match reopen(path) {
        Ok(store) => store,
        Err(error) => return Some(format!("does not open: {error}")),
    };
    for task in 0..4u64 {
        let mut value = Vec::new();
        for side in ["left", "right"] {
            value.push(store.get(&format!("{side}/{task}")).await.unwrap().entry.map(|entry| entry.value));
        }
        if value[0] != value[1] {
            return Some(format!("task {task} is torn"));
        }
        let text = value[0].as_ref().map(|v| String::from_utf8(v.to_vec()).unwrap());
        let found = text.as_ref().map_or(0, |text| text[..20].parse::<u64>().unwrap());
        let whole = text.is_none_or(|text| text.len() == 20 + usize::try_from(found * 37 % 9000).unwrap());
        let told = acknowledged.get(&task).copied().unwrap_or(0);
        // One more than acknowledged may be there: killed between the commit and the telling.
        if !whole || found < told || found > told + 1 {
            return Some(format!("task {task}: {told} was acknowledged, {found} is there, whole: {whole}"));
        }
        acknowledged.insert(task, found);
    }
    store.close().await.unwrap();
    None
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn every_acknowledged_write_survives_kill_9_at_any_moment() {
    let seed = std::env::var("MESHWORK_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_261_123);
    let mut rng = SeededRng::new(seed);
    let runtime = runtime();
    let (mut written, mut kill) = (0, 0);
    while kill < KILLS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let mut acknowledged = Acknowledged::new();
        // Each store lives through some kills, so that damage done quietly by one shows in a later one.
        for _ in 0..25 {
            let after = Duration::from_micros(rng.below(30_000));
            let told = run_and_kill(&path, &[], after);
            acknowledged.extend(told);
            let wrong = runtime.block_on(fault(&path, &mut acknowledged));
            assert_eq!(wrong, None, "kill {kill}, MESHWORK_SEED={seed}");
            kill += 1;
        }
        written += acknowledged.values().sum::<u64>();
    }
    assert!(
        written > u64::from(KILLS),
        "only {written} writes in {KILLS} runs: the kills came before any work"
    );
}

#[test]
fn the_harness_sees_a_writer_that_acknowledges_too_early() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let caught = (0..200u32).any(|run| {
        let path = folder.path().join(run.to_string());
        let mut told = run_and_kill(&path, &["early"], Duration::from_millis(u64::from(10 + run % 10)));
        runtime.block_on(fault(&path, &mut told)).is_some()
    });
    assert!(caught, "200 runs of a writer with the bug looked right");
}

#[test]
fn a_second_process_is_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = reopen(&path).unwrap();
    let second = Command::new(env!("CARGO_BIN_EXE_store-crash-writer")).arg(&path).output().unwrap();
    assert!(!second.status.success());
    let message = String::from_utf8(second.stderr).unwrap();
    assert!(message.contains("InUse"), "{message}");
    let error = reopen(&path).err().unwrap();
    assert!(error.to_string().contains("in use by another process; stop that one first"), "{error}");
    runtime().block_on(store.close()).unwrap();
    assert!(reopen(&path).is_ok(), "closing lets the next one in");
}
