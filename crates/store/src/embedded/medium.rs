//! What the engine writes to: files, or in tests a disk that fails on purpose.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use redb::StorageBackend;

/// What a medium says of files that it has found to be removed, replaced or moved away. `ESTALE`, which a system says of files over a
/// network, is another thing: the server may have kept what it says that of.
#[derive(Debug, thiserror::Error)]
#[error("the store's files were removed or replaced, or moved away")]
pub struct Removed;

impl Removed {
    /// Whether it is this.
    pub(super) fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|error| error.is::<Self>())
    }
}

impl From<Removed> for io::Error {
    fn from(removed: Removed) -> Self {
        Self::other(removed)
    }
}

/// Two byte arrays that can be synced: the data and its seal.
pub trait Medium: fmt::Debug + Send + Sync {
    /// How messages call it.
    fn name(&self) -> String;

    /// Opens the seal and locks the store for this process.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another process holds the lock; else the system's.
    fn seal(&self) -> io::Result<Box<dyn StorageBackend>>;

    /// Opens the data. Called with the lock held, once per (re)opening. An empty array means that the store is new.
    ///
    /// # Errors
    /// [`Removed`] when the store's place has another seal than the locked one, or none, or other data than was opened before;
    /// [`io::ErrorKind::WouldBlock`] when another process has the data locked; else the system's.
    fn data(&self) -> io::Result<Box<dyn StorageBackend>>;

    /// Whether the data that is open is what would be found by the store's name. Asked before each commit: what is written to
    /// a file that was moved away is not where whoever opens the store next looks for it.
    ///
    /// # Errors
    /// [`Removed`] when it is not; else the system's.
    fn is_in_place(&self) -> io::Result<()> {
        Ok(())
    }

    /// Says that the new store in `data` is complete and must be found from now on.
    ///
    /// # Errors
    /// The system's.
    fn created(&self) -> io::Result<()>;
}

/// A store in a file `PATH`, with `PATH.seal` beside it. A new store is built in `PATH.new` and renamed when whole, so
/// that a crash while creating it leaves nothing half made. Both files are locked: who removes one of them does not let
/// a second process in.
#[derive(Debug)]
pub struct FileMedium {
    path: PathBuf,
    held: Mutex<Held>,
}

/// The locked files. A lock is of the file and not of its name, so names are compared with these.
#[derive(Debug, Default)]
struct Held {
    seal: Option<File>,
    data: Option<File>,
}

impl FileMedium {
    /// The medium for this path; touches nothing yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), held: Mutex::default() }
    }

    fn beside(&self, extension: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(extension);
        name.into()
    }

    fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

impl Medium for FileMedium {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn seal(&self) -> io::Result<Box<dyn StorageBackend>> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(self.folder())?;
        let file = take(options().create(true).truncate(false), &self.beside(".seal"))?;
        let disk = Disk(file.try_clone()?);
        self.held.lock().seal = Some(file);
        Ok(Box::new(disk))
    }

    fn data(&self) -> io::Result<Box<dyn StorageBackend>> {
        let mut held = self.held.lock();
        // A folder that was put back has a seal that nobody has locked: another process may be at work there.
        if let Some(seal) = &held.seal
            && !is_at(seal, &self.beside(".seal"))?
        {
            return Err(Removed.into());
        }
        // Readers may have it open still, under the same lock. Another one in its place is for whoever starts anew, and in an
        // empty place nothing is begun: what was acknowledged is not in either.
        if let Some(data) = &held.data {
            if !is_at(data, &self.path)? {
                return Err(Removed.into());
            }
            return Ok(Box::new(Disk(data.try_clone()?)));
        }
        let file = match take(&options(), &self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Emptied only once it is locked: it may be what another process is about to rename.
                let file = take(options().create(true).truncate(false), &self.beside(".new"))?;
                file.set_len(0)?;
                file
            }
            taken => taken?,
        };
        let disk = Disk(file.try_clone()?);
        held.data = Some(file);
        Ok(Box::new(disk))
    }

    fn is_in_place(&self) -> io::Result<()> {
        match &self.held.lock().data {
            Some(data) if !is_at(data, &self.path)? => Err(Removed.into()),
            _ => Ok(()),
        }
    }

    fn created(&self) -> io::Result<()> {
        if self.path.exists() {
            return Ok(());
        }
        fs::rename(self.beside(".new"), &self.path)?;
        File::open(self.folder())?.sync_all()
    }
}

impl Drop for FileMedium {
    fn drop(&mut self) {
        if let Some(data) = self.held.get_mut().data.take() {
            // A new store that was not completed is none; while it is locked it is nobody else's either.
            let new = self.beside(".new");
            if is_at(&data, &new).unwrap_or(false) {
                _ = fs::remove_file(new);
            }
            // A reader that is not done yet has the file open, and the lock would last as long as it.
            _ = data.unlock();
        }
    }
}

/// Opens and locks a file.
fn take(options: &OpenOptions, path: &Path) -> io::Result<File> {
    let file = options.open(path)?;
    match file.try_lock() {
        // Replaced between the two: whoever did that has the store.
        Ok(()) if !is_at(&file, path)? => Err(io::ErrorKind::WouldBlock.into()),
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether the path names this very file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (held.dev(), held.ino())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// A file as redb wants it. The locks are the medium's, so none is taken here.
#[derive(Debug)]
struct Disk(File);

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()?;
        // What is written to a file without a name is gone with the process.
        match self.0.metadata()?.nlink() {
            0 => Err(Removed.into()),
            _ => Ok(()),
        }
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

/// What redb's builder takes: it wants a sized type.
#[derive(Debug)]
pub(super) struct Boxed(pub(super) Box<dyn StorageBackend>);

impl StorageBackend for Boxed {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}
