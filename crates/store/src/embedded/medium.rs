//! What the engine writes to: files, or in tests a disk that fails on purpose.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use redb::StorageBackend;

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
    /// The system's.
    fn data(&self) -> io::Result<Box<dyn StorageBackend>>;

    /// Says that the new store in `data` is complete and must be found from now on.
    ///
    /// # Errors
    /// The system's.
    fn created(&self) -> io::Result<()>;
}

/// A store in a file `PATH`, with `PATH.seal` beside it. A new store is built in `PATH.new` and renamed when whole, so
/// that a crash while creating it leaves nothing half made.
#[derive(Debug)]
pub struct FileMedium {
    path: PathBuf,
}

impl FileMedium {
    /// The medium for this path; touches nothing yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
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
        let file = options().create(true).truncate(false).open(self.beside(".seal"))?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(Disk(file))),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn data(&self) -> io::Result<Box<dyn StorageBackend>> {
        match options().open(&self.path) {
            Ok(file) => Ok(Box::new(Disk(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = options().create(true).truncate(true).open(self.beside(".new"))?;
                Ok(Box::new(Disk(file)))
            }
            Err(error) => Err(error),
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

/// A file as redb wants it. The lock is on the seal, so none is taken here.
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
            0 => Err(io::Error::other(
                "its file was removed: restore it, or start again to begin with an empty one",
            )),
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
