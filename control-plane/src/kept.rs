//! The last good texts of a folder on disk, so that a restart changes nothing of what is in force.
//!
//! Each file of the folder has a record: the texts that its objects in force come from, the latest last, and what was
//! in the folder then. At the start, where a file is wrong or cannot be read, its record is taken first: what it had
//! good stays, as it would have without the restart.
//!
//! Where there is no good version to go on from, the process does not begin: see [`Kept::lacking`]. An older version than
//! the last would be taken for it, so a record that cannot be replaced is removed, and that it was replaced is forced
//! onto the disk ([`Unsynced`]). What a power cut damages is left out, and then the process does not begin either. Files
//! are mode 0600: there may be keys in them.

mod record;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use meshwork_base::ContentHash;
use meshwork_resources::FileName;

use crate::folder::{Changes, FileChange};
use crate::objects::{FileKey, Objects};
use record::Record;

/// So many records are forced onto the disk one by one.
const SYNCED: usize = 16;

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
    /// What is to be written; nothing for what is gone. It is held until it can be.
    changed: BTreeMap<FileName, Option<Arc<Record>>>,
    /// It was told that nothing can be written.
    is_told: bool,
}

impl Kept {
    /// What is kept of the folder `root` below this directory. A root is known by its name, wherever that leads: a link that
    /// each release moves is one folder.
    pub(crate) fn open(below: Option<&Path>, root: &Path) -> Self {
        let Some(below) = below else { return Self::default() };
        let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
        // With a slash at its end or without.
        let root: PathBuf = root.components().collect();
        let name = ContentHash::of(root.as_os_str().as_encoded_bytes());
        let directory = below.join(name.to_string());
        let stored = record::read_all(&directory);
        Self { directory: Some(directory), stored, ..Self::default() }
    }

    /// The files that had something good when the process before ended.
    pub(crate) fn names(&self) -> impl Iterator<Item = &FileName> {
        self.stored.keys()
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

    fn take_file(&mut self, objects: &mut Objects, key: &FileKey, mut change: FileChange) {
        let name = &key.1;
        let stored = self.stored.remove(name);
        if matches!(&change, FileChange::Content(bytes) if bytes.is_empty())
            && let Some(why) = emptied(objects, key, stored.as_deref())
        {
            change = FileChange::Unreadable(why);
        }
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
    pub(crate) fn write(&mut self) -> Option<Unsynced> {
        let directory = self.directory.clone().filter(|_| !self.changed.is_empty())?;
        let mut written = Vec::new();
        let mut failed = record::make(&directory).err();
        if failed.is_none() {
            // One that cannot be written keeps no other from being so.
            self.changed.retain(|name, record| {
                let path = directory.join(ContentHash::of(name.as_bytes()).to_string());
                let done = match record {
                    Some(record) => record::write(&path, record),
                    None => record::remove(&path),
                };
                match done {
                    Ok(()) => {
                        written.extend(record.is_some().then_some(path));
                        false
                    }
                    Err(error) => {
                        failed = Some(error);
                        true
                    }
                }
            });
        }
        if let Some(error) = failed.as_ref().filter(|_| !self.is_told) {
            tracing::warn!(
                directory = %directory.display(), %error,
                "the last good resources are not kept over a restart; give a --data-dir that can be written"
            );
        }
        self.is_told = failed.is_some();
        Some(Unsynced { directory, written })
    }
}

/// What is told of a file that is found empty; nothing where it had no objects. A crash of the machine leaves files empty, and so does
/// whoever is about to write one: nobody can tell how long that takes.
fn emptied(objects: &Objects, key: &FileKey, stored: Option<&Record>) -> Option<String> {
    let running = || objects.keys(key).into_iter().collect::<BTreeSet<_>>().len();
    let (had, when) = match stored {
        Some(record) => (record.objects(&key.1), " when the process before ended"),
        None => (running(), ""),
    };
    let objects = if had == 1 { "object" } else { "objects" };
    let is_meant = "a comment in it says that it is meant to have none";
    (had > 0).then(|| format!("{} is empty, and had {had} {objects}{when}; {is_meant}", key.1))
}

/// Records that were written and may not be on the disk yet.
#[derive(Debug)]
pub(crate) struct Unsynced {
    directory: PathBuf,
    written: Vec<PathBuf>,
}

impl Unsynced {
    /// Waits until they are. That takes milliseconds for each, and it is not to be waited for with what takes effect.
    pub(crate) fn sync(self) {
        // So many come from a checkout of everything. That their names lead to them, and not to older ones, is forced all
        // the same; of the content a checksum tells whether it has got there.
        let few = self.written.iter().filter(|_| self.written.len() <= SYNCED);
        for path in few.chain([&self.directory]) {
            if let Err(error) = File::open(path).and_then(|file| file.sync_all()) {
                tracing::debug!(path = %path.display(), %error, "not forced onto the disk");
            }
        }
    }
}

/// Makes a file's objects what they were by its record.
fn restore(objects: &mut Objects, key: &FileKey, record: &Record) {
    for text in &record.texts {
        objects.take(key, FileChange::Content(text.as_bytes().to_vec()));
    }
}
