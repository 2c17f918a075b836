//! One file's record on disk: a line with a checksum, then JSON.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use meshwork_base::ContentHash;
use meshwork_resources::{FileName, ObjectKey, load_file};
use serde::{Deserialize, Serialize};

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
    // What a crash has left beside a record is none.
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_none()) {
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

/// Writes a record whole, in the place of the one before.
pub(super) fn write(path: &Path, record: &Record) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let json = serde_json::to_string(record)?;
    // Another process may keep the same folder in the same place.
    let staged = path.with_extension(format!("{}.new", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
    writeln!(file, "{}", ContentHash::of(json.as_bytes()))?;
    file.write_all(json.as_bytes())?;
    std::fs::rename(&staged, path)
}
