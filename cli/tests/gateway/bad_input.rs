//! Bad input is refused at its line, object by object, and what runs is untouched.

use std::fs;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::support::client::Client;
use crate::support::process::HTTP;
use crate::support::{Gateway, Upstream, get, until, yaml};

/// More than this and a file has cost more than its size allows; a debug build takes some 40 MiB itself.
const MEMORY: u64 = 192 << 20;

struct Case {
    what: &'static str,
    /// The bad object or file; it stands behind a good route for `/beside`, unless `whole`.
    text: Vec<u8>,
    code: &'static str,
    /// The line in `text`, from 1.
    line: u64,
    /// Nothing of such a file can be read.
    whole: bool,
}

fn object(what: &'static str, text: &str, code: &'static str, at: &str) -> Case {
    let line = text.lines().position(|line| line.contains(at)).expect(at) + 1;
    Case { what, text: text.into(), code, line: line as u64, whole: false }
}

fn whole(what: &'static str, text: impl Into<Vec<u8>>, code: &'static str, line: u64) -> Case {
    Case { what, text: text.into(), code, line, whole: true }
}

fn route(rules: &str) -> String {
    yaml::route("bad", rules)
}

/// Ten copies of ten copies of …, more than any memory holds; the fifth line is the one too many.
fn bomb() -> String {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let below = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    text
}

fn garbage() -> Vec<u8> {
    let mut state = 1_u32;
    let byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b' ' + u8::try_from((state >> 24) % 95).expect("below 95")
    };
    std::iter::repeat_with(byte).take(10 << 20).collect()
}

fn cases() -> Vec<Case> {
    let backend = "    backendRefs: [{name: web, port: 80}]";
    let regex = format!("  - matches:\n    - path: {{type: RegularExpression, value: '('}}\n{backend}");
    let nested = format!("deep: {}", "[".repeat(100_000));
    vec![
        object("a misspelt field", &route("  - backendRefs:\n    - {name: web, prot: 80}"), "MW1008", "prot"),
        object("an invalid regex", &route(&regex), "MW1018", "value: '('"),
        object(
            "a wrong type",
            &route("  - backendRefs:\n    - {name: web, port: eighty}"),
            "MW1010",
            "eighty",
        ),
        object(
            "a number out of range",
            &route("  - backendRefs:\n    - {name: web, port: 70000}"),
            "MW1013",
            "70000",
        ),
        object("an unknown kind", "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n", "MW1007", "Pod"),
        object("no apiVersion", "kind: Service\nmetadata: {name: x}\n", "MW1006", "kind"),
        object(
            "a filter of a later version",
            &route("  - filters:\n    - type: CORS\n      cors: {allowOrigins: ['https://shop.example']}"),
            "MW1014",
            "type: CORS",
        ),
        whole("no YAML", "a: [1\nb: }\n", "MW1003", 2),
        whole("garbage of 10 MB", garbage(), "MW1002", 1),
        whole("a YAML bomb", bomb(), "MW1002", 5),
        whole("an anchor that contains itself", "a: &a [1, *a]\n", "MW1005", 1),
        whole("brackets without end", nested, "MW1002", 1),
        whole("bytes that are no text", b"a: 1\nb: \xff\xfe\n".to_vec(), "MW1001", 2),
    ]
}

/// Clients whose every request must succeed while the folder is full of nonsense.
struct Traffic {
    runtime: Runtime,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<u64>>,
}

impl Traffic {
    fn start(gateway: &Gateway) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let client = |http2: bool| {
            let (address, stop) = (gateway.at(HTTP), Arc::clone(&stop));
            runtime.spawn(async move {
                let mut client =
                    if http2 { Client::http2(address).await } else { Client::http1(address).await };
                let mut sent = 0;
                while !stop.load(Ordering::SeqCst) {
                    let (status, _, _) = client.get("/").await;
                    assert_eq!(status, 200);
                    sent += 1;
                }
                sent
            })
        };
        let clients = vec![client(false), client(true)];
        Self { runtime, stop, clients }
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            assert!(self.runtime.block_on(client).expect("every request succeeded") > 0);
        }
    }
}

fn start() -> (Upstream, Gateway) {
    let upstream = Upstream::start("web");
    let good = yaml::route("web", "  - backendRefs: [{name: web, port: 80}]");
    let files = [yaml::EDGE, &yaml::service("web", &[upstream.address])].concat();
    let gateway = Gateway::start(&[("fixed.yaml", &files), ("web.yaml", &good)]);
    (upstream, gateway)
}

fn beside() -> String {
    yaml::route(
        "beside",
        "  - matches: [{path: {value: /beside}}]
    filters: [{type: RequestRedirect, requestRedirect: {hostname: beside.example}}]",
    )
}

/// Findings of severity `error` in a file, once there are some.
fn errors(gateway: &Gateway, file: &str, what: &str) -> Vec<Value> {
    until(what, || {
        let found = gateway.findings(file);
        let errors: Vec<Value> = found.into_iter().filter(|found| found["severity"] == "error").collect();
        (!errors.is_empty()).then_some(errors)
    })
}

#[test]
fn bad_files_are_refused_at_their_line_while_the_rest_keeps_working() {
    let (_upstream, gateway) = start();
    let traffic = Traffic::start(&gateway);
    let status = |path: &str| get(gateway.at(HTTP), path).expect("it serves").0;
    for case in cases() {
        let before = if case.whole { String::new() } else { beside() };
        let lines = before.lines().count() as u64;
        let text = [before.as_bytes(), &case.text].concat();
        let revision = gateway.revision();
        fs::write(gateway.file("bad.yaml"), text).unwrap();
        let errors = errors(&gateway, "bad.yaml", case.what);
        let first = &errors[0];
        assert_eq!(
            (&first["code"], &first["line"]),
            (&case.code.into(), &(lines + case.line).into()),
            "{}: {first}",
            case.what
        );
        assert!(
            first["message"].as_str().is_some_and(|message| message.len() < 500),
            "{}: {first}",
            case.what
        );
        if case.whole {
            assert_eq!(gateway.revision(), revision, "{}: nothing changed", case.what);
        } else {
            gateway.effective(revision + 1);
            assert_eq!(status("/beside"), 302, "{}: the good object of the file serves", case.what);
        }
        fs::remove_file(gateway.file("bad.yaml")).unwrap();
        until("the file and its findings are gone", || gateway.findings("bad.yaml").is_empty().then_some(()));
        until("its routes are gone", || (status("/beside") == 200).then_some(()));
    }
    traffic.end();
    assert!(gateway.resident() < MEMORY, "{} bytes are resident", gateway.resident());
}

#[test]
fn an_object_that_turns_bad_keeps_its_last_good_version() {
    let (_upstream, gateway) = start();
    let good = fs::read_to_string(gateway.file("web.yaml")).unwrap();
    let traffic = Traffic::start(&gateway);
    for bad in ["backendRef: [{name: web, port: 80}]", "backendRefs: [{name: web, port: '80'}]", "}"] {
        gateway.write("web.yaml", &good.replace("backendRefs: [{name: web, port: 80}]", bad));
        let errors = errors(&gateway, "web.yaml", bad);
        assert!(errors[0]["line"].as_u64() > Some(1), "{errors:?}");
        assert_eq!(get(gateway.at(HTTP), "/").unwrap().0, 200);
        let route = gateway.object("httproute", "default", "web");
        assert_eq!(route["spec"]["rules"][0]["backendRefs"][0]["name"], "web");
        gateway.write("web.yaml", &good);
        until("the finding is gone", || gateway.findings("web.yaml").is_empty().then_some(()));
    }
    traffic.end();
}

#[test]
fn a_file_that_is_half_written_changes_nothing_until_it_is_whole() {
    let (_upstream, gateway) = start();
    let traffic = Traffic::start(&gateway);
    let revision = gateway.revision();
    let whole = beside();
    // Cut within a word: what is there so far is YAML, and not what was meant.
    let half = whole.find("requestRedirect: {host").unwrap() + 20;
    let mut file = fs::File::create(gateway.file("beside.yaml")).unwrap();
    file.write_all(&whole.as_bytes()[..half]).unwrap();
    file.flush().unwrap();
    // Nobody closes it: after a while it is read as it is, and refused.
    errors(&gateway, "beside.yaml", "a file left half-written is told");
    assert_eq!(gateway.revision(), revision);
    assert_eq!(get(gateway.at(HTTP), "/beside").unwrap().0, 200);
    gateway.edit(|| {
        file.write_all(&whole.as_bytes()[half..]).unwrap();
        drop(file);
    });
    assert_eq!(get(gateway.at(HTTP), "/beside").unwrap().0, 302);
    assert!(gateway.findings("beside.yaml").is_empty());
    traffic.end();
}
