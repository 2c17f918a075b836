//! What a store promises to its users; the etcd engine has to pass the same.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use meshwork_base::ManualClock;
use meshwork_store::embedded::open;
use meshwork_store::{Compare, Condition, Cursor, Op, Outcome, Revision, Store, StoreError, Txn, WatchEvent};
use support::{TestDisk, options, runtime};

fn run(test: impl AsyncFnOnce(Store)) {
    let store = TestDisk::new().open().unwrap();
    runtime().block_on(test(store));
}

async fn put(store: &Store, key: &str, value: &str) -> Cursor {
    store.commit(Txn::new().then(Op::put(key, value.to_owned()))).await.unwrap().done().unwrap()
}

async fn keys(store: &Store, prefix: &str) -> Vec<String> {
    store.list(prefix).await.unwrap().entries.into_iter().map(|entry| entry.key).collect()
}

#[test]
fn a_transaction_happens_whole_and_only_while_its_conditions_hold() {
    run(async |store| {
        let first = put(&store, "a", "1").await;
        assert_eq!(first.revision, Revision(1));
        let stale = |at: Revision| {
            Txn::new()
                .when("a", Condition::Modified(at))
                .when("b", Condition::Absent)
                .then(Op::put("a", "2"))
                .then(Op::put("b", "2"))
        };
        assert_eq!(store.commit(stale(Revision(1))).await.unwrap().done().unwrap().revision, Revision(2));
        let Outcome::Conflict { cursor, current } = store.commit(stale(Revision(1))).await.unwrap() else {
            panic!("a stale write went through")
        };
        assert_eq!(cursor.revision, Revision(2), "a conflict uses up no revision");
        assert_eq!(
            current[0].as_ref().map(|e| (e.modified, e.created, e.version)),
            Some((Revision(2), Revision(1), 2))
        );
        assert_eq!(current[1].as_ref().unwrap().value, Bytes::from_static(b"2"));
        for (condition, holds) in [
            (Condition::Present, true),
            (Condition::Created(Revision(1)), true),
            (Condition::Created(Revision(2)), false),
            (Condition::Value("2".into()), true),
            (Condition::Value("1".into()), false),
            (Condition::Absent, false),
        ] {
            let compares = vec![Compare { key: "a".into(), condition: condition.clone() }];
            let outcome = store.commit(Txn { compares, ops: vec![] }).await.unwrap();
            assert_eq!(outcome.done().is_some(), holds, "{condition:?}");
        }
        let nothing = store.commit(Txn::new().then(Op::delete("absent"))).await.unwrap();
        assert_eq!(nothing.done().unwrap().revision, Revision(2), "what changes nothing is no revision");
    });
}

#[test]
fn concurrent_compare_and_set_lets_exactly_one_through() {
    run(async |store| {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..100 {
            let store = store.clone();
            let txn = Txn::new().when("lock", Condition::Absent).then(Op::put("lock", format!("{n}")));
            tasks.spawn(async move { store.commit(txn).await.unwrap().done().is_some() });
        }
        let won = tasks.join_all().await.into_iter().filter(|&won| won).count();
        assert_eq!(won, 1);
        assert_eq!(store.cursor().await.unwrap().revision, Revision(1));
    });
}

#[test]
fn lists_by_prefix_in_order_and_by_page() {
    run(async |store| {
        for key in ["b/2", "a", "b/1", "b/ü", "c", "b"] {
            put(&store, key, "").await;
        }
        assert_eq!(keys(&store, "b/").await, ["b/1", "b/2", "b/ü"]);
        assert_eq!(keys(&store, "").await.len(), 6);
        let page = store.page("b/", None, 2).await.unwrap();
        assert!(page.more && page.entries.len() == 2);
        let rest = store.page("b/", Some("b/2"), 2).await.unwrap();
        assert!(!rest.more && rest.entries.len() == 1);
        assert_eq!(store.page("b/", Some("zz"), 2).await.unwrap().entries, []);
        store.commit(Txn::new().then(Op::delete_prefix("b/"))).await.unwrap().done().unwrap();
        assert_eq!(keys(&store, "").await, ["a", "b", "c"]);
    });
}

#[test]
fn a_watch_tells_every_change_of_its_prefix_in_order_from_its_cursor() {
    run(async |store| {
        let from = put(&store, "a/1", "x").await;
        let txn = Txn::new().then(Op::put("a/2", "y")).then(Op::delete("a/1")).then(Op::put("b", "z"));
        let second = store.commit(txn).await.unwrap().done().unwrap();
        let mut watch = store.watch("a/", from).await.unwrap();
        let WatchEvent::Changes { cursor, changes } = watch.next().await.unwrap() else { panic!() };
        assert_eq!(cursor, second);
        let told: Vec<_> =
            changes.iter().map(|c| (c.revision.0, c.key.as_str(), c.entry.is_some())).collect();
        assert_eq!(told, [(2, "a/2", true), (2, "a/1", false)]);
        // Nothing more is there: the next call waits until something of its prefix happens.
        let next = watch.next();
        put(&store, "b", "unrelated").await;
        let third = put(&store, "a/3", "later").await;
        let WatchEvent::Changes { cursor, changes } = next.await.unwrap() else { panic!() };
        assert_eq!((cursor, changes.len(), changes[0].key.as_str()), (third, 1, "a/3"));
    });
}

#[test]
fn ten_thousand_unrelated_writes_wake_no_waiter() {
    run(async |store| {
        let cursor = store.cursor().await.unwrap();
        let mut watch = store.watch("mine/", cursor).await.unwrap();
        let mut waiting = tokio_test::task::spawn(watch.next());
        assert!(waiting.poll().is_pending());
        for n in 0..100 {
            let txn =
                (0..100).fold(Txn::new(), |txn, i| txn.then(Op::put(&format!("other/{i}"), n.to_string())));
            store.commit(txn).await.unwrap().done().unwrap();
        }
        assert!(!waiting.is_woken(), "an unrelated write woke the waiter");
        put(&store, "mine/1", "").await;
        assert!(waiting.is_woken());
        assert!(waiting.poll().is_ready());
    });
}

#[test]
fn a_watcher_too_far_behind_is_told_and_one_that_merely_slept_is_not() {
    let store = TestDisk::new().open_with(|options| options.history = 100).unwrap();
    runtime().block_on(async {
        let start = put(&store, "slow", "0").await;
        let mut slept = store.watch("slow", start).await.unwrap();
        assert!(tokio_test::task::spawn(slept.next()).poll().is_pending());
        for n in 0..400 {
            put(&store, "busy", &n.to_string()).await;
        }
        let mut late = store.watch("slow", start).await.unwrap();
        let WatchEvent::Compacted { oldest } = late.next().await.unwrap() else {
            panic!("history is unbounded")
        };
        assert!(oldest > Revision(200) && oldest <= Revision(302), "{oldest}");
        assert!(
            matches!(late.next().await.unwrap(), WatchEvent::Compacted { .. }),
            "a watch that ended stays ended"
        );
        put(&store, "slow", "1").await;
        let WatchEvent::Changes { changes, .. } = slept.next().await.unwrap() else {
            panic!("it missed nothing")
        };
        assert_eq!(changes.len(), 1);
        let at = store.cursor().await.unwrap();
        store.compact(at.revision.next()).await.unwrap();
        let mut fresh = store.watch("slow", at).await.unwrap();
        assert!(
            tokio_test::task::spawn(fresh.next()).poll().is_pending(),
            "a cursor at the head needs no history"
        );
    });
}

#[test]
fn a_long_history_comes_in_pieces_that_lose_nothing() {
    run(async |store| {
        let start = store.cursor().await.unwrap();
        for _ in 0..30 {
            let txn = (0..100).fold(Txn::new(), |txn, i| txn.then(Op::put(&format!("k/{i}"), "v")));
            store.commit(txn).await.unwrap().done().unwrap();
        }
        let mut watch = store.watch("k/", start).await.unwrap();
        let (mut count, mut events) = (0, 0);
        while count < 3000 {
            let WatchEvent::Changes { changes, cursor } = watch.next().await.unwrap() else { panic!() };
            assert_eq!(changes.last().unwrap().revision, cursor.revision, "a revision is never split");
            (count, events) = (count + changes.len(), events + 1);
        }
        assert!(count == 3000 && events > 1);
    });
}

#[test]
fn a_lease_takes_its_keys_along_unless_renewed_and_its_time_stops_with_its_keeper() {
    let clock = ManualClock::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/er/store");
    let seconds = Duration::from_secs;
    runtime().block_on(async {
        let store = open(&path, options(&clock)).unwrap();
        let lease = store.grant(seconds(10)).await.unwrap();
        let attach = Txn::new().then(Op::Put { key: "k".into(), value: "v".into(), lease: Some(lease) });
        store.commit(attach.clone()).await.unwrap().done().unwrap();
        clock.advance(seconds(9));
        store.renew(lease).await.unwrap();
        let before = store.cursor().await.unwrap();
        clock.advance(seconds(9));
        store.expire().await.unwrap();
        assert_eq!(store.cursor().await.unwrap(), before, "a renewal is no write, and it was in time");
        store.close().await.unwrap();
        assert!(matches!(store.commit(attach.clone()).await, Err(StoreError::Closed)));
        clock.advance(seconds(1000));
        let store = open(&path, options(&clock)).unwrap();
        store.expire().await.unwrap();
        assert_eq!(keys(&store, "").await, ["k"], "time did not run while the keeper was down");
        let mut watch = store.watch("", before).await.unwrap();
        clock.advance(seconds(10));
        store.expire().await.unwrap();
        let WatchEvent::Changes { changes, .. } = watch.next().await.unwrap() else { panic!() };
        assert_eq!((changes.len(), &changes[0].entry), (1, &None));
        assert!(matches!(store.renew(lease).await, Err(StoreError::UnknownLease { .. })));
        assert!(matches!(store.commit(attach).await, Err(StoreError::UnknownLease { .. })));
        assert_eq!(
            store.cursor().await.unwrap().revision,
            before.revision.next(),
            "what is refused writes nothing"
        );
    });
}

#[test]
fn a_revoked_lease_takes_only_what_still_hangs_on_it() {
    run(async |store| {
        let lease = store.grant(Duration::from_secs(10)).await.unwrap();
        let other = store.grant(Duration::from_secs(10)).await.unwrap();
        assert_ne!(lease, other);
        let on = |key: &str, lease| Op::Put { key: key.into(), value: "".into(), lease };
        let txn = Txn::new()
            .then(on("stays", Some(lease)))
            .then(on("goes", Some(lease)))
            .then(on("moves", Some(lease)));
        store.commit(txn).await.unwrap().done().unwrap();
        let txn = Txn::new().then(on("stays", None)).then(on("moves", Some(other)));
        store.commit(txn).await.unwrap().done().unwrap();
        store.revoke(lease).await.unwrap();
        assert_eq!(keys(&store, "").await, ["moves", "stays"]);
        assert!(matches!(store.revoke(lease).await, Err(StoreError::UnknownLease { .. })));
    });
}

#[test]
fn restore_brings_everything_back_under_a_new_epoch_and_resets_watchers() {
    run(async |store| {
        let lease = store.grant(Duration::from_secs(10)).await.unwrap();
        store
            .commit(Txn::new().then(Op::Put { key: "leased".into(), value: "1".into(), lease: Some(lease) }))
            .await
            .unwrap()
            .done()
            .unwrap();
        put(&store, "kept", "old").await;
        let mut bytes = Vec::new();
        let taken = store.snapshot(&mut bytes).await.unwrap();
        let saved = store.list("").await.unwrap().entries;
        put(&store, "kept", "new").await;
        let cursor = put(&store, "added", "later").await;
        let mut watch = store.watch("kept", cursor).await.unwrap();

        let torn = store.restore(&mut &bytes[..bytes.len() - 1]).await;
        assert!(matches!(torn, Err(StoreError::Snapshot { .. })));
        assert_eq!(store.cursor().await.unwrap(), cursor, "a torn snapshot changes nothing");

        let restored = store.restore(&mut &bytes[..]).await.unwrap();
        assert_eq!(store.list("").await.unwrap().entries, saved);
        assert!(restored.epoch != taken.epoch && restored.revision > cursor.revision);
        assert_eq!(watch.next().await.unwrap(), WatchEvent::Reset { cursor: restored });
        let mut stale = store.watch("kept", cursor).await.unwrap();
        assert_eq!(stale.next().await.unwrap(), WatchEvent::Reset { cursor: restored });
        store.renew(lease).await.unwrap();
        store.revoke(lease).await.unwrap();
        assert_eq!(keys(&store, "").await, ["kept"]);

        let other = TestDisk::new().open().unwrap();
        other.restore(&mut &bytes[..]).await.unwrap();
        assert_eq!(other.list("").await.unwrap().entries, saved, "a snapshot opens in another store");
    });
}

#[test]
fn an_epoch_is_new_even_where_the_source_of_numbers_begins_anew() {
    let disk = TestDisk::new();
    runtime().block_on(async {
        let store = disk.open().unwrap();
        let cursor = put(&store, "a", "1").await;
        let mut bytes = Vec::new();
        store.snapshot(&mut bytes).await.unwrap();
        store.close().await.unwrap();
        // The same seed draws the first epoch again.
        let store = disk.open().unwrap();
        assert_ne!(store.restore(&mut &bytes[..]).await.unwrap().epoch, cursor.epoch);
    });
}

#[test]
fn a_cursor_from_the_future_is_reset_and_closing_ends_watches() {
    run(async |store| {
        let mut cursor = put(&store, "a", "").await;
        let mut watch = store.watch("a", cursor).await.unwrap();
        cursor.revision = Revision(99);
        let mut future = store.watch("a", cursor).await.unwrap();
        assert!(matches!(future.next().await.unwrap(), WatchEvent::Reset { .. }));
        let mut waiting = tokio_test::task::spawn(watch.next());
        assert!(waiting.poll().is_pending());
        store.close().await.unwrap();
        assert!(waiting.is_woken());
        assert!(matches!(waiting.poll(), std::task::Poll::Ready(Err(StoreError::Closed))));
        assert!(matches!(store.get("a").await, Err(StoreError::Closed)));
    });
}

#[test]
fn what_is_committed_is_there_after_reopening() {
    let disk = TestDisk::new();
    runtime().block_on(async {
        let store = disk.open().unwrap();
        let cursor = put(&store, "a", "1").await;
        store.close().await.unwrap();
        let store = disk.open().unwrap();
        assert_eq!(store.cursor().await.unwrap(), cursor);
        let reading = store.get("a").await.unwrap();
        assert_eq!(reading.entry.unwrap().value, Bytes::from_static(b"1"));
    });
}

#[test]
fn the_files_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry/store");
    let store = open(&path, options(&ManualClock::new())).unwrap();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&folder.path().join("registry/store.seal")), 0o600);
    assert_eq!(mode(&folder.path().join("registry")), 0o700);
    assert!(!folder.path().join("registry/store.new").exists());
    drop(store);
}

/// What goes into a file without a name is gone when the process is.
#[test]
fn nothing_is_called_done_once_its_file_was_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry/store");
    runtime().block_on(async {
        let store = open(&path, options(&ManualClock::new())).unwrap();
        put(&store, "a", "1").await;
        let registry = folder.path().join("registry");
        std::fs::remove_dir_all(&registry).unwrap();
        let refused = async || {
            let change = Txn::new().then(Op::put("a", "2".to_owned()));
            store.commit(change).await.unwrap_err().to_string()
        };
        let why = refused().await;
        assert!(why.contains("were removed or replaced") && why.contains("store.seal of one copy"), "{why}");
        assert!(why.contains("restart this process"), "{why}");
        assert_eq!(refused().await, why, "it stays so");
        // An empty folder in its place is not the store either.
        std::fs::create_dir(&registry).unwrap();
        assert_eq!(refused().await, why);
    });
}

/// A file that was moved is not where whoever opens the store next looks for it.
#[test]
fn nothing_is_written_to_a_store_that_was_moved_away_and_it_goes_on_when_that_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let (registry, away) = (folder.path().join("registry"), folder.path().join("away"));
    runtime().block_on(async {
        let store = open(&registry.join("store"), options(&ManualClock::new())).unwrap();
        let mut failing = store.failing();
        put(&store, "a", "1").await;
        std::fs::rename(&registry, &away).unwrap();
        let refused = store.commit(Txn::new().then(Op::put("a", "2"))).await;
        assert!(matches!(refused, Err(StoreError::Removed { .. })), "{refused:?}");
        assert!(failing.borrow_and_update().as_ref().is_some_and(|why| why.contains("move them back")));
        std::fs::rename(&away, &registry).unwrap();
        put(&store, "b", "3").await;
        let kept = store.get("a").await.unwrap().entry.unwrap().value;
        assert_eq!(kept, Bytes::from_static(b"1"), "what was refused was not written there either");
        assert!(failing.borrow_and_update().is_none());
        // Nobody writes, and who balances before it has to know all the same.
        std::fs::rename(&registry, &away).unwrap();
        let noticed = async { failing.wait_for(Option::is_some).await.map(drop) };
        assert!(tokio::time::timeout(Duration::from_secs(30), noticed).await.is_ok());
    });
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// Two writers of one file destroy it, and the name of a file is no lock.
#[test]
fn who_had_a_store_that_was_removed_and_put_back_leaves_it_to_whoever_starts_next() {
    let folder = tempfile::tempdir().unwrap();
    let (registry, backup) = (folder.path().join("registry"), folder.path().join("backup"));
    let path = registry.join("store");
    let clock = ManualClock::new();
    runtime().block_on(async {
        let first = open(&path, options(&clock)).unwrap();
        put(&first, "a", "1").await;
        copy(&registry, &backup);
        std::fs::remove_dir_all(&registry).unwrap();
        let refused = async || {
            let change = Txn::new().then(Op::put("a", "2".to_owned()));
            matches!(first.commit(change).await, Err(StoreError::Removed { .. }))
        };
        assert!(refused().await, "its files are gone");
        copy(&backup, &registry);
        assert!(refused().await, "what was put back is not what it has locked");
        let second = open(&path, options(&clock)).unwrap();
        put(&second, "b", "2").await;
        assert!(refused().await && first.get("a").await.is_err());
        put(&second, "c", "3").await;
        first.close().await.unwrap();
        second.close().await.unwrap();
        let store = open(&path, options(&clock)).unwrap();
        assert_eq!(keys(&store, "").await, ["a", "b", "c"], "nobody else wrote");
    });
}

/// The seal stays, and is the one that is locked.
#[test]
fn data_that_was_removed_alone_or_put_back_is_for_whoever_starts_next() {
    let folder = tempfile::tempdir().unwrap();
    let (registry, backup) = (folder.path().join("registry"), folder.path().join("backup"));
    let path = registry.join("store");
    let clock = ManualClock::new();
    runtime().block_on(async {
        let store = open(&path, options(&clock)).unwrap();
        put(&store, "a", "1").await;
        copy(&registry, &backup);
        std::fs::remove_file(&path).unwrap();
        let refused = async || store.commit(Txn::new().then(Op::put("a", "2"))).await.unwrap_err();
        for _ in 0..2 {
            let why = refused().await;
            assert!(matches!(why, StoreError::Removed { .. }), "{why}");
        }
        assert!(!registry.join("store.new").exists(), "nothing is begun in its place");
        std::fs::copy(backup.join("store"), &path).unwrap();
        assert!(matches!(refused().await, StoreError::Removed { .. }), "it is another file");
        store.close().await.unwrap();
        let store = open(&path, options(&clock)).unwrap();
        assert_eq!(keys(&store, "").await, ["a"]);
        store.close().await.unwrap();

        std::fs::remove_file(&path).unwrap();
        let why = open(&path, options(&clock)).err();
        assert!(matches!(why, Some(StoreError::Damaged { .. })), "{why:?}");
        assert!(!registry.join("store.new").exists());
    });
}

/// A server of files says so of an export that came back, and may have kept what was written.
#[test]
fn what_the_system_calls_stale_was_not_removed_and_may_be_kept() {
    runtime().block_on(async {
        let disk = TestDisk::new();
        let store = disk.open().unwrap();
        put(&store, "a", "1").await;
        *disk.faults.says.lock() = Some(std::io::ErrorKind::StaleNetworkFileHandle);
        let mut uncertain = 0;
        for budget in 0.. {
            disk.faults.budget.store(budget, Ordering::SeqCst);
            match store.commit(Txn::new().then(Op::put("a", "2"))).await {
                Err(StoreError::Uncertain { .. }) => uncertain += 1,
                Err(StoreError::Io { .. }) => {}
                Err(other) => panic!("{budget}: {other}"),
                Ok(_) => break,
            }
        }
        assert!(uncertain > 0);
    });
}

#[test]
fn a_seal_that_was_removed_lets_no_second_one_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let clock = ManualClock::new();
    runtime().block_on(async {
        let first = open(&path, options(&clock)).unwrap();
        put(&first, "a", "1").await;
        std::fs::remove_file(folder.path().join("store.seal")).unwrap();
        let second = open(&path, options(&clock)).err();
        assert!(matches!(second, Some(StoreError::InUse { .. })), "{second:?}");
        put(&first, "a", "2").await;
        first.close().await.unwrap();
        open(&path, options(&clock)).expect("it is free again");
    });
}

#[test]
fn a_store_says_that_it_fails_and_that_it_works_again_without_being_asked_to_write() {
    runtime().block_on(async {
        let disk = TestDisk::new();
        let store = disk.open().unwrap();
        let mut failing = store.failing();
        put(&store, "a", "1").await;
        assert!(failing.borrow().is_none());
        disk.faults.budget.store(0, Ordering::SeqCst);
        store.commit(Txn::new().then(Op::put("a", "2"))).await.unwrap_err();
        let why = failing.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert!(why.contains("injected failure"), "{why}");
        disk.faults.budget.store(u64::MAX, Ordering::SeqCst);
        let well = async { failing.wait_for(Option::is_none).await.map(drop) };
        let well = tokio::time::timeout(Duration::from_secs(20), well).await;
        assert!(well.is_ok(), "nobody writes to a process that is not ready: it has to try by itself");
        put(&store, "a", "3").await;
    });
}

/// To open a store is to read all of it, and that of a large one takes a while.
#[test]
fn a_store_that_fails_is_opened_the_more_seldom_the_longer_that_takes_and_says_so_to_whoever_asks() {
    runtime().block_on(async {
        let (disk, clock) = (TestDisk::new(), ManualClock::new());
        let store = disk.open_with(|options| options.clock = Arc::new(clock.clone())).unwrap();
        put(&store, "a", "1").await;
        let refused = async || store.commit(Txn::new().then(Op::put("a", "2"))).await.unwrap_err();
        let opened = || disk.faults.opened.load(Ordering::SeqCst);
        *disk.faults.takes.lock() = Some((clock.clone(), Duration::from_secs(2)));
        disk.faults.budget.store(0, Ordering::SeqCst);
        refused().await;
        // Until it fails so late that it is not known whether what was asked for is kept.
        for budget in 1.. {
            clock.advance(Duration::from_secs(21));
            disk.faults.budget.store(budget, Ordering::SeqCst);
            if matches!(refused().await, StoreError::Uncertain { .. }) {
                break;
            }
        }
        let before = opened();
        for _ in 0..5 {
            let error = refused().await;
            assert!(
                matches!(error, StoreError::Io { .. }),
                "it is certain that nothing was written: {error}"
            );
            assert!(error.to_string().contains("injected failure"), "{error}");
        }
        assert_eq!(opened(), before, "not even once more");
        clock.advance(Duration::from_secs(21));
        refused().await;
        assert_eq!(opened(), before + 1);
        disk.faults.budget.store(u64::MAX, Ordering::SeqCst);
        clock.advance(Duration::from_secs(21));
        put(&store, "a", "3").await;
    });
}

/// What is due stays due for as long as it cannot be written.
#[test]
fn a_lease_that_is_due_does_not_make_a_store_that_fails_try_without_pause() {
    runtime().block_on(async {
        let (disk, clock) = (TestDisk::new(), ManualClock::new());
        let store = disk.open_with(|options| options.clock = Arc::new(clock.clone())).unwrap();
        store.grant(Duration::from_secs(5)).await.unwrap();
        disk.faults.budget.store(0, Ordering::SeqCst);
        clock.advance(Duration::from_secs(6));
        store.commit(Txn::new().then(Op::put("a", "2"))).await.unwrap_err();
        let tried = disk.faults.opened.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let tries = disk.faults.opened.load(Ordering::SeqCst) - tried;
        assert!((1..=2).contains(&tries), "it was tried {tries} times");
    });
}
