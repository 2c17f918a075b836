//! The one writer: a thread that takes what is waiting, commits it together, and acknowledges when it is durable.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use meshwork_base::{Revision, Rng, Tick};
use parking_lot::{Mutex, RwLock};
use redb::{Database, Durability, ReadableDatabase, StorageBackend};
use tokio::sync::{mpsc, oneshot, watch};

use super::Options;
use super::apply::{self, Batch, Prepared};
use super::medium::{Boxed, Medium, Removed};
use super::read::{Fault, LEASES, META, Shared, Timer, state, stored_leases};
use super::record::State;
use super::seal::Seal;
use crate::error::StoreError;
use crate::snapshot::Contents;
use crate::types::{Cursor, LeaseId, Outcome, Txn};
use crate::watch::Hub;

/// Commands that share one sync.
const BATCH: usize = 256;
/// A file below this is never rewritten to save space.
const WORTH_SHRINKING: u64 = 8 << 20;
/// Between two tries of a store that failed, where nobody asks for one.
const RETRY: Duration = Duration::from_secs(1);
/// To open a store is to read all of it. While it fails, opening it takes no more than one part in so many of the time, also
/// where many ask;
const SHARE: u32 = 10;
/// but a store that works again is found to do so after this time.
const REST: Duration = Duration::from_secs(30);
/// Between two looks whether a store is in its place, where nothing is written.
const LOOK: Duration = Duration::from_secs(3);

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked.
pub(super) enum Command {
    Commit { txn: Txn, reply: Reply<Outcome> },
    Grant { ttl: Duration, reply: Reply<LeaseId> },
    Revoke { lease: LeaseId, reply: Reply<()> },
    Expire { reply: Reply<()> },
    Compact { before: Revision, reply: Reply<()> },
    Restore { contents: Contents, reply: Reply<Cursor> },
    Close { reply: Reply<()> },
}

/// Sends an answer that was held back until the batch was durable, or the failure that took its place.
type Finish = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

fn finish<T: Send + 'static>(reply: Reply<T>, answer: Result<T, StoreError>) -> Finish {
    // A caller that has gone needs no answer.
    Box::new(move |durable| _ = reply.send(durable.and(answer)))
}

/// What a batch leaves to do once it is durable.
#[derive(Default)]
struct After {
    finish: Vec<Finish>,
    granted: Vec<(LeaseId, Duration)>,
    ended: Vec<LeaseId>,
    restored: bool,
}

pub(super) struct Writer {
    medium: Box<dyn Medium>,
    shared: Arc<Shared>,
    seal: Seal,
    rng: Box<dyn Rng + Send>,
    history: u64,
    cache_bytes: usize,
    /// The last revision watchers were told of.
    announced: u64,
    /// When it may be opened again, if it is not open.
    reopen: Tick,
    /// Why the last batch failed, until one is kept.
    failed: Option<Failure>,
}

impl Writer {
    /// Opens the store and starts the thread.
    pub(super) fn start(
        medium: Box<dyn Medium>,
        options: Options,
        queue: mpsc::Receiver<Command>,
    ) -> Result<Arc<Shared>, StoreError> {
        let name = medium.name();
        let failed = |doing| {
            let path = name.clone();
            move |source: io::Error| match source.kind() {
                io::ErrorKind::WouldBlock => StoreError::InUse { path },
                _ => StoreError::Io { path, doing, source },
            }
        };
        let seal = medium.seal().and_then(Seal::open).map_err(failed("opening its seal"))?;
        let shared = Arc::new(Shared {
            name: name.clone(),
            clock: options.clock,
            db: RwLock::new(None),
            leases: Mutex::new(HashMap::new()),
            hub: Arc::new(Hub::default()),
            closed: AtomicBool::new(false),
            failing: watch::Sender::new(None),
        });
        let mut writer = Self {
            medium,
            shared: Arc::clone(&shared),
            seal,
            rng: options.rng,
            history: options.history,
            cache_bytes: options.cache_bytes,
            announced: 0,
            reopen: Tick::ZERO,
            failed: None,
        };
        writer.open()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(failed("starting its writer"))?;
        let thread = std::thread::Builder::new().name("store-writer".to_owned());
        thread.spawn(move || runtime.block_on(writer.run(queue))).map_err(failed("starting its writer"))?;
        Ok(shared)
    }

    /// Opens (or reopens) the file, verifies it against its seal and puts it where readers find it.
    fn open(&mut self) -> Result<State, StoreError> {
        let state = self.open_file().map_err(|fault| fault.named(&self.shared.name, "opening"))?;
        // Leases run from the start again: their time does not pass while their keeper is down.
        let now = self.shared.clock.now();
        let db = self.shared.db.read().clone().ok_or(StoreError::Closed)?;
        let leases = (|| stored_leases(&db.begin_read()?.open_table(LEASES)?))()
            .map_err(|fault: Fault| fault.named(&self.shared.name, "reading leases"))?;
        let timer = |ttl| Timer { ttl, deadline: now.after(ttl) };
        *self.shared.leases.lock() = leases.into_iter().map(|(lease, ttl)| (lease.0, timer(ttl))).collect();
        self.announced = state.head;
        Ok(state)
    }

    fn open_file(&mut self) -> Result<State, Fault> {
        let disk = self.medium.data()?;
        let bytes = disk.len()?;
        let sealed = self.seal.revision();
        if bytes == 0 && sealed > 0 {
            let lost =
                format!("it is empty or gone, but its seal says that revision {sealed} was acknowledged");
            return Err(Fault::Torn(lost));
        }
        let mut db = self.open_database(disk)?;
        let found = if bytes == 0 { self.create(&db)? } else { state(&db.begin_read()?.open_table(META)?)? };
        if found.head < sealed {
            let lost = format!("its last revision is {}, but revision {sealed} was acknowledged", found.head);
            return Err(Fault::Torn(lost));
        }
        if let Some(doubt) = self.seal.take_doubt()
            && found.head > 0
        {
            let store = &self.shared.name;
            tracing::warn!(
                store,
                doubt,
                "the store's seal cannot tell an older copy of the store, and is made anew"
            );
        }
        if bytes > WORTH_SHRINKING && allocated(&db)? < bytes / 2 {
            db.compact()?;
        }
        self.seal.set(found.head)?;
        *self.shared.db.write() = Some(Arc::new(db));
        Ok(found)
    }

    fn open_database(&self, disk: Box<dyn StorageBackend>) -> Result<Database, Fault> {
        let mut builder = redb::Builder::new();
        builder.set_cache_size(self.cache_bytes).set_check_integrity_on_open(true);
        Ok(builder.create_with_backend(Boxed(disk))?)
    }

    fn create(&mut self, db: &Database) -> Result<State, Fault> {
        let epoch = self.rng.next_u64();
        let txn = begin(db)?;
        let state = apply::create(&txn, epoch)?;
        txn.commit()?;
        self.medium.created()?;
        Ok(state)
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut waiting = Vec::with_capacity(BATCH);
        let mut closing = None;
        while closing.is_none() {
            let got = tokio::select! {
                got = queue.recv_many(&mut waiting, BATCH) => got,
                () = self.until_due() => 1,
            };
            if got == 0 {
                break;
            }
            // What came before a close is still done.
            if let Some(at) = waiting.iter().position(|command| matches!(command, Command::Close { .. })) {
                closing = waiting.drain(at..).next();
            }
            self.batch(&mut waiting);
        }
        self.shared.closed.store(true, Ordering::Release);
        *self.shared.db.write() = None;
        self.shared.hub.announce_all(u64::MAX);
        // The lock goes with the seal: only now may another process open the store.
        let Self { seal, medium, .. } = self;
        drop((seal, medium));
        if let Some(Command::Close { reply }) = closing {
            _ = reply.send(Ok(()));
        }
    }

    /// Until something is to be done that nobody asks for.
    async fn until_due(&self) {
        let now = self.shared.clock.now();
        // A lease that is due stays so while the store cannot write it.
        if self.is_failing() {
            return tokio::time::sleep(RETRY.max(self.reopen.since(now))).await;
        }
        let next = self.shared.leases.lock().values().map(|timer| timer.deadline).min();
        tokio::time::sleep(next.map_or(LOOK, |deadline| deadline.since(now).min(LOOK))).await;
    }

    const fn is_failing(&self) -> bool {
        self.failed.is_some()
    }

    /// Does what is waiting, in order, under one sync.
    fn batch(&mut self, waiting: &mut Vec<Command>) {
        let path = self.shared.name.clone();
        if let Some(failed) = self.failed.as_ref().filter(|_| self.rests()) {
            waiting.drain(..).for_each(|command| command.fail(failed.untried(&path)));
            return;
        }
        let mut after = After::default();
        let done = self.write(waiting, &mut after);
        match done {
            Ok(()) => {
                // Told only when it changes: each time wakes all who watch it.
                if self.failed.take().is_some() {
                    self.shared.failing.send_replace(None);
                    tracing::info!(store = path, revision = self.announced, "the store works again");
                }
                after.finish.into_iter().for_each(|finish| finish(Ok(())));
            }
            Err(failure) => {
                let why = failure.again(&path).to_string();
                // Each caller hears of it; the log does once, however often it is tried.
                if self.shared.failing.borrow().as_ref() != Some(&why) {
                    tracing::error!(store = path, error = why, "a batch of the store failed");
                    self.shared.failing.send_replace(Some(why));
                }
                for finish in after.finish {
                    finish(Err(failure.again(&path)));
                }
                for command in waiting.drain(..) {
                    command.fail(failure.again(&path));
                }
                self.failed = Some(failure);
            }
        }
    }

    /// Whether it is too early to open it once more.
    fn rests(&self) -> bool {
        self.shared.db.read().is_none() && self.shared.clock.now() < self.reopen
    }

    fn write(&mut self, waiting: &mut Vec<Command>, after: &mut After) -> Result<(), Failure> {
        let db = self.database()?;
        self.medium.is_in_place().map_err(|error| self.before_commit(error.into()))?;
        let txn = begin(&db).map_err(|fault| self.before_commit(fault))?;
        let prepared = self.prepare(&txn, waiting, after);
        let prepared = prepared.map_err(|fault| self.before_commit(fault))?;
        if !prepared.dirty && !self.is_failing() {
            // Nothing to write: what was read may be answered, for all before it is durable already. After a failure
            // only a commit shows that the disk is well again.
            return txn.abort().map_err(|error| self.before_commit(error.into()));
        }
        if let Err(error) = txn.commit() {
            // The file must be opened anew before it can be trusted.
            *self.shared.db.write() = None;
            return Err(match Fault::from(error) {
                // What is in a file without a name is gone for certain.
                Fault::Redb(redb::Error::Io(error)) if Removed::is_in(&error) => {
                    Failure::Clean(StoreError::Removed { path: self.shared.name.clone() })
                }
                Fault::Redb(error) => Failure::Uncertain(error.to_string()),
                fault => Failure::Clean(fault.named(&self.shared.name, "writing")),
            });
        }
        self.publish(&prepared, after);
        Ok(())
    }

    fn publish(&mut self, prepared: &Prepared, after: &After) {
        let head = prepared.state.head;
        if let Err(error) = self.seal.set(head) {
            // The data is durable; only the witness against its later loss is weaker.
            tracing::warn!(store = self.shared.name, %error, "the store's seal could not be written");
        }
        let now = self.shared.clock.now();
        let mut leases = self.shared.leases.lock();
        for lease in &after.ended {
            leases.remove(&lease.0);
        }
        for &(lease, ttl) in &after.granted {
            leases.insert(lease.0, Timer { ttl, deadline: now.after(ttl) });
        }
        drop(leases);
        self.announced = head;
        if after.restored {
            self.shared.hub.announce_all(head);
        } else {
            self.shared
                .hub
                .announce(prepared.changed.iter().map(|(key, revision)| (key.as_str(), *revision)));
        }
    }

    /// The open file; opens it again after a failure.
    fn database(&mut self) -> Result<Arc<Database>, Failure> {
        if let Some(db) = self.shared.db.read().clone() {
            return Ok(db);
        }
        let (told, began) = (self.announced, self.shared.clock.now());
        let opened = self.open();
        let ended = self.shared.clock.now();
        self.reopen = ended.after((ended.since(began) * SHARE).min(REST));
        let state = opened.map_err(Failure::Clean)?;
        if state.head > told {
            // What was in doubt has happened.
            self.shared.hub.announce_all(told + 1);
        }
        self.shared.db.read().clone().ok_or(Failure::Clean(StoreError::Closed))
    }

    fn before_commit(&self, fault: Fault) -> Failure {
        if matches!(fault, Fault::Redb(_)) {
            *self.shared.db.write() = None;
        }
        Failure::Clean(fault.named(&self.shared.name, "writing"))
    }

    fn prepare(
        &mut self,
        txn: &redb::WriteTransaction,
        waiting: &mut Vec<Command>,
        after: &mut After,
    ) -> Result<Prepared, Fault> {
        let mut batch = Batch::begin(txn)?;
        let now = self.shared.clock.now();
        let due = |timer: &Timer| timer.deadline <= now;
        let due: Vec<u64> =
            self.shared.leases.lock().iter().filter(|(_, t)| due(t)).map(|(&l, _)| l).collect();
        for lease in due {
            batch.revoke(LeaseId(lease))?;
            after.ended.push(LeaseId(lease));
        }
        let mut broken = None;
        let mut commands = std::mem::take(waiting).into_iter();
        while broken.is_none()
            && let Some(command) = commands.next()
        {
            self.step(&mut batch, command, after, &mut broken);
        }
        waiting.extend(commands);
        broken.map_or_else(|| batch.finish(self.history), Err)
    }

    /// Does one command. When the store itself fails, `broken` says so and the whole batch ends: every answer is then
    /// replaced by the failure.
    fn step(
        &mut self,
        batch: &mut Batch<'_>,
        command: Command,
        after: &mut After,
        broken: &mut Option<Fault>,
    ) {
        let finish = match command {
            Command::Commit { txn, reply } => finish(reply, refused(batch.apply(&txn), broken)),
            Command::Grant { ttl, reply } => {
                let lease = refused(batch.grant(ttl), broken);
                after.granted.extend(lease.as_ref().ok().map(|&lease| (lease, ttl)));
                finish(reply, lease)
            }
            Command::Revoke { lease, reply } => {
                let known = refused(batch.revoke(lease), broken);
                after.ended.push(lease);
                let unknown = Err(StoreError::UnknownLease { lease: lease.0 });
                finish(reply, known.and_then(|known| if known { Ok(()) } else { unknown }))
            }
            Command::Compact { before, reply } => finish(reply, refused(batch.compact(before), broken)),
            Command::Restore { contents, reply } => {
                let restored = refused(batch.restore(&contents, || self.rng.next_u64()), broken);
                if restored.is_ok() {
                    after.ended = self.shared.leases.lock().keys().map(|&lease| LeaseId(lease)).collect();
                    after.granted.clone_from(&contents.leases);
                    after.restored = true;
                }
                finish(reply, restored)
            }
            Command::Expire { reply } | Command::Close { reply } => finish(reply, Ok(())),
        };
        after.finish.push(finish);
    }
}

impl Command {
    fn fail(self, error: StoreError) {
        match self {
            Self::Commit { reply, .. } => _ = reply.send(Err(error)),
            Self::Grant { reply, .. } => _ = reply.send(Err(error)),
            Self::Restore { reply, .. } => _ = reply.send(Err(error)),
            Self::Revoke { reply, .. }
            | Self::Compact { reply, .. }
            | Self::Expire { reply }
            | Self::Close { reply } => _ = reply.send(Err(error)),
        }
    }
}

/// Why a whole batch failed.
enum Failure {
    /// Nothing was written.
    Clean(StoreError),
    /// It may have been.
    Uncertain(String),
}

impl Failure {
    /// The failure once more, for the next caller: causes are not cloneable.
    fn again(&self, path: &str) -> StoreError {
        let path = path.to_owned();
        match self {
            Self::Uncertain(cause) => StoreError::Uncertain { path, cause: cause.clone() },
            Self::Clean(StoreError::Damaged { what, .. }) => StoreError::Damaged { path, what: what.clone() },
            Self::Clean(StoreError::Removed { .. }) => StoreError::Removed { path },
            Self::Clean(StoreError::InUse { .. }) => StoreError::InUse { path },
            Self::Clean(StoreError::Closed) => StoreError::Closed,
            Self::Clean(StoreError::Io { doing, source, .. }) => {
                StoreError::Io { path, doing, source: io::Error::new(source.kind(), source.to_string()) }
            }
            Self::Clean(other) => {
                StoreError::Io { path, doing: "writing", source: io::Error::other(other.to_string()) }
            }
        }
    }

    /// The same for whoever comes before it is tried again: of what he asks for nothing was written.
    fn untried(&self, path: &str) -> StoreError {
        match self {
            Self::Uncertain(cause) => {
                let source = io::Error::other(format!("{cause}; it is tried again in a moment"));
                StoreError::Io { path: path.to_owned(), doing: "writing", source }
            }
            Self::Clean(_) => self.again(path),
        }
    }
}

/// Takes a refusal of one request out of the failures that end the batch. The answer beside `broken` is never sent.
fn refused<T>(result: Result<T, Fault>, broken: &mut Option<Fault>) -> Result<T, StoreError> {
    result.map_err(|fault| match fault {
        Fault::Refused(error) => error,
        fault => {
            *broken = Some(fault);
            StoreError::Closed
        }
    })
}

fn begin(db: &Database) -> Result<redb::WriteTransaction, Fault> {
    let mut txn = db.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    // One-phase commits recover by falling back to the commit before when the last one does not verify: a flipped bit
    // in an acknowledged write would look like a torn one. Two phases never need to guess.
    txn.set_two_phase_commit(true);
    Ok(txn)
}

fn allocated(db: &Database) -> Result<u64, Fault> {
    let txn = begin(db)?;
    let stats = txn.stats()?;
    let bytes = stats.allocated_pages() * u64::try_from(stats.page_size()).unwrap_or(4096);
    txn.abort()?;
    Ok(bytes)
}
