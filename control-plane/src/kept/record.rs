//! One file's record on disk: a line with a checksum, then JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use meshwork_base::ContentHash;
use meshwork_resources::{FileName, ObjectKey, load_file};
use serde::{Deserialize, Serialize};

/// What a file is called that becomes a record, after the number of its process.
const STAGED: &str = "new";

/// What is kept of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Its name in the folder.
    file: String,
    /// The texts that its objects in force come from, in the order in which they were read.
    pub(super) texts: Vec<String>,
    /// The hash of the text that was read last.
    pub(super) latest: String,
    /// How much of that is refused and has no good version.
    pub(super) lacking: usize,
}

impl Record {
    /// Of a file with this content.
    pub(super) fn of(name: &FileName, bytes: &[u8]) -> Self {
        Self {
            file: name.to_string(),
            // What is no text has no objects.
            texts: std::str::from_utf8(bytes).map(str::to_owned).into_iter().collect(),
            latest: ContentHash::of(bytes).to_string(),
            lacking: 0,
        }
    }

    /// How many objects the file had.
    pub(super) fn objects(&self, name: &FileName) -> usize {
        let loaded = self.texts.iter().map(|text| load_file(name, text.as_bytes()));
        loaded.flat_map(|loaded| loaded.objects).map(|object| object.key()).collect::<BTreeSet<_>>().len()
    }

    /// Drops the texts of which nothing is in force any more. Of an object the latest version is.
    pub(super) fn keep_only(&mut self, name: &FileName, mut keys: Vec<ObjectKey>) {
        let mut needed = Vec::new();
        for text in std::mem::take(&mut self.texts).into_iter().rev() {
            let before = keys.len();
            let defined = load_file(name, text.as_bytes()).objects;
            keys.retain(|key| !defined.iter().any(|object| object.key() == *key));
            if keys.len() < before {
                needed.push(text);
            }
        }
        needed.reverse();
        self.texts = needed;
    }
}

/// All records of a directory. What is damaged is left out, and told.
pub(super) fn read_all(directory: &Path) -> BTreeMap<FileName, Arc<Record>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(directory = %directory.display(), %error, "the last good resources cannot be read");
            }
            return BTreeMap::new();
        }
    };
    let mut all = BTreeMap::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        if is_left_over(&path)
            && let Err(error) = remove(&path)
        {
            // There may be keys in it.
            tracing::warn!(path = %path.display(), %error, "what a crash has left is not removed");
        }
        if path.extension().is_some() {
            continue;
        }
        match read(&path) {
            Ok(Some(record)) => drop(all.insert(record.file.as_str().into(), Arc::new(record))),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the last good resources of a file are lost");
            }
        }
    }
    all
}

/// A record; none where there is no file.
pub(super) fn read(path: &Path) -> io::Result<Option<Record>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the file is damaged");
    let (sum, json) = text.split_once('\n').ok_or_else(damaged)?;
    if ContentHash::of(json.as_bytes()).to_string() != sum {
        return Err(damaged());
    }
    serde_json::from_str(json).map(Some).map_err(io::Error::other)
}

/// Makes the directory of records.
pub(super) fn make(directory: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Writes a record whole, in the place of the one before. Where that fails there is none any more: the one before is not
/// the last good one, and without any the next start is a first one.
pub(super) fn write(path: &Path, record: &Record) -> io::Result<()> {
    // Another process may keep the same folder in the same place.
    let staged = path.with_extension(format!("{}.{STAGED}", std::process::id()));
    let written = stage(&staged, record).and_then(|()| std::fs::rename(&staged, path));
    if written.is_err() {
        // What cannot be removed either stays; that nothing can be written is told.
        drop(remove(&staged));
        drop(remove(path));
    }
    written
}

fn stage(path: &Path, record: &Record) -> io::Result<()> {
    let json = serde_json::to_string(record)?;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(file, "{}", ContentHash::of(json.as_bytes()))?;
    file.write_all(json.as_bytes())
}

/// Removes a file, if there is one.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether this was to become a record, and whoever wrote it has ended before it did.
fn is_left_over(path: &Path) -> bool {
    let writer = path.file_stem().map(Path::new).and_then(Path::extension).and_then(|pid| pid.to_str());
    let lives = |pid: &str| {
        // A process that has just started has written nothing: what has its number is another one's.
        pid != std::process::id().to_string() && Path::new("/proc").join(pid).exists()
    };
    path.extension().is_some_and(|extension| extension == STAGED) && !writer.is_some_and(lives)
}
