use super::*;
use meshwork_base::SystemClock;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use tokio::sync::mpsc;

const AT: fn(u64) -> Tick = |ms| Tick::ZERO.after(Duration::from_millis(ms));

struct Sandbox {
    root: tempfile::TempDir,
}

impl Sandbox {
    fn new(files: &[(&str, &str)]) -> Self {
        let sandbox = Self { root: tempfile::tempdir().unwrap() };
        for (name, text) in files {
            sandbox.write(name, text);
        }
        sandbox
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Another content of the same length may come within the clock's grain; a new inode is always another file.
    fn replace(&self, name: &str, text: &str) {
        self.write(".beside", text);
        fs::rename(self.path(".beside"), self.path(name)).unwrap();
    }

    fn folder(&self) -> Folder {
        Folder::open(self.root.path()).unwrap()
    }
}

fn told(changes: &Changes) -> Vec<(String, String)> {
    let tell = |(name, change): (&FileName, &FileChange)| {
        let change = match change {
            FileChange::Content(bytes) => String::from_utf8(bytes.clone()).unwrap(),
            FileChange::Unreadable(_) => "unreadable".to_owned(),
            FileChange::Gone => "gone".to_owned(),
        };
        (name.to_string(), change)
    };
    changes.files.iter().map(tell).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|&(name, change)| (name.to_owned(), change.to_owned())).collect()
}

#[test]
fn reads_resource_files_at_every_depth_and_no_others() {
    let sandbox = Sandbox::new(&[
        ("b.yml", "b"),
        ("deep/er/a.yaml", "a"),
        ("c.json", "c"),
        ("README.md", "no"),
        ("d.yaml~", "no"),
        (".hidden.yaml", "no"),
        (".git/e.yaml", "no"),
    ]);
    let mut folder = sandbox.folder();
    let first = folder.scan(AT(0));
    assert_eq!(told(&first), pairs(&[("b.yml", "b"), ("c.json", "c"), ("deep/er/a.yaml", "a")]));
    assert!(folder.scan(AT(1)).is_empty());
    sandbox.replace("b.yml", "b");
    assert!(folder.scan(AT(2)).is_empty(), "another file with the same content is no change");
}

#[test]
fn a_mounted_config_map_changes_at_once_and_is_never_gone() {
    let sandbox = Sandbox::new(&[("..one/a.yaml", "a1"), ("..one/b.yaml", "b1"), ("..two/a.yaml", "a2")]);
    sandbox.write("..two/b.yaml", "b1");
    symlink("..one", sandbox.path("..data")).unwrap();
    symlink("..data/a.yaml", sandbox.path("a.yaml")).unwrap();
    symlink("..data/b.yaml", sandbox.path("b.yaml")).unwrap();
    let mut folder = sandbox.folder();
    assert_eq!(told(&folder.scan(AT(0))), pairs(&[("a.yaml", "a1"), ("b.yaml", "b1")]));
    symlink("..two", sandbox.path("..data_tmp")).unwrap();
    fs::rename(sandbox.path("..data_tmp"), sandbox.path("..data")).unwrap();
    fs::remove_dir_all(sandbox.path("..one")).unwrap();
    assert_eq!(told(&folder.scan(AT(1))), pairs(&[("a.yaml", "a2")]));
    assert!(folder.scan(AT(10_000)).is_empty());
}

#[test]
fn a_missing_file_is_gone_when_it_stays_away() {
    let sandbox = Sandbox::new(&[("a.yaml", "a"), ("b.yaml", "b")]);
    let mut folder = sandbox.folder();
    folder.scan(AT(0));
    fs::remove_file(sandbox.path("a.yaml")).unwrap();
    assert!(folder.scan(AT(10)).is_empty());
    sandbox.write("a.yaml", "a");
    assert!(folder.scan(AT(200)).is_empty(), "it came back as it was");
    fs::remove_file(sandbox.path("a.yaml")).unwrap();
    assert!(folder.scan(AT(300)).is_empty());
    assert_eq!(folder.recheck(), Some(AT(400)));
    assert_eq!(told(&folder.scan(AT(400))), pairs(&[("a.yaml", "gone")]));
    assert_eq!((folder.recheck(), folder.scan(AT(600)).is_empty()), (None, true));
}

#[test]
fn a_file_that_is_being_written_keeps_its_content() {
    let sandbox = Sandbox::new(&[("a.yaml", "old")]);
    let mut folder = sandbox.folder();
    folder.scan(AT(0));
    let real = fs::canonicalize(sandbox.path("a.yaml")).unwrap();
    sandbox.write("a.yaml", "");
    sandbox.write("new.yaml", "ne");
    folder.written(real.clone(), AT(10));
    folder.written(fs::canonicalize(sandbox.path("new.yaml")).unwrap(), AT(10));
    assert!(folder.scan(AT(20)).is_empty());
    sandbox.write("a.yaml", "newer");
    folder.closed(&real);
    let touched = BTreeSet::from([real]);
    assert_eq!(told(&folder.refresh(&touched, AT(30))), pairs(&[("a.yaml", "newer")]));
    let late = folder.recheck().unwrap();
    assert_eq!(
        told(&folder.scan(late)),
        pairs(&[("new.yaml", "ne")]),
        "a writer that never closes is not waited for"
    );
}

#[test]
fn what_cannot_be_read_is_told_once_and_stays() {
    let sandbox = Sandbox::new(&[("a.yaml", "a")]);
    let mut folder = sandbox.folder();
    folder.scan(AT(0));
    fs::remove_file(sandbox.path("a.yaml")).unwrap();
    symlink("nowhere", sandbox.path("a.yaml")).unwrap();
    assert_eq!(told(&folder.scan(AT(1))), pairs(&[("a.yaml", "unreadable")]));
    assert!(folder.scan(AT(1000)).is_empty());
    sandbox.write("nowhere", "b");
    assert_eq!(told(&folder.scan(AT(2000))), pairs(&[("a.yaml", "b")]));
}

#[test]
fn a_link_that_leads_nowhere_adds_no_second_name_of_its_directory_to_watch() {
    let sandbox = Sandbox::new(&[("real/a.yaml", "a")]);
    symlink("real", sandbox.path("link")).unwrap();
    symlink("nowhere", sandbox.path("real/b.yaml")).unwrap();
    let mut folder = Folder::open(sandbox.path("link")).unwrap();
    assert_eq!(told(&folder.scan(AT(0))), pairs(&[("a.yaml", "a"), ("b.yaml", "unreadable")]));
    let real = fs::canonicalize(sandbox.path("real")).unwrap();
    assert_eq!(folder.directories().iter().collect::<Vec<_>>(), [&real]);
}

#[test]
fn a_folder_that_goes_away_takes_nothing_with_it() {
    let sandbox = Sandbox::new(&[("folder/a.yaml", "a")]);
    let mut folder = Folder::open(sandbox.path("folder")).unwrap();
    folder.scan(AT(0));
    fs::rename(sandbox.path("folder"), sandbox.path("elsewhere")).unwrap();
    let away = folder.scan(AT(1000));
    assert!(
        away.files.is_empty() && matches!(&away.folder, Some(Err(why)) if why.contains("cannot be listed")),
        "{away:?}"
    );
    assert!(folder.scan(AT(2000)).is_empty() && !folder.is_readable());
    fs::rename(sandbox.path("elsewhere"), sandbox.path("folder")).unwrap();
    let back = folder.scan(AT(3000));
    assert_eq!(back, Changes { folder: Some(Ok(())), ..Changes::default() });
    let error = Folder::open(sandbox.path("nothing")).unwrap_err().to_string();
    assert!(error.contains("nothing") && error.contains("name a folder"), "{error}");
}

#[test]
fn what_lay_below_a_link_that_leads_nowhere_now_is_not_gone() {
    let sandbox = Sandbox::new(&[("folder/a.yaml", "a"), ("mount/b.yaml", "b"), ("folder/c.yaml", "c")]);
    symlink("../mount", sandbox.path("folder/policies")).unwrap();
    symlink("nowhere", sandbox.path("folder/other")).unwrap();
    // A file that is reached by a link makes it look at everything each time.
    symlink("a.yaml", sandbox.path("folder/d.yaml")).unwrap();
    let mut folder = Folder::open(sandbox.path("folder")).unwrap();
    let all = pairs(&[("a.yaml", "a"), ("c.yaml", "c"), ("d.yaml", "a"), ("policies/b.yaml", "b")]);
    assert_eq!(told(&folder.scan(AT(0))), all, "a link that never led anywhere does not matter");
    fs::remove_file(sandbox.path("folder/c.yaml")).unwrap();
    assert!(folder.scan(AT(950)).is_empty());
    fs::rename(sandbox.path("mount"), sandbox.path("unmounted")).unwrap();
    let away = folder.scan(AT(1000));
    let why = "the link policies, below which there were files, leads nowhere (No such file";
    assert!(
        away.files.is_empty() && matches!(&away.folder, Some(Err(told)) if told.contains(why)),
        "{away:?}"
    );
    assert!(folder.scan(AT(2000)).is_empty() && !folder.is_readable());
    assert_eq!(folder.recheck(), None, "and it is not looked at without a pause");

    // It is not gone either for who begins anew and knows of it.
    let mut again = Folder::open(sandbox.path("folder")).unwrap();
    again.expect([FileName::from("policies/b.yaml")].iter());
    let first = again.scan(AT(0));
    assert!(first.files.is_empty() && matches!(&first.folder, Some(Err(told)) if told.contains(why)));
    fs::rename(sandbox.path("unmounted"), sandbox.path("mount")).unwrap();
    assert_eq!(folder.scan(AT(3000)), Changes { folder: Some(Ok(())), ..Changes::default() });
    let all = pairs(&[("a.yaml", "a"), ("d.yaml", "a"), ("policies/b.yaml", "b")]);
    assert_eq!(told(&again.scan(AT(1))), all);

    fs::remove_file(sandbox.path("folder/policies")).unwrap();
    again.scan(AT(100));
    assert_eq!(told(&again.scan(AT(200))), pairs(&[("policies/b.yaml", "gone")]), "without the link it is");
}

#[test]
fn links_in_a_circle_end() {
    let sandbox = Sandbox::new(&[("sub/a.yaml", "a")]);
    symlink("..", sandbox.path("sub/up")).unwrap();
    let mut folder = sandbox.folder();
    assert_eq!(told(&folder.scan(AT(0))), pairs(&[("sub/a.yaml", "a")]));
}

#[test]
fn names_are_below_the_folder_or_as_the_user_wrote_them() {
    let sandbox = Sandbox::new(&[("sub/a.yaml", "a")]);
    let name = |folder: Result<Folder, FolderError>| {
        folder.unwrap().scan(AT(0)).files.into_keys().next().unwrap().to_string()
    };
    assert_eq!(name(Folder::open(sandbox.root.path())), "sub/a.yaml");
    let path = sandbox.path("sub/a.yaml");
    assert_eq!(name(Folder::open(&path)), "a.yaml");
    assert_eq!(name(Folder::open_by_path(&path)), path.to_string_lossy());
    assert_eq!(name(Folder::open_by_path(sandbox.path("sub/"))), path.to_string_lossy());
}

/// Waits for what the watched folder says next.
async fn next(changes: &mut mpsc::Receiver<Changes>) -> Vec<(String, String)> {
    let next = tokio::time::timeout(Duration::from_secs(20), changes.recv()).await;
    told(&next.expect("an edit is seen").expect("the watcher lives"))
}

#[tokio::test]
async fn sees_edits_of_every_kind_as_they_happen() {
    let sandbox = Sandbox::new(&[("a.yaml", "a1"), ("sub/b.yaml", "b1")]);
    let (tx, mut changes) = mpsc::channel(8);
    let clock = Arc::new(SystemClock::new());
    let watcher = tokio::spawn(follow(sandbox.folder(), clock, tx));
    assert_eq!(next(&mut changes).await, pairs(&[("a.yaml", "a1"), ("sub/b.yaml", "b1")]));
    sandbox.write("a.yaml", "a2");
    assert_eq!(next(&mut changes).await, pairs(&[("a.yaml", "a2")]), "written in place");
    sandbox.replace("sub/b.yaml", "b2");
    assert_eq!(next(&mut changes).await, pairs(&[("sub/b.yaml", "b2")]), "renamed over");
    sandbox.write("new/er/c.yaml", "c1");
    assert_eq!(next(&mut changes).await, pairs(&[("new/er/c.yaml", "c1")]), "in a new directory");
    sandbox.write("new/er/c.yaml", "c2");
    assert_eq!(next(&mut changes).await, pairs(&[("new/er/c.yaml", "c2")]), "which is watched too");
    fs::remove_dir_all(sandbox.path("new")).unwrap();
    assert_eq!(next(&mut changes).await, pairs(&[("new/er/c.yaml", "gone")]));
    sandbox.write("elsewhere/d", "d1");
    symlink("elsewhere/d", sandbox.path("d.yaml")).unwrap();
    assert_eq!(next(&mut changes).await, pairs(&[("d.yaml", "d1")]));
    sandbox.write("elsewhere/d", "d2");
    assert_eq!(next(&mut changes).await, pairs(&[("d.yaml", "d2")]), "through a link");
    drop(changes);
    watcher.await.unwrap();
}

#[tokio::test]
async fn a_slow_writer_is_read_when_it_is_done() {
    use std::io::Write as _;
    let sandbox = Sandbox::new(&[("a.yaml", "old"), ("b.yaml", "b1")]);
    let (tx, mut changes) = mpsc::channel(8);
    tokio::spawn(follow(sandbox.folder(), Arc::new(SystemClock::new()), tx));
    next(&mut changes).await;
    let mut writer = fs::File::create(sandbox.path("a.yaml")).unwrap();
    writer.write_all(b"half").unwrap();
    sandbox.replace("b.yaml", "b2");
    assert_eq!(next(&mut changes).await, pairs(&[("b.yaml", "b2")]), "the half-written file is left alone");
    writer.write_all(b" and whole").unwrap();
    drop(writer);
    assert_eq!(next(&mut changes).await, pairs(&[("a.yaml", "half and whole")]));
}

/// Makes a pipe, which whoever reads waits at until somebody has written to it.
fn pipe(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[tokio::test]
async fn what_is_no_file_holds_up_nothing_and_is_told() {
    let sandbox = Sandbox::new(&[("b.yaml", "b1")]);
    pipe(&sandbox.path("a.yaml"));
    let socket = std::os::unix::net::UnixListener::bind(sandbox.path("s.yaml")).unwrap();
    let (tx, mut changes) = mpsc::channel(8);
    tokio::spawn(follow(sandbox.folder(), Arc::new(SystemClock::new()), tx));
    let told = [("a.yaml", "unreadable"), ("b.yaml", "b1"), ("s.yaml", "unreadable")];
    assert_eq!(next(&mut changes).await, pairs(&told));
    sandbox.replace("b.yaml", "b2");
    assert_eq!(next(&mut changes).await, pairs(&[("b.yaml", "b2")]));
    drop(socket);
}

#[test]
fn a_pipe_that_is_named_is_read() {
    use std::io::Write as _;
    let sandbox = Sandbox::new(&[]);
    let path = sandbox.path("a.yaml");
    pipe(&path);
    let writer = std::thread::spawn({
        let path = path.clone();
        move || fs::OpenOptions::new().write(true).open(path).unwrap().write_all(b"a1").unwrap()
    });
    let mut folder = Folder::open(path).unwrap();
    let found = folder.scan(Tick::ZERO).files.into_values().next();
    assert!(matches!(found, Some(FileChange::Content(bytes)) if bytes == b"a1"));
    writer.join().unwrap();
}

#[tokio::test]
async fn what_is_being_written_at_the_first_look_is_told_as_such_and_read_when_it_is_done() {
    use std::io::Write as _;
    let sandbox = Sandbox::new(&[("a.yaml", "old"), (".regular", "z")]);
    // The first look is over before directories are watched, the second one after; each waits at a pipe.
    let [pipe_1, pipe_2, z] = [".1", ".2", "z.yaml"].map(|name| sandbox.path(name));
    pipe(&pipe_1);
    pipe(&pipe_2);
    fs::hard_link(&pipe_1, &z).unwrap();
    let (regular, a) = (sandbox.path(".regular"), sandbox.path("a.yaml"));
    let writing = std::thread::spawn(move || {
        let open = |path| fs::OpenOptions::new().write(true).open(path).unwrap();
        let first = open(&pipe_1);
        fs::rename(&pipe_2, &z).unwrap();
        drop(first);
        let second = open(&z);
        let mut writer = fs::File::create(a).unwrap();
        writer.write_all(b"half").unwrap();
        fs::rename(regular, &z).unwrap();
        drop(second);
        writer
    });
    let (tx, mut changes) = mpsc::channel(8);
    let folder = Folder { read, ..sandbox.folder() };
    tokio::spawn(follow(folder, Arc::new(SystemClock::new()), tx));
    let first = next(&mut changes).await;
    assert_eq!(first, pairs(&[("a.yaml", "unreadable"), ("z.yaml", "z")]), "it is not missing");
    let mut writer = writing.join().unwrap();
    writer.write_all(b" and whole").unwrap();
    drop(writer);
    assert_eq!(next(&mut changes).await, pairs(&[("a.yaml", "half and whole")]));
}
