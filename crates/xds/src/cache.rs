//! The last good resources on disk, so that a proxy starts while the control plane is away; and with them what was refused
//! for a missing feature and has no good version, so that what it may protect is closed from the start.
//!
//! One file, mode 0600 because it holds keys: a log of resources as received and of removals, each record with its
//! checksum, each whole change closed by its revision. A change is appended; when the log has grown to twice what is
//! alive, it is written anew beside the old one and takes its place by rename. What a crash left half-written at the end
//! is not a change yet and is dropped; a record that the disk has damaged is left out and reported.

mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use meshwork_messages::v1::Resource;

use crate::client::{Change, Preload, Settled};
use crate::key::ResourceKey;
use record::Record;

/// Below this many bytes a log is not worth rewriting.
const COMPACT_FROM: u64 = 256 * 1024;

/// Why the cache cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("the cache of last good resources {path}: cannot {action}: {source}; check that the directory is there, writable and not full", path = path.display())]
pub struct CacheError {
    path: PathBuf,
    action: &'static str,
    source: io::Error,
}

/// Bytes of the file that are not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where they begin.
    pub offset: u64,
    /// How many there are.
    pub length: u64,
}

/// What a cache remembered.
#[derive(Debug, Default)]
pub struct Contents {
    /// The resources of the last whole change.
    pub preload: Preload,
    /// What could not be read. The resources there are asked for again from the control plane.
    pub damage: Vec<Damage>,
    /// Bytes after the last whole change, dropped: a crash left them unfinished, or the disk damaged the end.
    pub unfinished: u64,
}

/// An open cache. Writing is a short append and blocks; it belongs on a thread that carries no traffic.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
    file: File,
    size: u64,
    /// Where the latest record of each living resource is: (offset, length).
    live: BTreeMap<ResourceKey, (u64, u64)>,
    live_size: u64,
    revision: u64,
}

impl Cache {
    /// Opens a proxy's cache as [`Cache::open`] does, and tells the log what is damaged.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn of_proxy(directory: &Path) -> Result<(Self, Preload), CacheError> {
        let (cache, contents) = Self::open(directory)?;
        for damage in &contents.damage {
            tracing::warn!(
                offset = damage.offset,
                length = damage.length,
                "the cache of last good resources is damaged; the control plane is asked again"
            );
        }
        Ok((cache, contents.preload))
    }

    /// Opens the file `resources.cache` in this directory, makes it where it is not there, and reads it.
    ///
    /// # Errors
    /// [`CacheError`] when the file cannot be opened, read or repaired. Damage of its content is no error.
    pub fn open(directory: &Path) -> Result<(Self, Contents), CacheError> {
        let path = directory.join("resources.cache");
        let failed = |action| {
            let path = path.clone();
            move |source| CacheError { path, action, source }
        };
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed("read it")(error)),
        };
        let replay = Replay::of(&bytes);
        let file = open_private(&path, false).map_err(failed("open it"))?;
        let mut cache =
            Self { path: path.clone(), file, size: replay.end, live: replay.live, live_size: 0, revision: 0 };
        cache.live_size = cache.live.values().map(|(_, length)| length).sum();
        cache.revision = replay.preload.revision;
        cache.file.set_len(replay.end).map_err(failed("drop its unfinished end"))?;
        let unfinished = bytes.len() as u64 - replay.end;
        let contents = Contents { preload: replay.preload, damage: replay.damage, unfinished };
        if !contents.damage.is_empty() {
            cache.compact()?;
        }
        Ok((cache, contents))
    }

    /// Writes a settled batch down.
    ///
    /// # Errors
    /// [`CacheError`]; the file then still holds the changes before.
    pub fn write(&mut self, settled: &Settled) -> Result<(), CacheError> {
        self.revision = settled.revision.unwrap_or(self.revision);
        let mut bytes = Vec::new();
        let mut live = Vec::new();
        for change in settled.accepted.iter().chain(&settled.unsupported) {
            let start = bytes.len();
            match change {
                // It keeps its `requires`: who reads it judges anew whether it can be used.
                Change::Upsert(key, resource) | Change::Unsupported { key, resource, .. } => {
                    Record::Upsert(key.clone(), Arc::clone(resource)).encode(&mut bytes);
                }
                Change::Remove(key) => Record::Remove(key.clone()).encode(&mut bytes),
            }
            let length = (bytes.len() - start) as u64;
            let place = (!matches!(change, Change::Remove(_))).then_some((self.size + start as u64, length));
            live.push((change.key().clone(), place));
        }
        Record::Commit(self.revision).encode(&mut bytes);
        if let Err(source) = self.append(&bytes) {
            return Err(CacheError { path: self.path.clone(), action: "append to it", source });
        }
        for (key, place) in live {
            let old = match place {
                Some(place) => {
                    self.live_size += place.1;
                    self.live.insert(key, place)
                }
                None => self.live.remove(&key),
            };
            self.live_size -= old.map_or(0, |(_, length)| length);
        }
        if self.size > COMPACT_FROM && self.size > 2 * self.live_size { self.compact() } else { Ok(()) }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt as _;
        // A write that fails half-way leaves an unfinished end, which the next one overwrites.
        self.file.write_all_at(bytes, self.size)?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Writes what is alive into a new file and puts it in the place of the old one.
    fn compact(&mut self) -> Result<(), CacheError> {
        let path = self.path.clone();
        let failed = |source| CacheError { path, action: "rewrite it", source };
        self.rewrite().map_err(failed)
    }

    fn rewrite(&mut self) -> io::Result<()> {
        use std::os::unix::fs::FileExt as _;
        let beside = self.path.with_extension("cache.new");
        let mut fresh = open_private(&beside, true)?;
        let mut size = 0;
        let mut live = BTreeMap::new();
        for (key, &(offset, length)) in &self.live {
            let mut record = vec![0; usize::try_from(length).map_err(io::Error::other)?];
            self.file.read_exact_at(&mut record, offset)?;
            fresh.write_all(&record)?;
            live.insert(key.clone(), (size, length));
            size += length;
        }
        let mut commit = Vec::new();
        Record::Commit(self.revision).encode(&mut commit);
        fresh.write_all(&commit)?;
        fresh.sync_all()?;
        std::fs::rename(&beside, &self.path)?;
        self.file = fresh;
        self.size = size + commit.len() as u64;
        self.live = live;
        Ok(())
    }
}

fn open_private(path: &Path, truncate: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(truncate).mode(0o600).open(path)
}

/// A log read from its beginning.
#[derive(Default)]
struct Replay {
    preload: Preload,
    live: BTreeMap<ResourceKey, (u64, u64)>,
    damage: Vec<Damage>,
    /// Where the last whole change ends.
    end: u64,
}

/// A change of one key that no commit has closed yet.
type Pending = (ResourceKey, Option<(Arc<Resource>, (u64, u64))>);

impl Replay {
    fn of(bytes: &[u8]) -> Self {
        let mut replay = Self::default();
        let mut pending: Vec<Pending> = Vec::new();
        let mut at = 0;
        let mut lost_from = None;
        while at < bytes.len() {
            let Some((record, length)) = Record::decode(&bytes[at..]) else {
                lost_from.get_or_insert(at);
                at = record::next_start(bytes, at + 1);
                continue;
            };
            if let Some(from) = lost_from.take() {
                replay.damage.push(Damage { offset: from as u64, length: (at - from) as u64 });
            }
            let place = (at as u64, length as u64);
            at += length;
            match record {
                Record::Upsert(key, resource) => pending.push((key, Some((resource, place)))),
                Record::Remove(key) => pending.push((key, None)),
                Record::Commit(revision) => replay.close(revision, pending.drain(..), at as u64),
            }
        }
        replay
    }

    fn close(&mut self, revision: u64, pending: impl Iterator<Item = Pending>, end: u64) {
        for (key, value) in pending {
            match value {
                Some((resource, place)) => {
                    self.preload.resources.insert(key.clone(), resource);
                    self.live.insert(key, place);
                }
                None => {
                    self.preload.resources.remove(&key);
                    self.live.remove(&key);
                }
            }
        }
        self.preload.revision = revision;
        self.end = end;
    }
}
