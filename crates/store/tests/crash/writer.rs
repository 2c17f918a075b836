//! The process that `tests/crash.rs` kills: writes for ever and tells on stdout what was acknowledged.
//!
//! `store-crash-writer STORE [early]`: each of four tasks writes pairs of keys that must never disagree; `early` is
//! the bug the test must be able to see: it acknowledges before the store did.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use meshwork_base::{SystemClock, ThreadRng};
use meshwork_store::embedded::{Options, open};
use meshwork_store::{Condition, Op, Store, StoreError, Txn};

/// Tasks that write at the same time, so that batches have several transactions.
const TASKS: u64 = 4;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: store-crash-writer STORE [early]")?;
    let early = arguments.next().is_some_and(|mode| mode == "early");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let options = Options::new(Arc::new(SystemClock::new()), Box::new(ThreadRng::new()));
        // A short history makes compaction part of what is interrupted.
        let store = open(Path::new(&path), Options { history: 50, ..options })?;
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..TASKS {
            tasks.spawn(write(store.clone(), task, early));
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(())
    })
}

async fn write(store: Store, task: u64, early: bool) -> Result<(), StoreError> {
    let [left, right] = [format!("left/{task}"), format!("right/{task}")];
    let found = store.get(&left).await?.entry;
    let mut last = found.as_ref().map_or(0, |entry| number(&entry.value));
    let mut seen = found.map_or(Condition::Absent, |entry| Condition::Modified(entry.modified));
    loop {
        let next = last + 1;
        // Sizes from a few bytes to several pages, so that a torn page would show.
        let size = usize::try_from(next * 37 % 9000).unwrap_or(0);
        let value = format!("{next:020}{}", "x".repeat(size));
        let txn = Txn::new()
            .when(&left, seen.clone())
            .then(Op::put(&left, value.clone()))
            .then(Op::put(&right, value))
            .then(Op::put(&format!("log/{task}/{}", next % 40), next.to_string()));
        if early {
            tell(task, next);
        }
        let done = store.commit(txn).await?.done();
        let cursor =
            done.ok_or_else(|| StoreError::Invalid { why: "nobody else writes these keys".to_owned() })?;
        if !early {
            tell(task, next);
        }
        seen = Condition::Modified(cursor.revision);
        last = next;
    }
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(&value[..20]).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn tell(task: u64, acknowledged: u64) {
    // One short write per line: a pipe takes it whole.
    _ = std::io::stdout().write_all(format!("{task} {acknowledged}\n").as_bytes());
}
