//! SVID, key and bundle in the instance's own data directory.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use meshwork_base::Code;

use crate::bundle::{Bundle, BundleError};
use crate::files::{read_secret, try_secret, write_secret};
use crate::svid::{Svid, SvidError};

const SVID_FILE: &str = "svid.pem";
const BUNDLE_FILE: &str = "bundle.json";
/// What SVID, key and bundle take of a disk, in bytes: each of them is about a block.
const SIZE: usize = 8 * 1024;

/// Why the stored identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// The disk, when something was to be kept.
    #[error("{}: {error}; check that the directory is there, writable and not full", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// The SVID's file.
    #[error("{}: {error}", path.display())]
    Svid {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        error: SvidError,
    },
    /// The bundle's file.
    #[error("{}: {error}", path.display())]
    Bundle {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        error: BundleError,
    },
}

impl StoreError {
    /// Its page.
    #[must_use]
    pub const fn code(&self) -> Code {
        Code::new(6050)
    }

    /// The file whose content is damaged, if that is what it is: nothing but another identity mends it. What cannot be read
    /// for another reason may be whole.
    #[must_use]
    pub fn damaged(&self) -> Option<&Path> {
        match self {
            Self::Svid { path, .. } | Self::Bundle { path, .. } => Some(path),
            // What is no text.
            Self::Io { path, error } => (error.kind() == io::ErrorKind::InvalidData).then_some(path),
            Self::Write { .. } => None,
        }
    }
}

/// What the directory holds.
#[derive(Debug)]
pub enum Loaded {
    /// Nothing: join with a token.
    Missing,
    /// An identity in force, or one whose time has not come by our clock, which is renewed at once: no token is needed.
    Valid(Box<Svid>, Box<Bundle>),
    /// An identity whose time is over: it may still be renewed, or join with a token.
    Expired(Box<Svid>, Box<Bundle>),
}

/// The folder. Files have mode 0600 and are replaced whole; each is parsed completely when read, key and certificate
/// must go together.
#[derive(Clone, Debug)]
pub struct SvidStore {
    folder: PathBuf,
}

impl SvidStore {
    /// A store in this folder, which is made with the first write.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn write(&self, file: &str, text: &str) -> Result<(), StoreError> {
        let path = self.folder.join(file);
        write_secret(&path, text.as_bytes()).map_err(|error| StoreError::Write { path, error })
    }

    /// Whether an identity can be kept here, before one is asked for that could not be asked for again. Something of its size
    /// is written, and removed again.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn try_write(&self) -> Result<(), StoreError> {
        let path = self.folder.join(SVID_FILE);
        try_secret(&path, SIZE).map_err(|error| StoreError::Write { path, error })
    }

    fn read(&self, file: &str) -> Result<Option<String>, StoreError> {
        let path = self.folder.join(file);
        read_secret(&path).map_err(|error| StoreError::Io { path, error })
    }

    /// Keeps an SVID and its key, in one file: there is no moment at which they differ.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn save_svid(&self, svid: &Svid) -> Result<(), StoreError> {
        self.write(SVID_FILE, &svid.to_pem())
    }

    /// Keeps a bundle.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub fn save_bundle(&self, bundle: &Bundle) -> Result<(), StoreError> {
        self.write(BUNDLE_FILE, &bundle.to_json())
    }

    /// Reads what was kept.
    ///
    /// # Errors
    /// [`StoreError`] when a file is damaged; half of an identity counts as none.
    pub fn load(&self, now: Duration) -> Result<Loaded, StoreError> {
        let (Some(svid), Some(bundle)) = (self.read(SVID_FILE)?, self.read(BUNDLE_FILE)?) else {
            return Ok(Loaded::Missing);
        };
        let svid = Svid::from_pem(&svid)
            .map_err(|error| StoreError::Svid { path: self.folder.join(SVID_FILE), error })?;
        let bundle = Bundle::from_json(&bundle)
            .map_err(|error| StoreError::Bundle { path: self.folder.join(BUNDLE_FILE), error })?;
        let is_over = svid.is_expired(now);
        let (svid, bundle) = (Box::new(svid), Box::new(bundle));
        Ok(if is_over { Loaded::Expired(svid, bundle) } else { Loaded::Valid(svid, bundle) })
    }
}
