use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::*;

fn service(name: &str, port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  ports: [{{port: {port}}}]\n---\n"
    )
}

fn content(text: &str) -> FileChange {
    FileChange::Content(text.as_bytes().to_vec())
}

/// One process: what it keeps, and its objects.
struct Process {
    kept: Kept,
    objects: Objects,
}

impl Process {
    /// Starts with a folder of these files.
    fn start(disk: &Path, files: &[(&str, FileChange)]) -> Self {
        Self::start_at(disk, Path::new("/folder"), files)
    }

    fn start_at(disk: &Path, root: &Path, files: &[(&str, FileChange)]) -> Self {
        let mut process = Self { kept: Kept::open(Some(disk), root), objects: Objects::default() };
        process.take(files);
        process
    }

    fn take(&mut self, files: &[(&str, FileChange)]) {
        let files = files.iter().map(|(name, change)| ((*name).into(), change.clone())).collect();
        self.kept.take(&mut self.objects, 0, Changes { files, folder: None });
    }

    /// It serves.
    fn serving(mut self) -> Self {
        self.objects.all();
        if let Some(unsynced) = self.kept.write() {
            unsynced.sync();
        }
        self
    }

    fn lacking(&self) -> Vec<String> {
        self.kept.lacking(&self.objects, 0)
    }

    /// The services in force, with the port that each has.
    fn ports(&mut self) -> BTreeMap<String, u16> {
        let port = |object: &Arc<meshwork_resources::Object>| match &object.kind {
            meshwork_resources::Kind::Service(service) => service.ports[0].port,
            _ => 0,
        };
        self.objects.all().values().map(|object| (object.meta.name.to_string(), port(object))).collect()
    }
}

fn ports(of: &[(&str, u16)]) -> BTreeMap<String, u16> {
    of.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect()
}

#[test]
fn a_restart_leaves_in_force_what_was_though_its_text_is_wrong_now() {
    let disk = tempfile::tempdir().unwrap();
    let both = format!("{}{}", service("a", "80"), service("b", "80"));
    let mut first = Process::start(disk.path(), &[("f.yaml", content(&both))]).serving();
    // One object after another turns bad; each is in force as it was good last.
    first.take(&[("f.yaml", content(&format!("{}{}", service("a", "81"), service("b", "eighty"))))]);
    first = first.serving();
    let worse = format!("{}{}", service("a", "eighty"), service("b", "eighty"));
    first.take(&[("f.yaml", content(&worse))]);
    let mut first = first.serving();
    assert_eq!(first.ports(), ports(&[("a", 81), ("b", 80)]));
    for now in [content(&worse), content("apiVersion: ["), FileChange::Unreadable("no".into())] {
        let mut second = Process::start(disk.path(), &[("f.yaml", now)]);
        assert_eq!(second.ports(), ports(&[("a", 81), ("b", 80)]));
        assert_eq!(second.lacking(), Vec::<String>::new());
    }
}

#[test]
fn what_is_refused_without_a_good_version_is_lacking_at_the_start() {
    let disk = tempfile::tempdir().unwrap();
    let bad = service("a", "eighty");
    let unreadable = FileChange::Unreadable("f.yaml cannot be read".into());
    for (now, words) in [
        (content(&bad), "Service default/a is refused: f.yaml:5:"),
        (content("apiVersion: ["), "f.yaml:1:"),
        (content("apiVersion: v1\nkind: List\nitmes: []"), "items"),
        (FileChange::Content(vec![0xff]), "is not UTF-8"),
        (unreadable, "f.yaml cannot be read"),
    ] {
        let process = Process::start(disk.path(), &[("f.yaml", now)]);
        let [told] = &process.lacking()[..] else { panic!("{words}: {:?}", process.lacking()) };
        assert!(told.contains(words), "{told}");
    }
    let mut process = Process::start(disk.path(), &[("f.yaml", content(&bad))]);
    process.take(&[("f.yaml", content(&service("a", "80")))]);
    assert_eq!(process.lacking(), Vec::<String>::new(), "it is mended");
}

#[test]
fn what_was_borne_while_it_served_does_not_hold_up_a_restart_and_another_text_does() {
    let disk = tempfile::tempdir().unwrap();
    let good = service("a", "80");
    let mut first = Process::start(disk.path(), &[("f.yaml", content(&good))]).serving();
    let bad = format!("{good}{}", service("b", "eighty"));
    first.take(&[("f.yaml", content(&bad))]);
    drop(first.serving());
    let mut second = Process::start(disk.path(), &[("f.yaml", content(&bad))]);
    assert_eq!((second.lacking(), second.ports()), (Vec::new(), ports(&[("a", 80)])));
    let worse = format!("{good}{}", service("c", "eighty"));
    let edited = Process::start(disk.path(), &[("f.yaml", content(&worse))]);
    assert!(edited.lacking()[0].starts_with("Service default/c is refused"), "{:?}", edited.lacking());
    // What never served leaves nothing behind.
    let again = Process::start(disk.path(), &[("f.yaml", content(&worse))]);
    assert_eq!(again.lacking().len(), 1);
}

#[test]
fn one_object_that_has_stayed_stands_for_one_refused_text_that_does_not_say_whom_it_is_about() {
    let disk = tempfile::tempdir().unwrap();
    let both = format!("{}{}", service("a", "80"), service("b", "80"));
    drop(Process::start(disk.path(), &[("f.yaml", content(&both))]).serving());
    let (a, bad_a, nameless) = (service("a", "80"), service("a", "eighty"), "kind: Servise\n---\n");
    for (now, lacking) in [
        // It is the text of `b`, as far as anybody can tell.
        (format!("{a}{nameless}"), 0),
        (format!("{bad_a}{nameless}"), 0),
        (format!("{nameless}{nameless}"), 0),
        // `b` is all that it may be.
        (format!("{bad_a}{nameless}{nameless}"), 2),
        // That `a` and `b` have stayed is told by themselves.
        (format!("{bad_a}{}{nameless}", service("b", "eighty")), 1),
        (format!("{bad_a}{}{nameless}", service("b", "81")), 1),
        (format!("{both}{nameless}"), 1),
    ] {
        let mut process = Process::start(disk.path(), &[("f.yaml", content(&now))]);
        assert_eq!(process.ports().len(), 2, "{now}");
        let told = process.lacking();
        assert_eq!(told.len(), lacking, "{now}: {told:?}");
        assert!(told.iter().all(|told| told.contains("Servise") || told.contains("apiVersion")), "{told:?}");
    }
}

#[test]
fn a_file_that_is_empty_at_the_start_keeps_what_it_had_until_something_is_in_it() {
    let disk = tempfile::tempdir().unwrap();
    let both = format!("{}{}", service("a", "80"), service("b", "80"));
    let files = [("f.yaml", content(&both)), ("g.yaml", content(""))];
    drop(Process::start(disk.path(), &files).serving());
    for _ in 0..2 {
        let empty = [("f.yaml", content("")), ("g.yaml", content(""))];
        let mut process = Process::start(disk.path(), &empty).serving();
        assert_eq!((process.ports(), process.lacking().len()), (ports(&[("a", 80), ("b", 80)]), 0));
        let [told] = &process.objects.diagnostics()[..] else { panic!("g.yaml had nothing") };
        assert!(told.message.contains("f.yaml is empty, and had 2 objects when"), "{told}");
    }
    let meant = [("f.yaml", content("# Nothing any more.\n"))];
    assert_eq!(Process::start(disk.path(), &meant).ports(), ports(&[]));
}

#[test]
fn a_file_that_is_emptied_while_it_runs_keeps_what_it_had_until_something_is_in_it_or_it_is_removed() {
    let disk = tempfile::tempdir().unwrap();
    let files = [("f.yaml", content(&service("a", "80"))), ("g.yaml", content(&service("b", "80")))];
    let mut process = Process::start(disk.path(), &files).serving();
    for _ in 0..2 {
        process.take(&[("f.yaml", content(""))]);
        assert_eq!(process.ports(), ports(&[("a", 80), ("b", 80)]));
        let [told] = &process.objects.diagnostics()[..] else { panic!("it is told once") };
        assert!(told.message.contains("f.yaml is empty, and had 1 object;"), "{told}");
    }
    // Over a restart too, as it is.
    let mut process = Process::start(disk.path(), &[("f.yaml", content("")), files[1].clone()]).serving();
    assert_eq!((process.ports(), process.lacking().len()), (ports(&[("a", 80), ("b", 80)]), 0));
    process.take(&[("f.yaml", content(&service("a", "81")))]);
    assert_eq!((process.ports(), process.objects.diagnostics().len()), (ports(&[("a", 81), ("b", 80)]), 0));
    process.take(&[("f.yaml", content("")), ("g.yaml", content("# Nothing any more.\n"))]);
    assert_eq!(process.ports(), ports(&[("a", 81)]), "a comment says that it is meant");
    process.take(&[("f.yaml", FileChange::Gone)]);
    assert_eq!((process.ports(), process.objects.diagnostics().len()), (ports(&[]), 0));
}

#[test]
fn what_was_removed_meanwhile_is_gone_and_a_folder_that_cannot_be_listed_loses_nothing() {
    let disk = tempfile::tempdir().unwrap();
    let files = [("f.yaml", content(&service("a", "80"))), ("g.yaml", content(&service("b", "80")))];
    drop(Process::start(disk.path(), &files).serving());
    let mut blind = Process::start(disk.path(), &[]);
    // As the first look: nothing was found since nothing could be listed.
    blind.kept = Kept::open(Some(disk.path()), Path::new("/folder"));
    let away = Changes { files: BTreeMap::new(), folder: Some(Err("no".into())) };
    blind.kept.take(&mut blind.objects, 0, away);
    assert_eq!((blind.ports(), blind.kept.is_blind()), (ports(&[("a", 80), ("b", 80)]), false));
    blind.take(&files[..1]);
    assert_eq!(blind.ports(), ports(&[("a", 80)]), "it can be listed again, and one file is gone");
    drop(blind.serving());
    let mut later = Process::start(disk.path(), &[("g.yaml", content("apiVersion: ["))]);
    assert_eq!((later.ports(), later.lacking().len()), (ports(&[]), 1), "it is not known any more");
    let nowhere = Kept::open(None, Path::new("/folder"));
    assert!(nowhere.is_blind());
}

#[test]
fn a_damaged_record_is_none_and_a_folder_that_cannot_be_written_does_not_matter() {
    let disk = tempfile::tempdir().unwrap();
    drop(Process::start(disk.path(), &[("f.yaml", content(&service("a", "80")))]).serving());
    let directory = fs::read_dir(disk.path()).unwrap().next().unwrap().unwrap().path();
    let record = fs::read_dir(directory).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&record).unwrap();
    for damaged in [&whole[..whole.len() / 2], b"", b"\n", &[0xff]] {
        fs::write(&record, damaged).unwrap();
        let mut process = Process::start(disk.path(), &[("f.yaml", content("apiVersion: ["))]);
        assert_eq!((process.ports(), process.lacking().len()), (ports(&[]), 1));
    }
    let file = disk.path().join("file");
    fs::write(&file, "").unwrap();
    let mut process = Process::start(&file, &[("f.yaml", content(&service("a", "80")))]).serving();
    assert_eq!(process.ports(), ports(&[("a", 80)]));
    fs::remove_file(&file).unwrap();
    process.take(&[("g.yaml", content(&service("b", "80")))]);
    drop(process.serving());
    let all = [("f.yaml", content("apiVersion: [")), ("g.yaml", content("apiVersion: ["))];
    let mut later = Process::start(&file, &all);
    assert_eq!(later.ports(), ports(&[("a", 80), ("b", 80)]), "it could be written later");
}

#[test]
fn a_folder_that_is_a_link_is_the_same_one_wherever_it_leads() {
    let [disk, releases] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let current = releases.path().join("current");
    let lead = |to: &str| {
        fs::create_dir(releases.path().join(to)).unwrap();
        // As `ln -sfn` does it.
        drop(fs::remove_file(&current));
        std::os::unix::fs::symlink(to, &current).unwrap();
    };
    lead("1");
    drop(Process::start_at(disk.path(), &current, &[("f.yaml", content(&service("a", "80")))]).serving());
    lead("2");
    for root in [current.clone(), current.join(""), releases.path().join("./current")] {
        let mut next = Process::start_at(disk.path(), &root, &[("f.yaml", content("apiVersion: ["))]);
        assert_eq!((next.ports(), next.lacking().len()), (ports(&[("a", 80)]), 0), "{}", root.display());
    }
    let other =
        Process::start_at(disk.path(), &releases.path().join("2"), &[("f.yaml", content("apiVersion: ["))]);
    assert_eq!(other.lacking().len(), 1, "what leads to the same folder is another one");
}

/// Where the record of a file is.
fn record_of(disk: &Path, name: &str) -> PathBuf {
    let directory = fs::read_dir(disk).unwrap().next().unwrap().unwrap().path();
    directory.join(ContentHash::of(name.as_bytes()).to_string())
}

#[test]
fn a_record_that_cannot_be_replaced_is_none_and_keeps_no_other_from_being_written() {
    let disk = tempfile::tempdir().unwrap();
    let files = |port| ["f.yaml", "g.yaml", "h.yaml"].map(|name| (name, content(&service(&name[..1], port))));
    let first = Process::start(disk.path(), &files("80")).serving();
    // Nothing can be written for two of them.
    let blocked = ["f.yaml", "g.yaml"]
        .map(|name| record_of(disk.path(), name).with_extension(format!("{}.new", std::process::id())));
    blocked.iter().for_each(|path| fs::create_dir(path).unwrap());
    let mut first = first;
    first.take(&files("81"));
    let mut first = first.serving();
    let torn = ["f.yaml", "g.yaml", "h.yaml"].map(|name| (name, content("apiVersion: [")));
    let mut second = Process::start(disk.path(), &torn);
    assert_eq!((second.ports(), second.lacking().len()), (ports(&[("h", 81)]), 2));
    // With the next change that is tried again.
    blocked.iter().for_each(|path| fs::remove_dir(path).unwrap());
    first.take(&[("i.yaml", content(&service("i", "81")))]);
    drop(first.serving());
    let mut third = Process::start(disk.path(), &torn);
    assert_eq!((third.ports(), third.lacking().len()), (ports(&[("f", 81), ("g", 81), ("h", 81)]), 0));
}

#[test]
fn what_a_crash_has_left_beside_a_record_is_removed_and_what_another_process_is_writing_is_not() {
    let disk = tempfile::tempdir().unwrap();
    let files = [("f.yaml", content(&service("a", "80")))];
    drop(Process::start(disk.path(), &files).serving());
    let record = record_of(disk.path(), "f.yaml");
    // There is no process with the first number, and always one with the last.
    let [gone, ours, others] = [u32::MAX, std::process::id(), 1].map(|pid| {
        let path = record.with_extension(format!("{pid}.new"));
        fs::write(&path, "a key").unwrap();
        path
    });
    drop(Process::start(disk.path(), &files));
    assert_eq!([&gone, &ours, &others, &record].map(|path| path.exists()), [false, false, true, true]);
}

#[test]
fn records_are_for_their_owner_alone_and_written_when_something_has_changed() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let disk = tempfile::tempdir().unwrap();
    let files = [("f.yaml", content(&service("a", "80")))];
    drop(Process::start(disk.path(), &files).serving());
    let directory = fs::read_dir(disk.path()).unwrap().next().unwrap().unwrap().path();
    let record = fs::read_dir(&directory).unwrap().next().unwrap().unwrap().path();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&record)), (0o700, 0o600));
    let inode = || fs::metadata(&record).unwrap().ino();
    let before = inode();
    drop(Process::start(disk.path(), &files).serving());
    assert_eq!(inode(), before);
    drop(Process::start(disk.path(), &[]).serving());
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
}
