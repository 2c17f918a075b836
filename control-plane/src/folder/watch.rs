//! Tells a [`Folder`] when to look: inotify on all its directories, and a slow round for filesystems that say nothing.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use meshwork_base::{Clock, Tick};
use tokio::sync::mpsc;

use super::{Changes, Folder};

/// A full look although nothing was heard: network filesystems tell nothing.
const ROUND: Duration = Duration::from_secs(10);
/// The same where the system refuses to watch.
const ROUND_UNWATCHED: Duration = Duration::from_secs(1);
/// Events of one save or one checkout come together; how long a silence ends them, and how long they are waited for.
const SILENCE: Duration = Duration::from_millis(5);
const BURST: Duration = Duration::from_millis(50);
/// A file may be emptied to be written anew while it is read; the system has said so by the time the read is done. How
/// long it is listened for, and how often at most before what was seen is passed on.
const CONFIRMED: Duration = Duration::from_millis(2);
const CONFIRMATIONS: u32 = 20;

/// Sends every change of the folder, the first look at once, until nobody listens any more.
pub async fn follow(mut folder: Folder, clock: Arc<dyn Clock>, changes: mpsc::Sender<Changes>) {
    let mut watcher = Watcher::new();
    let mut first = watcher.scan(&mut folder, clock.now());
    watcher.confirm(&mut folder, &mut first, &*clock).await;
    folder.tell_unread(&mut first);
    if changes.send(first).await.is_err() {
        return;
    }
    loop {
        let round = if watcher.is_complete() && folder.is_readable() { ROUND } else { ROUND_UNWATCHED };
        let wait = folder.recheck().map_or(round, |at| at.since(clock.now()).min(round));
        let mut found = tokio::select! {
            () = changes.closed() => return,
            event = watcher.next() => {
                let heard = watcher.gather(event).await;
                watcher.attend(&mut folder, heard, clock.now())
            }
            () = tokio::time::sleep(wait) => {
                let now = clock.now();
                let due = folder.recheck().is_some_and(|at| at <= now);
                match due.then(|| folder.let_go(now)).flatten() {
                    Some(gone) => gone,
                    None => watcher.scan(&mut folder, now),
                }
            }
        };
        watcher.confirm(&mut folder, &mut found, &*clock).await;
        if !found.is_empty() && changes.send(found).await.is_err() {
            return;
        }
    }
}

struct Watcher {
    events: Option<EventStream<Vec<u8>>>,
    watches: Option<Watches>,
    directories: HashMap<WatchDescriptor, PathBuf>,
    /// Directories that the system refuses to watch.
    refused: BTreeSet<PathBuf>,
}

impl Watcher {
    fn new() -> Self {
        let opened = Inotify::init().and_then(|inotify| {
            let watches = inotify.watches();
            Ok((inotify.into_event_stream(vec![0; 16 * 1024])?, watches))
        });
        let (events, watches) = match opened {
            Ok((events, watches)) => (Some(events), Some(watches)),
            Err(error) => {
                tracing::warn!(%error, "the system watches no files; the folder is read every second instead. Raise fs.inotify.max_user_instances");
                (None, None)
            }
        };
        Self { events, watches, directories: HashMap::new(), refused: BTreeSet::new() }
    }

    fn is_complete(&self) -> bool {
        self.events.is_some() && self.refused.is_empty()
    }

    /// The next event; never without inotify.
    async fn next(&mut self) -> io::Result<EventOwned> {
        match &mut self.events {
            Some(events) => match events.next().await {
                Some(event) => event,
                None => Err(io::ErrorKind::UnexpectedEof.into()),
            },
            None => std::future::pending().await,
        }
    }

    /// Takes the events that come with the first.
    async fn gather(&mut self, first: io::Result<EventOwned>) -> Vec<io::Result<EventOwned>> {
        let mut heard = vec![first];
        let burst = async {
            while let Ok(event) = tokio::time::timeout(SILENCE, self.next()).await {
                heard.push(event);
            }
        };
        // Whether it ended by silence or by time is the same: what was heard is attended to.
        drop(tokio::time::timeout(BURST, burst).await);
        heard
    }

    /// Takes back what was seen of files that somebody was writing to meanwhile, and looks again when they are closed.
    /// A file that is written to without a pause keeps its last content until there is one; other files do not wait.
    async fn confirm(&mut self, folder: &mut Folder, found: &mut Changes, clock: &dyn Clock) {
        let mut disturbed = BTreeSet::new();
        for _ in 0..CONFIRMATIONS {
            if found.files.is_empty() {
                return;
            }
            let Ok(event) = tokio::time::timeout(CONFIRMED, self.next()).await else { return };
            let heard = self.gather(event).await;
            for event in heard.iter().flatten() {
                if event.mask.intersects(EventMask::MODIFY | EventMask::CREATE)
                    && let Some((directory, name)) = self.directories.get(&event.wd).zip(event.name.as_ref())
                {
                    let path = directory.join(name);
                    folder.take_back(found, &path);
                    disturbed.insert(path);
                }
            }
            let more = self.attend(folder, heard, clock.now());
            found.files.extend(more.files);
            found.folder = more.folder.or(found.folder.take());
        }
        for path in disturbed {
            folder.take_back(found, &path);
            folder.written(path, clock.now());
        }
    }

    /// Looks at what events speak of: single files where that is enough, else everything.
    fn attend(&mut self, folder: &mut Folder, heard: Vec<io::Result<EventOwned>>, now: Tick) -> Changes {
        let (mut everything, mut touched, mut named) = (false, BTreeSet::new(), BTreeSet::new());
        for event in heard {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    tracing::warn!(%error, "watching the folder failed; it is read every second instead");
                    self.events = None;
                    everything = true;
                    continue;
                }
            };
            if event.mask.contains(EventMask::IGNORED) {
                self.directories.remove(&event.wd);
                continue;
            }
            let directory = self.directories.get(&event.wd);
            let path = directory.zip(event.name.as_ref()).map(|(directory, name)| directory.join(name));
            let Some(path) = path else {
                everything = true;
                continue;
            };
            if event.mask.intersects(EventMask::MODIFY | EventMask::CLOSE_WRITE) && !folder.may_know(&path) {
                // An editor's own file.
                continue;
            }
            let made = event.mask.contains(EventMask::CREATE) && is_being_written(&path);
            if made || event.mask.contains(EventMask::MODIFY) {
                folder.written(path, now);
                continue;
            }
            folder.closed(&path);
            if event.mask.contains(EventMask::CLOSE_WRITE) && folder.knows(&path) {
                touched.insert(path);
            } else if event.mask.contains(EventMask::ISDIR) {
                everything = true;
            } else {
                named.insert(path);
            }
        }
        let mut changes = folder.refresh(&touched, now);
        for path in named {
            match folder.look_at(&path, now) {
                Some(more) => changes.files.extend(more.files),
                None => everything = true,
            }
        }
        if everything {
            let more = self.scan(folder, now);
            changes.files.extend(more.files);
            changes.folder = more.folder;
        }
        changes
    }

    /// Looks at everything, and watches what is new until nothing is.
    fn scan(&mut self, folder: &mut Folder, now: Tick) -> Changes {
        // The first look finds the directories; only what is seen after they are watched cannot change unheard.
        let mut changes = folder.scan(now);
        while self.watch(folder.directories()) {
            let more = folder.scan(now);
            changes.files.extend(more.files);
            changes.folder = more.folder.or(changes.folder);
        }
        changes
    }

    /// Watches these directories; says whether one of them was not watched before.
    fn watch(&mut self, directories: &BTreeSet<PathBuf>) -> bool {
        let Some(watches) = &mut self.watches else { return false };
        let watched: BTreeSet<&PathBuf> = self.directories.values().collect();
        let fresh: Vec<PathBuf> =
            directories.iter().filter(|directory| !watched.contains(directory)).cloned().collect();
        let mask = WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::ATTRIB
            | WatchMask::ONLYDIR;
        let mut new = false;
        for directory in fresh {
            match watches.add(&directory, mask) {
                Ok(descriptor) => {
                    new = true;
                    self.refused.remove(&directory);
                    self.directories.insert(descriptor, directory);
                }
                // It went while it was looked at; the event of its parent follows.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    if self.refused.insert(directory.clone()) {
                        tracing::warn!(%error, directory = %directory.display(), "a directory is not watched; it is read every second instead. Raise fs.inotify.max_user_watches");
                    }
                }
            }
        }
        new
    }
}

/// A file that was made just now is open for writing, unless it is a link or another name of an older file.
fn is_being_written(path: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.nlink() == 1)
}
