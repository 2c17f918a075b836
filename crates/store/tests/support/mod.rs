//! A disk in memory whose power can be cut and which can fail on purpose.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meshwork_base::{ManualClock, Rng, SeededRng};
use meshwork_store::embedded::{Medium, Options, StorageBackend, open_on};
use meshwork_store::{Store, StoreError};
use parking_lot::Mutex;

/// Smallest unit a disk writes whole.
const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Unsynced {
    Write(u64, Vec<u8>),
    Resize(u64),
}

#[derive(Clone, Debug, Default)]
struct Platter {
    /// What reads see.
    seen: Vec<u8>,
    /// What a power cut leaves for certain.
    durable: Vec<u8>,
    unsynced: Vec<Unsynced>,
}

fn write_at(bytes: &mut Vec<u8>, at: u64, data: &[u8]) {
    let at = usize::try_from(at).unwrap();
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}

impl Platter {
    /// What is left after the power is cut now: each sector of each unsynced write made it or did not.
    fn cut(&self, rng: &mut SeededRng) -> Vec<u8> {
        let mut left = self.durable.clone();
        let survival = rng.below(5);
        for step in &self.unsynced {
            match step {
                Unsynced::Resize(len) => {
                    if rng.below(4) < survival {
                        left.resize(usize::try_from(*len).unwrap(), 0);
                    }
                }
                Unsynced::Write(at, data) => {
                    for (n, sector) in data.chunks(SECTOR).enumerate() {
                        if rng.below(4) < survival {
                            write_at(&mut left, at + (n * SECTOR) as u64, sector);
                        }
                    }
                }
            }
        }
        left
    }
}

/// How the disk behaves.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Syncs are accepted and not done, as in a build that does not sync.
    pub(crate) lying: bool,
    /// Writes and syncs that still succeed; then all fail until it is raised again.
    pub(crate) budget: AtomicU64,
    /// What the system says of them then, if it is a kind of its own.
    pub(crate) says: Mutex<Option<io::ErrorKind>>,
    /// How often the data was opened.
    pub(crate) opened: AtomicU64,
    /// How long that takes, by this clock.
    pub(crate) takes: Mutex<Option<(ManualClock, Duration)>>,
}

#[derive(Clone, Debug)]
struct Half {
    platter: Arc<Mutex<Platter>>,
    faults: Arc<Faults>,
}

impl Half {
    fn new(bytes: Vec<u8>, faults: &Arc<Faults>) -> Self {
        let platter = Platter { seen: bytes.clone(), durable: bytes, unsynced: Vec::new() };
        Self { platter: Arc::new(Mutex::new(platter)), faults: Arc::clone(faults) }
    }

    fn spend(&self) -> io::Result<()> {
        let spent =
            self.faults.budget.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        let failure = || match *self.faults.says.lock() {
            Some(kind) => kind.into(),
            None => io::Error::other("injected failure of the disk"),
        };
        spent.map(drop).map_err(|_| failure())
    }
}

impl StorageBackend for Half {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter.lock().seen.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.platter.lock();
        let at = usize::try_from(offset).unwrap();
        let found = platter.seen.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.spend()?;
        let mut platter = self.platter.lock();
        platter.seen.resize(usize::try_from(len).unwrap(), 0);
        platter.unsynced.push(Unsynced::Resize(len));
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        self.spend()?;
        let mut platter = self.platter.lock();
        if !self.faults.lying {
            platter.durable = platter.seen.clone();
            platter.unsynced.clear();
        }
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.spend()?;
        let mut platter = self.platter.lock();
        write_at(&mut platter.seen, offset, data);
        platter.unsynced.push(Unsynced::Write(offset, data.to_vec()));
        Ok(())
    }
}

/// A disk with a store's two files on it.
#[derive(Clone, Debug)]
pub(crate) struct TestDisk {
    data: Half,
    seal: Half,
    pub(crate) faults: Arc<Faults>,
}

/// The bytes of both files.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pub(crate) data: Vec<u8>,
    pub(crate) seal: Vec<u8>,
}

impl TestDisk {
    pub(crate) fn new() -> Self {
        Self::from_image(Image::default(), false)
    }

    pub(crate) fn lying() -> Self {
        Self::from_image(Image::default(), true)
    }

    pub(crate) fn from_image(image: Image, lying: bool) -> Self {
        let budget = AtomicU64::new(u64::MAX);
        let faults = Arc::new(Faults { lying, budget, ..Faults::default() });
        Self { data: Half::new(image.data, &faults), seal: Half::new(image.seal, &faults), faults }
    }

    /// What a process sees that starts after this one was killed.
    pub(crate) fn killed(&self) -> Image {
        Image { data: self.data.platter.lock().seen.clone(), seal: self.seal.platter.lock().seen.clone() }
    }

    /// Flips a bit in every place of the data where this text stands.
    pub(crate) fn flip_in_place(&self, text: &[u8]) {
        let seen = &mut self.data.platter.lock().seen;
        let places: Vec<usize> = (0..seen.len()).filter(|&at| seen[at..].starts_with(text)).collect();
        assert!(!places.is_empty(), "the text is not on the disk");
        for at in places {
            seen[at] ^= 1;
        }
    }

    /// What the next boot sees after the power was cut now.
    pub(crate) fn cut(&self, rng: &mut SeededRng) -> Image {
        // Both halves stop at one moment: the data first, so that the seal is never read earlier than it.
        let data = self.data.platter.lock();
        let seal = self.seal.platter.lock();
        Image { data: data.cut(rng), seal: seal.cut(rng) }
    }

    pub(crate) fn open(&self) -> Result<Store, StoreError> {
        self.open_with(|_| ())
    }

    pub(crate) fn open_with(&self, change: impl FnOnce(&mut Options)) -> Result<Store, StoreError> {
        let mut options = options(&ManualClock::new());
        change(&mut options);
        open_on(Box::new(self.clone()), options)
    }
}

impl Medium for TestDisk {
    fn name(&self) -> String {
        "test.store".to_owned()
    }
    fn seal(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.seal.clone()))
    }
    fn data(&self) -> io::Result<Box<dyn StorageBackend>> {
        self.faults.opened.fetch_add(1, Ordering::SeqCst);
        if let Some((clock, takes)) = &*self.faults.takes.lock() {
            clock.advance(*takes);
        }
        Ok(Box::new(self.data.clone()))
    }
    fn created(&self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn options(clock: &ManualClock) -> Options {
    Options::new(Arc::new(clock.clone()), Box::new(SeededRng::new(7)))
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
