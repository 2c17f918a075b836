//! The last good texts of a folder on disk, so that a restart changes nothing of what is in force.
//!
//! Each file of the folder has a record: the texts that its objects in force come from, the latest last, and what was
//! in the folder then. At the start, where a file is wrong or cannot be read, its record is taken first: what it had
//! good stays, as it would have without the restart.
//!
//! Where there is no good version to go on from, the process does not begin: see [`Kept::lacking`]. Files are mode
//! 0600: there may be keys in them. They are not forced onto the disk: what a power cut damages is left out, and then
//! the process does not begin either.

mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use meshwork_base::ContentHash;
use meshwork_resources::FileName;

use crate::folder::{Changes, FileChange};
use crate::objects::{FileKey, Objects};
use record::Record;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Where; without, nothing outlives the process.
    directory: Option<PathBuf>,
    /// What was there at the start, until the folder has been read once.
    stored: BTreeMap<FileName, Arc<Record>>,
    /// Whether it has.
    is_read: bool,
    /// The records of files that are wrong now.
    wrong: BTreeMap<FileName, Arc<Record>>,
    /// What was wrong, without a good version, while the process before served: the text, and how much of it.
    borne: BTreeMap<FileName, (String, usize)>,
    /// What is to be written; nothing for what is gone.
    changed: BTreeMap<FileName, Option<Arc<Record>>>,
    /// It was told that nothing can be written.
    is_told: bool,
}

impl Kept {
    /// What is kept of the folder `root` below this directory.
    pub(crate) fn open(below: Option<&Path>, root: &Path) -> Self {
        let Some(below) = below else { return Self::default() };
        let root = std::fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
        let name = ContentHash::of(root.as_os_str().as_encoded_bytes());
        let directory = below.join(name.to_string());
        let stored = record::read_all(&directory);
        Self { directory: Some(directory), stored, ..Self::default() }
    }

    /// Takes what became of files, and before it what they had good when the process before ended.
    pub(crate) fn take(&mut self, objects: &mut Objects, source: u8, changes: Changes) {
        let is_listed = !matches!(changes.folder, Some(Err(_)));
        if !self.is_read && !is_listed {
            // Nobody can tell what is in it: all that it had stays.
            for (name, record) in &self.stored {
                restore(objects, &(source, Arc::clone(name)), record);
            }
        }
        if !self.is_read && is_listed {
            self.is_read = true;
            let gone: Vec<_> =
                self.stored.keys().filter(|name| !changes.files.contains_key(*name)).cloned().collect();
            for name in gone {
                self.take_file(objects, &(source, name), FileChange::Gone);
            }
        }
        for (name, change) in changes.files {
            self.take_file(objects, &(source, name), change);
        }
    }

    fn take_file(&mut self, objects: &mut Objects, key: &FileKey, change: FileChange) {
        let name = &key.1;
        let stored = self.stored.remove(name);
        match &change {
            FileChange::Gone => {
                self.wrong.remove(name);
                self.note(name, None);
            }
            FileChange::Unreadable(_) => {
                if let Some(record) = &stored {
                    restore(objects, key, record);
                }
                let record = stored.or_else(|| self.before(name)).unwrap_or_default();
                self.wrong.insert(Arc::clone(name), record);
            }
            FileChange::Content(bytes) => {
                objects.take(key, change.clone());
                let now = Record::of(name, bytes);
                if objects.is_wrong(key) {
                    self.take_wrong(objects, key, stored, now, bytes);
                } else {
                    self.wrong.remove(name);
                    if stored.is_none_or(|stored| *stored != now) {
                        self.note(name, Some(Arc::new(now)));
                    }
                }
                return;
            }
        }
        objects.take(key, change);
    }

    /// A text that is wrong: what it had good before goes with it.
    fn take_wrong(
        &mut self,
        objects: &mut Objects,
        key: &FileKey,
        stored: Option<Arc<Record>>,
        mut now: Record,
        bytes: &[u8],
    ) {
        let name = &key.1;
        if let Some(record) = &stored {
            restore(objects, key, record);
            objects.take(key, FileChange::Content(bytes.to_vec()));
            self.borne.insert(Arc::clone(name), (record.latest.clone(), record.lacking));
        }
        let before = stored.or_else(|| self.before(name)).unwrap_or_default();
        now.texts.splice(..0, before.texts.iter().cloned());
        now.keep_only(name, objects.keys(key));
        now.lacking = objects.lacking(key).len();
        let now = Arc::new(now);
        self.wrong.insert(Arc::clone(name), Arc::clone(&now));
        if *now != *before {
            self.note(name, Some(now));
        }
    }

    /// The record of a file as it is now.
    fn before(&self, name: &FileName) -> Option<Arc<Record>> {
        let unwritten = || self.changed.get(name).cloned().flatten();
        let written = || record::read(&self.path(name)?).ok().flatten().map(Arc::new);
        self.wrong.get(name).cloned().or_else(unwritten).or_else(written)
    }

    fn note(&mut self, name: &FileName, record: Option<Arc<Record>>) {
        if self.directory.is_some() {
            self.changed.insert(Arc::clone(name), record);
        }
    }

    fn path(&self, name: &FileName) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(ContentHash::of(name.as_bytes()).to_string()))
    }

    /// What of the folder has no version in force, and had none that was borne when the process before served the same
    /// text.
    pub(crate) fn lacking(&self, objects: &Objects, source: u8) -> Vec<String> {
        let mut all = Vec::new();
        for (name, record) in &self.wrong {
            let found = objects.lacking(&(source, Arc::clone(name)));
            let is_borne =
                |(latest, lacking): &(String, usize)| *latest == record.latest && *lacking >= found.len();
            if !self.borne.get(name).is_some_and(is_borne) {
                all.extend(found);
            }
        }
        all
    }

    /// Whether there is nothing to go on from while the folder cannot be listed.
    pub(crate) fn is_blind(&self) -> bool {
        !self.is_read && self.stored.is_empty()
    }

    /// Writes what has changed; what cannot be written is tried again with the next change.
    pub(crate) fn write(&mut self) {
        let Some(directory) = &self.directory else { return };
        let written = self.changed.iter().try_for_each(|(name, record)| {
            let path = directory.join(ContentHash::of(name.as_bytes()).to_string());
            match record {
                Some(record) => record::write(&path, record),
                None => match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                },
            }
        });
        match written {
            Ok(()) => {
                self.changed.clear();
                self.is_told = false;
            }
            Err(error) if !self.is_told => {
                self.is_told = true;
                tracing::warn!(
                    directory = %directory.display(), %error,
                    "the last good resources are not kept over a restart; give a --data-dir that can be written"
                );
            }
            Err(_) => {}
        }
        if self.is_told && !directory.is_dir() {
            // It never could be made: nothing is held for it.
            self.directory = None;
            self.changed.clear();
        }
    }
}

/// Makes a file's objects what they were by its record.
fn restore(objects: &mut Objects, key: &FileKey, record: &Record) {
    for text in &record.texts {
        objects.take(key, FileChange::Content(text.as_bytes().to_vec()));
    }
}
