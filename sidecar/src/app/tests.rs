use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;

use meshwork_process::descriptors::raise_open_files;
use rustix::process::{Rlimit, getrlimit};

use super::*;

fn sh(script: &str) -> Spec {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    Spec {
        command: ["sh", "-c", script].map(OsString::from).to_vec(),
        address,
        outbound: "127.0.0.1:15001".parse().unwrap(),
    }
}

/// Whether a process is there and no zombie.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

async fn gone(pid: u32) {
    let gone = async {
        while is_alive(pid) {
            tokio::time::sleep(PROBE).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the process ends");
}

async fn written(path: &Path) -> String {
    let written = async {
        loop {
            match std::fs::read_to_string(path) {
                Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
                _ => tokio::time::sleep(PROBE).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), written).await.expect("the file is written")
}

#[tokio::test]
async fn the_applications_code_is_ours() {
    assert_eq!(App::start(&sh("exit 7")).unwrap().wait().await.unwrap().code(), 7);
    assert_eq!(App::start(&sh("kill -9 $$")).unwrap().wait().await.unwrap().code(), 137);
    assert_eq!(App::start(&sh("exit 3")).unwrap().accepts().await.unwrap().map(Exit::code), Some(3));
}

#[tokio::test]
async fn an_application_learns_its_port_and_where_to_call() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut spec = sh("");
    let script = format!("echo \"$PORT $HOST $MESHWORK_OUTBOUND $HTTP_PROXY $1\" > {}", out.display());
    spec.command = ["sh", "-c", &script, "sh", "--listen=:{port}"].map(OsString::from).to_vec();
    App::start(&spec).unwrap().wait().await.unwrap();
    let port = spec.address.port();
    let outbound = "http://127.0.0.1:15001";
    assert_eq!(written(&out).await, format!("{port} 127.0.0.1 {outbound} {outbound} --listen=:{port}"));
}

#[tokio::test]
async fn it_accepts_when_its_port_does() {
    let folder = tempfile::tempdir().unwrap();
    let spec = sh("exec sleep 1000");
    let mut app = App::start(&spec).unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(200), app.accepts()).await;
    assert!(waiting.is_err(), "nothing listens yet");
    let _listener = TcpListener::bind(spec.address).unwrap();
    assert_eq!(app.accepts().await.unwrap(), None);
    drop(folder);
}

#[tokio::test]
async fn a_stop_lets_it_finish_and_ends_it_when_it_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let ready = folder.path().join("ready");
    let trap = |what: &str| {
        format!("trap '{what}' TERM; echo ready > {}; while :; do sleep 0.05; done", ready.display())
    };
    let mut polite = App::start(&sh(&trap("exit 4"))).unwrap();
    written(&ready).await;
    assert_eq!(polite.stop(Signal::TERM, std::future::pending()).await.unwrap().code(), 4);
    std::fs::remove_file(&ready).unwrap();
    let mut deaf = App::start(&sh(&trap(":"))).unwrap();
    written(&ready).await;
    assert_eq!(deaf.stop(Signal::TERM, std::future::ready(())).await.unwrap().code(), 137);
}

#[tokio::test]
async fn what_it_started_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("pid");
    let script = format!("sleep 1000 & echo $! > {}; ", pid_file.display());
    let mut app = App::start(&sh(&format!("{script} exit 0"))).unwrap();
    let child: u32 = written(&pid_file).await.parse().unwrap();
    assert_eq!(app.wait().await.unwrap().code(), 0);
    gone(child).await;
    std::fs::remove_file(&pid_file).unwrap();
    let app = App::start(&sh(&format!("{script} wait"))).unwrap();
    let child: u32 = written(&pid_file).await.parse().unwrap();
    let pid = app.pid();
    drop(app);
    gone(pid).await;
    gone(child).await;
}

/// Not a test of its own: the process that the test below kills.
#[test]
#[ignore = "started by the test below"]
fn a_parent_to_be_killed() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut app = App::start(&sh("exec sleep 1000")).unwrap();
        // Past the test harness, which would keep what is printed.
        std::io::Write::write_all(&mut std::io::stderr(), format!("app {}\n", app.pid()).as_bytes()).unwrap();
        app.wait().await.unwrap();
    });
}

#[tokio::test]
async fn an_application_does_not_outlive_a_sidecar_that_is_killed() {
    let mut parent = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "app::tests::a_parent_to_be_killed",
            "--test-threads=1",
            "--nocapture",
        ])
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stderr.take().unwrap()).lines();
    let pid = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("app ")?.parse().ok());
    let pid = pid.expect("the parent says which process it started");
    assert!(is_alive(pid));
    parent.kill().unwrap();
    parent.wait().unwrap();
    gone(pid).await;
}

#[tokio::test]
async fn the_application_may_open_as_many_files_as_before_the_sidecar_took_more() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let soft = maximum.map_or(4096, |most| most - 1);
    setrlimit(Resource::Nofile, Rlimit { current: Some(soft), maximum }).unwrap();
    raise_open_files();
    assert_eq!(getrlimit(Resource::Nofile).current, maximum);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("limit");
    let mut app = App::start(&sh(&format!("ulimit -Sn > {}", path.display()))).unwrap();
    assert_eq!(written(&path).await, soft.to_string());
    app.wait().await.unwrap();
}
