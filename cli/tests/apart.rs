//! Registry, config service and control plane as three processes: a mesh works with them, each may go and come back.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use meshwork_base::{Clock as _, ManualClock, SpiffeId, SystemClock, TrustDomain};
use meshwork_identity::{Authority, Bundle, DEFAULT_SVID_TTL, PendingSvid, SvidStore};
use parking_lot::Mutex;
use serde_json::Value;
use support::platform::{Spawned, assert_ok, base, next, signal};
use support::unread::{file, unread};
use support::yaml::{EDGE, route};
use support::{command, get, until};
use tempfile::TempDir;

/// Five processes, each with a folder of its own, as on five machines; they know each other by address.
struct Apart {
    base: Ipv4Addr,
    data: TempDir,
    /// Where all of them say what they have to say, in place of files.
    log: Option<File>,
}

impl Apart {
    /// Nothing runs yet; the folder of resources leads from the edge to `web`.
    fn new() -> Self {
        let apart = Self { base: base(), data: tempfile::tempdir().unwrap(), log: None };
        let resources = apart.data.path().join("resources");
        std::fs::create_dir(&resources).unwrap();
        let text = [EDGE, &route("web", "  - backendRefs: [{name: web, port: 80}]")].concat();
        std::fs::write(resources.join("all.yaml"), text).unwrap();
        apart
    }

    fn at(&self, port: u16) -> SocketAddr {
        (self.base, port).into()
    }

    fn spawn(&self, role: &str, arguments: &[&str], app: &[&str]) -> Spawned {
        let mut command = command(arguments);
        command.args(["--workers", "1", "--data-dir"]).arg(self.data.path().join(role));
        if !app.is_empty() {
            command.arg("--").args(app);
        }
        let log = self.data.path().join(format!("{role}.log"));
        let file = || File::options().create(true).append(true).open(log).unwrap();
        let log = self.log.as_ref().map_or_else(file, |log| log.try_clone().unwrap());
        Spawned::logging(&mut command, log)
    }

    fn config(&self) -> Spawned {
        let base = self.base.to_string();
        self.spawn("config", &["config", "--listen-address", &base], &[])
    }

    fn control_plane(&self) -> Spawned {
        let (base, registry) = (self.base.to_string(), format!("http://{}", self.at(8500)));
        let config = format!("http://{}", self.at(8888));
        let resources = self.data.path().join("resources");
        let follows = [
            "--registry-url",
            &registry,
            "--config-url",
            &config,
            "--resources",
            resources.to_str().unwrap(),
        ];
        self.spawn("plane", &[&["control-plane", "--listen-address", &base][..], &follows].concat(), &[])
    }

    /// Registry, config service and control plane in one process.
    fn all_in_one(&self) -> Spawned {
        let (base, resources) = (self.base.to_string(), self.data.path().join("resources"));
        let arguments = ["server", "--listen-address", &base, "--resources", resources.to_str().unwrap()];
        self.spawn("server", &arguments, &[])
    }

    fn registry(&self) -> Spawned {
        self.registry_of(&self.server())
    }

    /// With whom it asks for a token.
    fn registry_of(&self, server: &str) -> Spawned {
        let (base, plane) = (self.base.to_string(), self.at(15012).to_string());
        let arguments =
            ["registry", "--listen-address", &base, "--control-plane", &plane, "--server", server];
        self.spawn("registry", &arguments, &[])
    }

    fn gateway(&self) -> Spawned {
        let (base, plane) = (self.base.to_string(), self.at(15012).to_string());
        let server = self.server();
        let arguments =
            ["gateway", "--listen-address", &base, "--control-plane", &plane, "--server", &server];
        self.spawn("gateway", &arguments, &[])
    }

    fn web(&self, number: u32, python: &Path) -> Spawned {
        self.web_of(number, python, 8501, &self.server())
    }

    /// With its registry at a port, and whom it asks for a token.
    fn web_of(&self, number: u32, python: &Path, registry: u16, server: &str) -> Spawned {
        self.web_by(number, python, [self.at(15012), self.at(registry)], server)
    }

    /// With its control plane and registry at these addresses.
    fn web_by(&self, number: u32, python: &Path, peers: [SocketAddr; 2], server: &str) -> Spawned {
        self.instance(("web", &format!("web-{number}")), (number, python), peers, server)
    }

    /// A process with a folder, and its name.
    fn instance(
        &self,
        (role, name): (&str, &str),
        (number, python): (u32, &Path),
        peers: [SocketAddr; 2],
        server: &str,
    ) -> Spawned {
        // It has the stderr of its sidecar, and is not what is tested: where nobody reads that it says nothing.
        let silent =
            if self.log.is_some() { "import os\nos.dup2(os.open(os.devnull, os.O_WRONLY), 2)\n" } else { "" };
        let script = "import http.server, os\nhttp.server.ThreadingHTTPServer((os.environ['HOST'], int(os.environ['PORT'])), http.server.SimpleHTTPRequestHandler).serve_forever()";
        let script = &[silent, script].concat();
        let address = next(self.base, number).to_string();
        let [plane, registry] = peers.map(|peer| peer.to_string());
        let arguments = ["run", "--service", "web", "--instance", name, "--address", &address];
        let peers = ["--control-plane", &plane, "--registry", &registry, "--server", server];
        let more = ["--protocol", "http"];
        self.spawn(role, &[&arguments[..], &peers, &more].concat(), &[python.to_str().unwrap(), "-c", script])
    }

    fn server(&self) -> String {
        format!("http://{}", self.at(15014))
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        command(&[arguments, &["--server", &self.server()]].concat()).output().unwrap()
    }

    /// How many instances of `web` are registered and well.
    fn passing(&self) -> Option<usize> {
        self.of_health("passing")
    }

    /// How many instances of `web` are registered, with this health.
    fn of_health(&self, health: &str) -> Option<usize> {
        let output = self.ask(&["services", "-o", "json"]);
        let services: Vec<Value> = serde_json::from_slice(&output.stdout).ok()?;
        let web = services.iter().find(|service| service["name"] == "web")?;
        let instances = web["instances"].as_array()?.iter();
        Some(instances.filter(|instance| instance["health"] == health).count())
    }

    fn logs(&self) -> String {
        let read = |role: &str| {
            let path = self.data.path().join(format!("{role}.log"));
            format!("{role}:\n{}\n", std::fs::read_to_string(path).unwrap_or_default())
        };
        ["config", "plane", "registry", "server", "gateway", "web", "copy"].map(read).concat()
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        if std::thread::panicking() {
            drop(std::io::Write::write_all(&mut std::io::stderr(), self.logs().as_bytes()));
        }
    }
}

#[test]
fn three_processes_carry_a_mesh_and_each_may_be_stopped_and_started_again() {
    let Some(python) = meshwork_testkit::tool("python3") else { return };
    let apart = Apart::new();
    let (mut config, mut plane) = (apart.config(), apart.control_plane());
    let listens = |port| until("it listens", || std::net::TcpStream::connect(apart.at(port)).ok().map(drop));
    listens(15014);
    let mut registry = apart.registry();
    listens(8501);
    let _gateway = apart.gateway();
    let _first = apart.web(1, &python);
    let serves = || get(apart.at(8080), "/").filter(|(status, _)| *status == 200).map(drop);
    until("a request passes gateway and sidecar", serves);
    assert_eq!(get(apart.at(15014), "/healthz/ready").unwrap().0, 200);

    // Each goes and comes back, as the same one: traffic passes meanwhile, and change goes on afterwards.
    let stop = |process: &mut Spawned| {
        signal("TERM", process.id());
        assert_eq!(process.ended(), Some(0), "it ends when it is told to");
        assert!(serves().is_some(), "traffic does not notice");
    };
    stop(&mut config);
    let policy = "apiVersion: meshwork.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: web}\nspec:\n  targetRefs: [{group: \"\", kind: Service, name: web}]\n  timeouts: {request: 5s}\n";
    let file = apart.data.path().join("policy.yaml");
    std::fs::write(&file, policy).unwrap();
    let apply = ["apply", "-f", file.to_str().unwrap(), "--wait"];
    let output = apart.ask(&apply);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("MW4108"), "{said}");
    config = apart.config();
    listens(8888);
    until("the control plane has found it again", || apart.ask(&apply).status.success().then_some(()));

    let proxies = || -> Vec<Value> {
        let output = apart.ask(&["proxies", "-o", "json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    };
    let had = proxies().iter().filter_map(|proxy| proxy["effectiveRevision"].as_u64()).max().unwrap();
    stop(&mut plane);
    plane = apart.control_plane();
    until("the control plane is ready", || {
        get(apart.at(15014), "/healthz/ready").filter(|(status, _)| *status == 200)
    });
    until("both proxies have come back and have everything in effect", || {
        let all = proxies();
        let ok = |p: &Value| p["connected"] == true && p["effectiveRevision"] == p["modelRevision"];
        (all.len() == 2 && all.iter().all(ok)).then_some(())
    });
    for proxy in proxies() {
        assert!(
            proxy["effectiveRevision"].as_u64().unwrap() > had,
            "what was published later counts as later: {proxy}"
        );
    }
    assert_ok(&apart.ask(&["get", "trafficpolicy", "web"]));

    stop(&mut registry);
    registry = apart.registry();
    listens(8501);
    let _second = apart.web(2, &python);
    until("a new instance is registered beside the old one", || (apart.passing() == Some(2)).then_some(()));
    assert!(serves().is_some());
    for mut process in [registry, plane, config] {
        stop(&mut process);
    }
}

#[test]
fn each_process_starts_serves_and_ends_though_nobody_reads_what_it_says() {
    let Some(python) = meshwork_testkit::tool("python3") else { return };
    let (_reader, writer) = unread();
    let mut apart = Apart::new();
    apart.log = Some(file(&writer));
    let listens = |port| until("it listens", || TcpStream::connect(apart.at(port)).ok().map(drop));
    let ends = |process: &mut Spawned| {
        signal("TERM", process.id());
        assert_eq!(process.ended(), Some(0));
    };
    let (config, plane) = (apart.config(), apart.control_plane());
    listens(15014);
    let registry = apart.registry();
    listens(8501);
    let (gateway, mut web) = (apart.gateway(), apart.web(1, &python));
    let serves = || get(apart.at(8080), "/").filter(|(status, _)| *status == 200).map(drop);
    until("a request passes gateway and sidecar", serves);
    // The application is told to end, and says how by its own code.
    signal("TERM", web.id());
    assert!(web.ended().is_some());
    for mut process in [gateway, registry, plane, config] {
        ends(&mut process);
    }
    let mut all = apart.all_in_one();
    listens(8501);
    ends(&mut all);
}

/// A way to somebody that can be cut.
struct Cable {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    ends: Arc<Mutex<Vec<TcpStream>>>,
}

impl Cable {
    fn to(peer: SocketAddr) -> Self {
        let listener = TcpListener::bind((peer.ip(), 0)).unwrap();
        let (cut, ends) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let cable = Self { address: listener.local_addr().unwrap(), cut, ends };
        let (cut, ends) = (Arc::clone(&cable.cut), Arc::clone(&cable.ends));
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let mut ends = ends.lock();
                let Some(far) = TcpStream::connect(peer).ok().filter(|_| !cut.load(Ordering::SeqCst)) else {
                    continue;
                };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || drop(std::io::copy(&mut from, &mut to)));
                }
                ends.extend([near, far]);
            }
        });
        cable
    }

    /// From now on nobody comes through.
    fn cut(&self) {
        let mut ends = self.ends.lock();
        self.cut.store(true, Ordering::SeqCst);
        ends.drain(..).for_each(|end| drop(end.shutdown(Shutdown::Both)));
    }

    fn mend(&self) {
        self.cut.store(false, Ordering::SeqCst);
    }
}

#[test]
fn who_waits_for_the_effect_is_told_who_is_cut_off_and_still_serves_the_old() {
    let Some(python) = meshwork_testkit::tool("python3") else { return };
    let apart = Apart::new();
    let (_config, _plane) = (apart.config(), apart.control_plane());
    let listens = |port| until("it listens", || TcpStream::connect(apart.at(port)).ok().map(drop));
    listens(15014);
    let _registry = apart.registry();
    listens(8501);
    let _gateway = apart.gateway();
    let cables = [15012, 8501].map(|port| Cable::to(apart.at(port)));
    let [cable, to_registry] = &cables;
    let _web = apart.web_by(1, &python, [cable.address, to_registry.address], &apart.server());
    let status = || get(apart.at(8080), "/").map(|(status, _)| status);
    until("a request passes gateway and sidecar", || (status() == Some(200)).then_some(()));
    let file = apart.data.path().join("deny.yaml");
    let policy = "apiVersion: meshwork.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: web}\nspec:\n  targetRefs: [{group: \"\", kind: Service, name: web}]\n  action: Deny\n  rules: [{}]\n";
    std::fs::write(&file, policy).unwrap();

    cable.cut();
    // Its registration is renewed: the sidecar serves on, and lets everybody in.
    let apply =
        |more: &[&str]| apart.ask(&[&["apply", "-f", file.to_str().unwrap(), "--wait"][..], more].concat());
    let output = apply(&["--timeout", "1s"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let named = "is in effect on 1 of 2 proxies; not connected: default/web-1";
    assert!(said.contains(named) && said.contains("MW4105"), "{said}");
    assert_eq!(status(), Some(200), "that is the truth");
    let output = apart.ask(&["breaker", "open", "web", "--for", "1s"]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "default/web: forced open in 1 of 2 proxies; not connected: default/web-1\n"
    );

    // The registry hears nothing of it either, which is no proof: it is called as before, and so it counts.
    to_registry.cut();
    until("its lease has ended", || (apart.of_health("suspect") == Some(1)).then_some(()));
    let output = apply(&["--timeout", "1s"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains(named), "{said}");
    let awaited = "waiting up to 1s for proxies that are not connected: default/web-1; ";
    assert!(said.find(awaited) < said.find(named) && said.contains(awaited), "it is told at once: {said}");
    until("a breaker does not hold any more", || (status() == Some(200)).then_some(()));

    cables.iter().for_each(Cable::mend);
    assert_ok(&apply(&[]));
    until("nobody is let in", || (status() == Some(403)).then_some(()));
}

/// Callers of the edge that call without a pause, until they are asked what they got.
struct Callers {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    calling: JoinHandle<BTreeMap<u16, usize>>,
}

impl Callers {
    fn of(edge: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let (stopped, answers) = (Arc::clone(&stop), Arc::clone(&answered));
        let calling = std::thread::spawn(move || {
            let mut got = BTreeMap::new();
            while !stopped.load(Ordering::SeqCst) {
                let status = get(edge, "/").map_or(0, |(status, _)| status);
                *got.entry(status).or_default() += 1;
                answers.fetch_add(1, Ordering::SeqCst);
            }
            got
        });
        Self { stop, answered, calling }
    }

    /// Lets them call on for a while.
    fn go_on(&self) {
        let before = self.answered.load(Ordering::SeqCst);
        until("they are answered", || (self.answered.load(Ordering::SeqCst) > before + 100).then_some(()));
    }

    /// How often they got which status; 0 is no answer.
    fn end(self) -> BTreeMap<u16, usize> {
        self.stop.store(true, Ordering::SeqCst);
        self.calling.join().unwrap()
    }
}

/// Ends a process at once, and takes away what its roles have stored.
fn lose(process: &mut Spawned, stores: &[PathBuf]) {
    signal("KILL", process.id());
    process.ended();
    stores.iter().for_each(|store| std::fs::remove_dir_all(store).unwrap());
}

#[test]
fn a_registry_that_comes_back_with_nothing_costs_no_request() {
    let Some(python) = meshwork_testkit::tool("python3") else { return };
    let apart = Apart::new();
    let (_config, _plane) = (apart.config(), apart.control_plane());
    let listens = |port| until("it listens", || TcpStream::connect(apart.at(port)).ok().map(drop));
    listens(15014);
    let mut registry = apart.registry();
    listens(8501);
    let _gateway = apart.gateway();
    let cable = Cable::to(apart.at(8501));
    let _web = apart.web_by(1, &python, [apart.at(15012), cable.address], &apart.server());
    until("a request passes gateway and sidecar", || {
        get(apart.at(8080), "/").filter(|(status, _)| *status == 200)
    });
    let callers = Callers::of(apart.at(8080));
    cable.cut();
    lose(&mut registry, &[apart.data.path().join("registry/registry")]);
    let _registry = apart.registry();
    until("the control plane has read the new store", || {
        log_of(&apart, "plane").contains("the registry's store is another one than before").then_some(())
    });
    callers.go_on();
    // Only now it is heard of.
    cable.mend();
    until("the control plane keeps nothing any more", || {
        log_of(&apart, "plane").contains("what has not registered again").then_some(())
    });
    assert_eq!(apart.passing(), Some(1), "who lives has registered again");
    let got = callers.end();
    assert_eq!(got.keys().collect::<Vec<_>>(), [&200], "{got:?}");
    assert!(!log_of(&apart, "web").contains("taken away what this instance serves"));
}

#[test]
fn a_server_that_comes_back_with_an_empty_registry_costs_no_request() {
    let Some(python) = meshwork_testkit::tool("python3") else { return };
    let apart = Apart::new();
    let mut server = apart.all_in_one();
    let ready = || {
        until("the server is ready", || {
            get(apart.at(15014), "/healthz/ready").filter(|(status, _)| *status == 200)
        })
    };
    ready();
    let _gateway = apart.gateway();
    let _web = apart.web(1, &python);
    until("a request passes gateway and sidecar", || {
        get(apart.at(8080), "/").filter(|(status, _)| *status == 200)
    });
    let callers = Callers::of(apart.at(8080));
    // What is routed is in the folder of resources.
    let store = |role: &str| apart.data.path().join("server").join(role);
    lose(&mut server, &[store("registry"), store("config")]);
    let _server = apart.all_in_one();
    ready();
    let got = callers.end();
    assert_eq!(got.keys().collect::<Vec<_>>(), [&200], "{got:?}");
    let log = log_of(&apart, "server");
    assert!(log.contains("another one than was followed before"), "of the registry");
    assert!(log.contains("the config service's store is another one than before"), "it is said too");
    assert!(!log_of(&apart, "web").contains("taken away what this instance serves"));
    assert_eq!(apart.passing(), Some(1), "who lives has registered again");
}

#[test]
fn what_is_started_before_the_control_plane_waits_for_it_and_says_so_once() {
    let apart = Apart::new();
    let (mut registry, mut gateway, _config) = (apart.registry(), apart.gateway(), apart.config());
    let ready = |port| get(apart.at(port), "/healthz/ready").map(|(status, _)| status);
    for (role, port) in [("registry", 8500), ("gateway", 15021)] {
        until("its own port is open", || ready(port));
        let waits = || log_of(&apart, role).contains("waiting for it").then_some(());
        until("it waits for the control plane", waits);
        assert_eq!(ready(port), Some(503), "{role} is not ready");
    }

    // Told to end while it waits, it ends.
    signal("TERM", registry.id());
    assert_eq!(registry.ended(), Some(0));
    registry = apart.registry();
    let said = |role: &str, what: &str| log_of(&apart, role).matches(what).count();
    until("it waits as the one before it", || (said("registry", "waiting for it") == 2).then_some(()));

    let mut plane = apart.control_plane();
    for port in [8500, 15021, 15014] {
        until("it has what it waited for", || (ready(port) == Some(200)).then_some(()));
    }
    assert_eq!((said("gateway", "waiting for it"), said("registry", "waiting for it")), (1, 2));
    assert_eq!((said("registry", "registry started"), said("config", "config service started")), (2, 1));

    // A token that is another workload's is not mended by waiting.
    let token = apart.ask(&["token", "create", "--service", "web"]);
    assert_ok(&token);
    let file = apart.data.path().join("token");
    std::fs::write(&file, token.stdout).unwrap();
    let (elsewhere, plane_at) = (next(apart.base, 9).to_string(), apart.at(15012).to_string());
    let arguments = ["--listen-address", &elsewhere, "--control-plane", &plane_at];
    let token = ["--token-file", file.to_str().unwrap()];
    let mut refused = apart.spawn("refused", &[&["gateway"], &arguments[..], &token].concat(), &[]);
    assert_eq!(refused.ended(), Some(1), "{}", log_of(&apart, "refused"));
    for process in [&mut registry, &mut gateway, &mut plane] {
        signal("TERM", process.id());
        assert_eq!(process.ended(), Some(0));
    }
}

#[test]
fn a_sidecar_that_was_not_told_what_it_serves_is_not_ready() {
    let Some(python) = meshwork_testkit::tool("python3") else { return };
    let apart = Apart::new();
    let (_config, _plane) = (apart.config(), apart.control_plane());
    let listens = |port| until("it listens", || std::net::TcpStream::connect(apart.at(port)).ok().map(drop));
    listens(15014);
    let _registry = apart.registry();
    listens(8501);
    // Only what is registered is told, and this one asks where no registry is.
    let lost = apart.web_of(1, &python, 8502, &apart.server());
    let health = |number| {
        let (status, said) = get((next(apart.base, number), 15021).into(), "/healthz/ready")?;
        Some((status, serde_json::from_str::<Value>(&said).map_or(Value::Null, |said| said["unmet"].clone())))
    };
    let lacking = serde_json::json!(["workload told by the control plane"]);
    until("it lacks nothing else", || (health(1)? == (503, lacking.clone())).then_some(()));
    let says = || log_of(&apart, "web").contains("has not said what this instance serves").then_some(());
    until("it says so", says);
    assert_eq!(health(1).unwrap().0, 503);
    drop(lost);

    let _web = apart.web(2, &python);
    until("who is told is ready", || (health(2)?.0 == 200).then_some(()));
    until("and in use", || (apart.passing() == Some(1)).then_some(()));
}

#[test]
fn a_second_copy_of_a_name_is_not_ready_before_the_name_is_free() {
    let Some(python) = meshwork_testkit::tool("python3") else { return };
    let apart = Apart::new();
    let (_config, _plane) = (apart.config(), apart.control_plane());
    let listens = |port| until("it listens", || TcpStream::connect(apart.at(port)).ok().map(drop));
    listens(15014);
    let _registry = apart.registry();
    listens(8501);
    let mut first = apart.web(1, &python);
    until("the first is in use", || (apart.passing() == Some(1)).then_some(()));
    // The other one cannot reach the registry at first.
    let cable = Cable::to(apart.at(8501));
    cable.cut();
    let peers = [apart.at(15012), cable.address];
    let _copy = apart.instance(("copy", "web-1"), (2, &python), peers, &apart.server());
    let ready = || get((next(apart.base, 2), 15021).into(), "/healthz/ready");
    let refused = |(status, said): (u16, String)| {
        (status == 503 && said.contains("registration (instance") && said.contains("MW5026")).then_some(())
    };
    let not_told = || log_of(&apart, "copy").contains("the registry was not told").then_some(());
    until("it says that it is not registered", not_told);
    until("a registry that is away is no reason", || ready().filter(|(status, _)| *status == 200));
    cable.mend();
    until("it says what is in its way", || ready().and_then(refused));
    // Though it has said before that the registry cannot be reached.
    until("its log says so", || log_of(&apart, "copy").contains("MW5026").then_some(()));
    until("the operator is told", || {
        let told = String::from_utf8(apart.ask(&["proxies", "-o", "json"]).stdout).ok()?;
        told.contains("runs at").then_some(())
    });
    assert!(ready().and_then(refused).is_some(), "what it serves is told, and that is not enough");

    signal("TERM", first.id());
    first.ended();
    until("it is ready", || ready().filter(|(status, _)| *status == 200));
    until("it is in use", || (apart.passing() == Some(1)).then_some(()));
}

/// What there is of a mesh that was switched off ten days ago: the authority, and SVIDs that have expired since.
fn switched_off(apart: &Apart, kept: &[(&str, &str, &str)]) {
    let clock = ManualClock::new();
    clock.advance(SystemClock::new().wall() - Duration::from_hours(13 * 24));
    let domain = TrustDomain::new("mesh.local").unwrap();
    let ca = apart.data.path().join("plane/control-plane/ca");
    let authority = Authority::open_or_create(&ca, &domain, Arc::new(clock)).unwrap();
    for (folder, namespace, workload) in kept {
        let pending = PendingSvid::generate().unwrap();
        let id = SpiffeId::parse(&format!("spiffe://{domain}/ns/{namespace}/sa/{workload}")).unwrap();
        let issued = authority.issue(pending.csr(), &id, DEFAULT_SVID_TTL).unwrap();
        let store = SvidStore::new(&apart.data.path().join(folder));
        let roots = vec![authority.root().clone()];
        store.save_bundle(&Bundle::new(domain.clone(), 1, roots, []).unwrap()).unwrap();
        store.save_svid(&pending.complete(issued.chain).unwrap()).unwrap();
    }
}

#[test]
fn a_mesh_that_was_off_for_longer_than_its_identities_live_comes_back_without_tokens() {
    let Some(python) = meshwork_testkit::tool("python3") else { return };
    let apart = Apart::new();
    switched_off(&apart, &[("registry/registry", "meshwork", "registry"), ("web/web-1", "default", "web")]);
    let nobody = format!("http://{}", apart.at(9));
    // In the wrong order: they wait for the one that renews.
    let _web = apart.web_of(1, &python, 8501, &nobody);
    let _registry = apart.registry_of(&nobody);
    let (_config, _plane) = (apart.config(), apart.control_plane());
    until("the instance is in use", || (apart.passing() == Some(1)).then_some(()));
    for role in ["web", "registry"] {
        let log = log_of(&apart, role);
        assert!(log.contains("identity kept from before and renewed"), "{role}: {log}");
    }
    let web = (next(apart.base, 1), 15020).into();
    for (at, id) in [(web, "ns/default/sa/web"), (apart.at(8500), "ns/meshwork/sa/registry")] {
        let metrics = get(at, "/metrics").unwrap().1;
        let gauge = format!("meshwork_svid_remaining_seconds{{spiffe_id=\"spiffe://mesh.local/{id}\"}} 2");
        assert!(metrics.contains(&gauge), "some 259,000 s: {metrics}");
    }
}

#[test]
fn wrong_settings_are_refused_before_anybody_is_asked_for_a_token() {
    let apart = Apart::new();
    let nobody = format!("http://{}", apart.at(15014));
    let wrong = ["--registry-address", "0.0.0.0:8500", "--server", &nobody];
    let mut registry = apart.spawn("registry", &[&["registry"], &wrong[..]].concat(), &[]);
    assert_eq!(registry.ended(), Some(1));
    let log = log_of(&apart, "registry");
    assert!(log.contains("choose a loopback address with --registry-address"), "{log}");
    assert!(!log.contains("token"), "{log}");
}

fn log_of(apart: &Apart, role: &str) -> String {
    std::fs::read_to_string(apart.data.path().join(format!("{role}.log"))).unwrap_or_default()
}
