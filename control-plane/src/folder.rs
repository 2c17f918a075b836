//! A folder of resources as a source: every `*.yaml`, `*.yml` and `*.json` below it, hidden ones apart.
//!
//! Files are told apart by content, so an event without a new content changes nothing. Nothing vanishes because an
//! editor or a mount is half-way: a file that somebody is writing keeps its last content until it is closed, a file that
//! is missing keeps it until it stays missing, a file that cannot be read keeps it and is reported. Kubernetes mounts a
//! `ConfigMap` as links into a hidden directory that is replaced by one rename; the links are followed, so the whole
//! mount changes at once.

mod watch;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use meshwork_base::{ContentHash, Tick, pack};
use meshwork_resources::{FileName, limits};
use rustix::fs::{Mode, OFlags};

pub use watch::follow;

/// How long a missing file may be on its way back: editors move the old one away before they write the new one.
const GONE_AFTER: Duration = Duration::from_millis(100);
/// How long a file that was written to and not closed keeps its old content.
const WRITTEN_AFTER: Duration = Duration::from_secs(1);
/// Directories within directories; deeper ones are most likely links in a circle.
const DEPTH: usize = 32;

/// Why a folder cannot be a source.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be read: {source}; name a folder (or a file) of resources that this user may read", path = path.display())]
pub struct FolderError {
    path: PathBuf,
    source: io::Error,
}

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileChange {
    /// It is new, or has another content.
    Content(Vec<u8>),
    /// It is there and cannot be read; its last content stays.
    Unreadable(String),
    /// It is gone.
    Gone,
}

/// What a look at the folder found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Files that are not as they were.
    pub files: BTreeMap<FileName, FileChange>,
    /// The folder itself cannot be listed any more (everything stays), or can again.
    pub folder: Option<Result<(), String>>,
}

impl Changes {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.folder.is_none()
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    len: u64,
    inode: u64,
}

impl Stamp {
    fn of(meta: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        Self { modified: meta.modified().ok(), len: meta.len(), inode: meta.ino() }
    }
}

#[derive(Debug)]
struct Known {
    /// Where its bytes are, links followed.
    real: PathBuf,
    stamp: Option<Stamp>,
    /// None: it could not be read, for this reason.
    content: Result<ContentHash, String>,
    missing_since: Option<Tick>,
}

/// A folder and what was last seen in it. Looks at files when told to; [`follow`] tells it when.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    /// Before each name: empty for a folder of its own, the path as the user wrote it for `check`.
    prefix: String,
    known: BTreeMap<FileName, Known>,
    /// Files that were there when the process before ended, until the folder has been listed.
    expected: BTreeSet<FileName>,
    /// Files (real paths) that were written to and not closed, since when.
    writing: BTreeMap<PathBuf, Tick>,
    /// Files (real paths) that had content and are empty, since when. Who rewrites a file in place empties it first, and
    /// some filesystems tell of that only later: emptiness counts when it lasts.
    emptied: BTreeMap<PathBuf, Tick>,
    unreadable: Option<String>,
    directories: BTreeSet<PathBuf>,
    /// The directories that were walked (real paths), and what the names of their files begin with.
    walked: BTreeMap<PathBuf, String>,
    /// Some file is reached by a link: what happens to one name may then change others.
    linked: bool,
    packed: usize,
    /// How a file's bytes are read; tests wait in it.
    read: fn(&Path) -> io::Result<Vec<u8>>,
}

/// What a walk found.
#[derive(Default)]
struct Walk {
    files: BTreeMap<FileName, Listed>,
    /// Real paths of directories, and what the names of their files begin with.
    directories: BTreeMap<PathBuf, String>,
    /// Links that lead nowhere, by what the names of their files would begin with if they led to a directory, and why.
    lost: Vec<(String, io::Error)>,
}

/// A file as it was listed.
struct Listed {
    path: PathBuf,
    /// Where its bytes are, when that follows from its directory: it is no link.
    real: Option<PathBuf>,
}

impl Folder {
    /// A folder, or one file. Names of files are their paths below it.
    ///
    /// # Errors
    /// [`FolderError`] when it cannot be listed now.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, FolderError> {
        let root = root.into();
        let readable = fs::metadata(&root).and_then(|meta| match meta.is_dir() {
            true => fs::read_dir(&root).map(|_| true),
            // Not a pipe, of which whoever opens it twice reads nothing.
            false if meta.is_file() => fs::File::open(&root).map(|_| false),
            false => Ok(false),
        });
        let is_folder = match readable {
            Ok(is_folder) => is_folder,
            Err(source) => return Err(FolderError { path: root, source }),
        };
        Ok(Self {
            root,
            prefix: String::new(),
            known: BTreeMap::new(),
            expected: BTreeSet::new(),
            writing: BTreeMap::new(),
            emptied: BTreeMap::new(),
            unreadable: None,
            directories: BTreeSet::new(),
            walked: BTreeMap::new(),
            linked: false,
            packed: 0,
            read: if is_folder { read_file } else { read },
        })
    }

    /// The same, with names as the user would write them: the folder's own path before each.
    ///
    /// # Errors
    /// [`FolderError`] when it cannot be listed now.
    pub fn open_by_path(root: impl Into<PathBuf>) -> Result<Self, FolderError> {
        let mut folder = Self::open(root)?;
        let path = folder.root.to_string_lossy();
        folder.prefix = match folder.root.is_dir() {
            true => format!("{}/", path.trim_end_matches('/')),
            false => {
                folder.root.parent().map(|up| up.join("").to_string_lossy().into_owned()).unwrap_or_default()
            }
        };
        Ok(folder)
    }

    /// Tells which files were there when the process before ended. What cannot be looked for is then not gone.
    pub(crate) fn expect<'n>(&mut self, names: impl Iterator<Item = &'n FileName>) {
        self.expected.extend(names.cloned());
    }

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Real paths of the directories in which something may happen.
    #[must_use]
    pub const fn directories(&self) -> &BTreeSet<PathBuf> {
        &self.directories
    }

    /// Somebody writes to this file (its real path) and has not closed it.
    pub fn written(&mut self, real: PathBuf, now: Tick) {
        self.writing.insert(real, now);
    }

    /// Nobody writes to this file any more.
    pub fn closed(&mut self, real: &Path) {
        self.writing.remove(real);
    }

    /// Whether it can be listed.
    #[must_use]
    pub const fn is_readable(&self) -> bool {
        self.unreadable.is_none()
    }

    /// Whether a file with this real path is one of ours, or may become one.
    #[must_use]
    pub fn may_know(&self, real: &Path) -> bool {
        self.knows(real) || real.file_name().is_some_and(|name| is_resource_file(&name.to_string_lossy()))
    }

    /// Whether a file with this real path is one of ours.
    #[must_use]
    pub fn knows(&self, real: &Path) -> bool {
        let by_name = || Some(self.known.get(self.name_of(real)?.as_str())?.real == real);
        by_name() == Some(true) || (self.linked && self.known.values().any(|known| known.real == real))
    }

    /// The name of what is, or would be, at this real path.
    fn name_of(&self, real: &Path) -> Option<String> {
        let prefix = self.walked.get(real.parent()?)?;
        Some(format!("{prefix}{}", real.file_name()?.to_string_lossy()))
    }

    /// When to look again although nothing happens: a missing file may have to go, one that is written to be read.
    #[must_use]
    pub fn recheck(&self) -> Option<Tick> {
        let missing = self.known.values().filter_map(|known| known.missing_since);
        let gone = missing.map(|since| since.after(GONE_AFTER));
        let unsure = self.writing.values().chain(self.emptied.values());
        gone.chain(unsure.map(|since| since.after(WRITTEN_AFTER))).min()
    }

    /// What was just seen of this file (its real path) is forgotten: it was being written to.
    pub(crate) fn take_back(&mut self, found: &mut Changes, real: &Path) {
        for (name, known) in self.known.iter_mut().filter(|(_, known)| known.real == real) {
            if found.files.remove(name).is_some() {
                known.stamp = None;
                known.content = Err(format!("{} is being written to", real.display()));
            }
        }
    }

    /// Tells of the first look also which files are there and were not read: they are not missing.
    pub(crate) fn tell_unread(&self, found: &mut Changes) {
        for (name, known) in &self.known {
            if let Err(why) = &known.content {
                found.files.entry(name.clone()).or_insert_with(|| FileChange::Unreadable(why.clone()));
            }
        }
    }

    /// Looks at files whose content may have changed, by real path.
    pub fn refresh(&mut self, touched: &BTreeSet<PathBuf>, now: Tick) -> Changes {
        let files: Vec<(FileName, PathBuf)> = if self.linked {
            let known = self.known.iter().filter(|(_, known)| touched.contains(&known.real));
            known.map(|(name, known)| (name.clone(), known.real.clone())).collect()
        } else {
            let named = touched.iter().filter_map(|path| Some((self.name_of(path)?.into(), path.clone())));
            named.filter(|(name, _)| self.known.contains_key(name)).collect()
        };
        let mut changes = Changes::default();
        for (name, path) in files {
            if let Some(known) = self.known.get_mut(&name) {
                known.stamp = None;
            }
            self.look(&name, &Listed { path, real: None }, now, &mut changes);
        }
        changes
    }

    /// Looks at one path (real, its directory at least) instead of at everything. `None` where that cannot tell what has
    /// become of the folder: a directory came or went, or there are links.
    pub fn look_at(&mut self, real: &Path, now: Tick) -> Option<Changes> {
        let mut changes = Changes::default();
        if self.linked {
            return None;
        }
        let name: FileName = self.name_of(real)?.into();
        let file = real.file_name()?.to_string_lossy();
        if file.starts_with('.') {
            return Some(changes);
        }
        match fs::symlink_metadata(real) {
            Ok(meta) if meta.is_file() => {
                if is_resource_file(&file) {
                    let real = real.to_owned();
                    self.look(&name, &Listed { path: real.clone(), real: Some(real) }, now, &mut changes);
                    if let Some(known) = self.known.get_mut(&name) {
                        known.missing_since = None;
                    }
                }
                Some(changes)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(known) = self.known.get_mut(&name) {
                    known.missing_since.get_or_insert(now);
                    return Some(changes);
                }
                let below = format!("{name}/");
                (!self.walked.values().any(|prefix| *prefix == below)).then_some(changes)
            }
            _ => None,
        }
    }

    /// Lets go what has been missing for long enough, without looking at everything. `None` where something else has to
    /// be looked at too.
    pub(crate) fn let_go(&mut self, now: Tick) -> Option<Changes> {
        let mut unsure = self.writing.values().chain(self.emptied.values());
        if self.linked || unsure.any(|since| now.since(*since) >= WRITTEN_AFTER) {
            return None;
        }
        let due = |known: &Known| known.missing_since.is_some_and(|since| now.since(since) >= GONE_AFTER);
        let missing: Vec<_> = self.known.iter().filter(|(_, known)| due(known)).collect();
        if missing.iter().any(|(_, known)| known.real.symlink_metadata().is_ok()) {
            return None;
        }
        let gone: Vec<FileName> = missing.into_iter().map(|(name, _)| name.clone()).collect();
        let mut changes = Changes::default();
        for name in gone {
            self.known.remove(&name);
            changes.files.insert(name, FileChange::Gone);
        }
        Some(changes)
    }

    /// Looks at everything.
    pub fn scan(&mut self, now: Tick) -> Changes {
        self.writing.retain(|_, since| now.since(*since) < WRITTEN_AFTER);
        let mut changes = Changes::default();
        let mut walk = Walk::default();
        let listed = walk
            .root(&self.root, &self.prefix)
            .map_err(|error| error.to_string())
            .and_then(|()| self.find_all(&walk.lost))
            .map_err(|error| format!("{} cannot be listed: {error}", self.root.display()));
        if listed.as_ref().err() != self.unreadable.as_ref() {
            self.unreadable = listed.as_ref().err().cloned();
            changes.folder = Some(listed.clone());
        }
        if listed.is_err() {
            // Nobody can tell what is missing or empty.
            self.known.values_mut().for_each(|known| known.missing_since = None);
            self.emptied.clear();
            return changes;
        }
        self.expected.clear();
        self.walked = walk.directories;
        self.linked = false;
        for (name, listed) in &walk.files {
            self.look(name, listed, now, &mut changes);
        }
        self.directories = self.walked.keys().cloned().collect();
        let parents = self.known.values().filter_map(|known| known.real.parent().map(Path::to_owned));
        self.directories.extend(parents);
        self.miss(&walk.files, now, &mut changes);
        pack(&mut self.known, &mut self.packed);
        changes
    }

    /// Whether no link that led to known files leads nowhere now: a mount may be away, and they are not gone.
    fn find_all(&self, lost: &[(String, io::Error)]) -> Result<(), String> {
        let is_below =
            |prefix: &str| self.known.keys().chain(&self.expected).any(|name| name.starts_with(prefix));
        match lost.iter().find(|(prefix, _)| is_below(prefix)) {
            Some((prefix, error)) => {
                let link = prefix.trim_end_matches('/');
                Err(format!(
                    "the link {link}, below which there were files, leads nowhere ({error}); bring back what it leads to, or remove it"
                ))
            }
            None => Ok(()),
        }
    }

    fn miss(&mut self, listed: &BTreeMap<FileName, Listed>, now: Tick, changes: &mut Changes) {
        self.known.retain(|name, known| {
            if listed.contains_key(name) {
                known.missing_since = None;
                return true;
            }
            let since = *known.missing_since.get_or_insert(now);
            let gone = now.since(since) >= GONE_AFTER;
            if gone {
                changes.files.insert(name.clone(), FileChange::Gone);
            }
            !gone
        });
    }

    fn look(&mut self, name: &FileName, listed: &Listed, now: Tick, changes: &mut Changes) {
        let path = &listed.path;
        let found = match listed.real.as_ref().map(|real| (real, fs::symlink_metadata(real))) {
            Some((real, Ok(meta))) if meta.is_file() => Ok((real.clone(), meta)),
            // A link, or what was a file just now.
            _ => fs::canonicalize(path).and_then(|real| fs::metadata(&real).map(|meta| (real, meta))),
        };
        let (real, stamp) = match found {
            Ok((real, meta)) => (real, Ok(Stamp::of(&meta))),
            Err(error) => (real_name(path), Err(error)),
        };
        self.linked |= self.name_of(&real).as_deref() != Some(name);
        if self.writing.get(&real).is_some_and(|since| now.since(*since) < WRITTEN_AFTER) {
            return;
        }
        let known = self.known.get(name);
        let unchanged =
            known.is_some_and(|known| known.stamp.is_some() && known.stamp.as_ref() == stamp.as_ref().ok());
        if unchanged && known.is_some_and(|known| known.real == real) {
            return;
        }
        let read = match &stamp {
            Ok(_) => (self.read)(&real),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        if read.as_ref().is_ok_and(Vec::is_empty)
            && known.is_some_and(|known| known.content != Ok(ContentHash::of(b"")))
        {
            let since = *self.emptied.entry(real.clone()).or_insert(now);
            if now.since(since) < WRITTEN_AFTER {
                return;
            }
        }
        self.emptied.remove(&real);
        let (content, change) = match read {
            Ok(bytes) => (Ok(ContentHash::of(&bytes)), FileChange::Content(bytes)),
            Err(error) => {
                let why = format!("{} cannot be read: {error}", path.display());
                (Err(why.clone()), FileChange::Unreadable(why))
            }
        };
        if known.is_none_or(|known| known.content != content) {
            changes.files.insert(name.clone(), change);
        }
        let stamp = stamp.ok().filter(|_| content.is_ok());
        self.known.insert(name.clone(), Known { real, stamp, content, missing_since: None });
    }
}

/// The real path of a name that leads nowhere: its directory is there. A directory has one name for those who watch it.
fn real_name(path: &Path) -> PathBuf {
    let directory = path.parent().and_then(|directory| fs::canonicalize(directory).ok());
    directory.zip(path.file_name()).map_or_else(|| path.to_owned(), |(directory, name)| directory.join(name))
}

/// What a user names may be a pipe, as shells make them of a command.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_all(fs::File::open(path)?)
}

/// What lies in a folder is a file or an error: at a pipe, nobody knows how long to wait.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => read_all(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file, nor a link to one")),
    }
}

/// One byte more than a file may have tells that it has too many.
fn read_all(file: fs::File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limits::FILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Walk {
    fn root(&mut self, root: &Path, prefix: &str) -> io::Result<()> {
        if fs::metadata(root)?.is_dir() {
            return self.directory(root, prefix, 0);
        }
        let name = root.file_name().unwrap_or(root.as_os_str()).to_string_lossy();
        self.files.insert(format!("{prefix}{name}").into(), Listed { path: root.to_owned(), real: None });
        Ok(())
    }

    fn directory(&mut self, path: &Path, prefix: &str, depth: usize) -> io::Result<()> {
        let real = fs::canonicalize(path)?;
        // A link back to a directory that was walked already shows nothing new.
        if depth > DEPTH || self.directories.contains_key(&real) {
            return Ok(());
        }
        self.directories.insert(real.clone(), prefix.to_owned());
        let mut entries: Vec<_> = fs::read_dir(path)?.collect::<io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                if is_resource_file(&name) {
                    let real = Some(real.join(&name));
                    self.files.insert(format!("{prefix}{name}").into(), Listed { path, real });
                }
                continue;
            }
            let is_directory = match fs::metadata(&path) {
                Ok(meta) => meta.is_dir(),
                Err(error) => {
                    if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                        self.lost.push((format!("{prefix}{name}/"), error));
                    }
                    false
                }
            };
            if is_directory {
                // A directory that goes while it is walked is missing like its files.
                match self.directory(&path, &format!("{prefix}{name}/"), depth + 1) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            } else if is_resource_file(&name) {
                self.files.insert(format!("{prefix}{name}").into(), Listed { path, real: None });
            }
        }
        Ok(())
    }
}

fn is_resource_file(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    matches!(extension, Some("yaml" | "yml" | "json"))
}
