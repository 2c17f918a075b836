//! A thousand edits under load: each response is what the old or the new revision prescribes, after the wait only the new.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use meshwork_base::{Rng as _, SeededRng};
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::support::client::Client;
use crate::support::process::HTTP;
use crate::support::{Gateway, Upstream, address, until, yaml};

const EDITS: u64 = 1000;
/// Routes in one file, and routes with a file of their own.
const TOGETHER: u64 = 12;
const APART: u64 = 3;
const TOLD: &str = "x-told";
/// What the route that takes everything answers, so that a removed route is told apart from a failure.
const FALLBACK: &str = "fallback";

fn rule(path: &str, told: &str) -> String {
    format!(
        "  - matches: [{{path: {{value: {path}}}}}]
    filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: {TOLD}, value: {told}}}]}}}}]
    backendRefs: [{{name: web, port: 80}}]
"
    )
}

fn path(number: u64) -> String {
    format!("/r/{number}/")
}

/// What the folder prescribes, step by step.
#[derive(Default)]
struct History {
    /// By path: since which step it is answered how.
    told: Mutex<BTreeMap<String, Vec<(u64, String)>>>,
    /// The step whose writing has begun.
    begun: AtomicU64,
    /// The step that is known to be in effect.
    effective: AtomicU64,
}

impl History {
    fn note(&self, step: u64, path: &str, told: &str) {
        self.told.lock().entry(path.to_owned()).or_default().push((step, told.to_owned()));
    }

    /// Whether a response to this path was right at some moment between two steps.
    fn allows(&self, path: &str, told: &str, from: u64, to: u64) -> bool {
        let all = self.told.lock();
        let states = &all[path];
        let before = states.iter().rposition(|(step, _)| *step <= from).expect("every path starts at step 0");
        states[before..].iter().take_while(|(step, _)| *step <= to).any(|(_, right)| right == told)
    }
}

/// The routes as they are meant to be now.
struct Folder {
    routes: BTreeMap<u64, Option<String>>,
    order: Vec<u64>,
    /// Two rules with equal matches: the first one answers.
    tie: [&'static str; 2],
    /// The step, in a route that no request takes: it tells what the control plane has seen.
    mark: u64,
}

impl Folder {
    fn new() -> Self {
        let routes = (0..TOGETHER + APART).map(|number| (number, Some(format!("r{number}-0")))).collect();
        Self { routes, order: (0..TOGETHER).collect(), tie: ["one", "two"], mark: 0 }
    }

    fn together(&self) -> String {
        let present = |number: &u64| self.routes[number].as_ref().map(|told| (*number, told));
        let mut text: String = self
            .order
            .iter()
            .filter_map(present)
            .map(|(number, told)| yaml::route(&format!("r{number}"), &rule(&path(number), told)))
            .collect();
        text.push_str(&yaml::route("tie", &self.tie.map(|told| rule("/tie/", told)).concat()));
        text.push_str(&yaml::route("mark", &rule("/mark/", &format!("mark-{}", self.mark))));
        text
    }

    fn told(&self, number: u64) -> &str {
        self.routes[&number].as_deref().unwrap_or(FALLBACK)
    }
}

/// How a change reaches the folder.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// A finished file takes the place of the old one.
    Rename,
    /// The old one is emptied and written, as some editors do.
    InPlace,
    /// As by rename, with the next change right behind, which nobody waits for.
    Burst,
}

struct Editor {
    gateway: Gateway,
    history: Arc<History>,
    folder: Folder,
    rng: SeededRng,
    step: u64,
    revision: u64,
}

impl Editor {
    /// Changes one thing and writes it; gives the path that is answered differently now.
    fn change(&mut self, how: How) -> String {
        self.step += 1;
        let step = self.step;
        self.folder.mark = step;
        let kind = self.rng.below(100);
        let number = self.rng.below(TOGETHER);
        let (changed, alone) = match kind {
            // A file that comes or goes; its going is believed after a while only, so not often.
            0..3 if how != How::Burst => {
                let number = TOGETHER + self.rng.below(APART);
                let fresh = self.folder.routes[&number].is_none().then(|| format!("r{number}-{step}"));
                self.folder.routes.insert(number, fresh);
                (path(number), Some(number))
            }
            0..20 => {
                let fresh = self.folder.routes[&number].is_none().then(|| format!("r{number}-{step}"));
                self.folder.routes.insert(number, fresh);
                (path(number), None)
            }
            20..40 => {
                self.folder.tie.reverse();
                let to = usize::try_from(number).expect("small");
                self.folder.order.rotate_left(to);
                ("/tie/".to_owned(), None)
            }
            _ => {
                self.folder.routes.insert(number, Some(format!("r{number}-{step}")));
                (path(number), None)
            }
        };
        let told = match alone {
            Some(number) => self.folder.told(number),
            None if changed == "/tie/" => self.folder.tie[0],
            None => self.folder.told(number),
        };
        // First what is allowed, then what makes it so.
        self.history.note(step, &changed, told);
        self.history.begun.store(step, Ordering::SeqCst);
        self.write(alone, how);
        changed
    }

    fn write(&self, alone: Option<u64>, how: How) {
        let Some(number) = alone else {
            let text = self.folder.together();
            if how == How::InPlace {
                fs::write(self.gateway.file("routes.yaml"), text).unwrap();
            } else {
                self.gateway.write("routes.yaml", &text);
            }
            return;
        };
        let file = format!("r{number}.yaml");
        match &self.folder.routes[&number] {
            Some(told) => {
                self.gateway.write(&file, &yaml::route(&format!("r{number}"), &rule(&path(number), told)));
            }
            None => self.gateway.remove(&file),
        }
    }

    /// Waits until the last change is in effect.
    fn settle(&mut self, changes: u64) {
        if changes == 1 {
            self.revision += 1;
        } else {
            // Several changes may have become one revision: the objects tell when all are seen.
            until("the last change is seen", || self.is_seen().then_some(()));
            self.revision = self.gateway.revision();
        }
        self.gateway.effective(self.revision);
        self.history.effective.store(self.step, Ordering::SeqCst);
    }

    fn is_seen(&self) -> bool {
        let mark = self.gateway.api("/v1/resources/httproute/default/mark");
        let filter = &mark["spec"]["rules"][0]["filters"][0]["responseHeaderModifier"];
        filter["set"][0]["value"] == format!("mark-{}", self.folder.mark)
    }
}

/// Sends requests without a pause until told to stop; gives how many.
async fn load(mut client: Client, seed: u64, history: Arc<History>, stop: Arc<AtomicBool>) -> u64 {
    let mut rng = SeededRng::new(seed);
    let mut sent = 0;
    while !stop.load(Ordering::SeqCst) {
        let number = rng.below(TOGETHER + APART + 1);
        let path = if number == TOGETHER + APART { "/tie/".to_owned() } else { path(number) };
        let from = history.effective.load(Ordering::SeqCst);
        let told = ask(&mut client, &path).await;
        let to = history.begun.load(Ordering::SeqCst);
        assert!(history.allows(&path, &told, from, to), "{path} told {told} between steps {from} and {to}");
        sent += 1;
    }
    sent
}

async fn ask(client: &mut Client, path: &str) -> String {
    let (status, headers, _) = client.get(path).await;
    assert_eq!(status, 200, "{path}");
    headers[TOLD].to_str().unwrap().to_owned()
}

fn clients(
    runtime: &Runtime,
    gateway: &Gateway,
    history: &Arc<History>,
    stop: &Arc<AtomicBool>,
) -> Vec<JoinHandle<u64>> {
    let start = |seed: u64| {
        let (address, history, stop) = (gateway.at(HTTP), Arc::clone(history), Arc::clone(stop));
        runtime.spawn(async move {
            let client = if seed < 3 { Client::http1(address).await } else { Client::http2(address).await };
            load(client, seed, history, stop).await
        })
    };
    (0..5).map(start).collect()
}

#[test]
fn under_a_thousand_edits_every_response_is_of_the_old_or_the_new_revision_and_none_fails() {
    let upstream = Upstream::start("web");
    let (folder, history) = (Folder::new(), Arc::new(History::default()));
    let fixed =
        [yaml::EDGE, &yaml::route("rest", &rule("/", FALLBACK)), &yaml::service("web", &[upstream.address])];
    let gateway = Gateway::start_at(
        address(),
        &[("fixed.yaml", &fixed.concat()), ("routes.yaml", &folder.together())],
        &["--workers", "2", "--access-log", "off"],
    );
    for number in 0..TOGETHER + APART {
        history.note(0, &path(number), folder.told(number));
    }
    history.note(0, "/tie/", folder.tie[0]);
    for number in TOGETHER..TOGETHER + APART {
        let text = yaml::route(&format!("r{number}"), &rule(&path(number), folder.told(number)));
        gateway.edit(|| gateway.write(&format!("r{number}.yaml"), &text));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let clients = clients(&runtime, &gateway, &history, &stop);
    let mut own = runtime.block_on(Client::http1(gateway.at(HTTP)));
    let revision = gateway.revision();
    let mut editor = Editor { gateway, history, folder, rng: SeededRng::new(7), step: 0, revision };
    while editor.step < EDITS {
        // Now and then several at once, which nobody waits for.
        let (how, changes) = match editor.rng.below(20) {
            0 => (How::Burst, 5),
            1..6 => (How::InPlace, 1),
            _ => (How::Rename, 1),
        };
        let paths: Vec<String> = (0..changes).map(|_| editor.change(how)).collect();
        editor.settle(changes);
        for path in paths {
            let told = runtime.block_on(ask(&mut own, &path));
            let step = editor.step;
            assert!(
                editor.history.allows(&path, &told, step, step),
                "{path} still told {told} after step {step}"
            );
        }
        if let Some(ended) = clients.iter().find(|client| client.is_finished()) {
            panic!("a client has failed after step {}: {ended:?}", editor.step);
        }
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        let sent = runtime.block_on(client).expect("every response was right");
        assert!(sent > EDITS, "{sent} requests are no load");
    }
}

/// Writes that follow each other without a pause meet the watcher at every moment of its look.
fn rewritten_without_a_pause(write: impl Fn(&Gateway, &str)) {
    let upstream = Upstream::start("web");
    let fixed =
        [yaml::EDGE, &yaml::route("rest", &rule("/", FALLBACK)), &yaml::service("web", &[upstream.address])];
    let text = |mark: u64| {
        // Every text is as long as the others.
        let mark = format!("mark-{mark:06}");
        [yaml::route("steady", &rule("/steady/", "steady")), yaml::route("mark", &rule("/mark/", &mark))]
            .concat()
    };
    let gateway = Gateway::start(&[("fixed.yaml", &fixed.concat()), ("routes.yaml", &text(0))]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut client = runtime.block_on(Client::http1(gateway.at(HTTP)));
    let mut step = 0;
    for round in 0..40 {
        // Pauses of another length each time: the next round begins at another moment of the look.
        for _ in 0..20 + round {
            step += 1;
            write(&gateway, &text(step));
            let (status, headers, _) = runtime.block_on(client.get("/steady/"));
            assert_eq!((status.as_u16(), &headers[TOLD]), (200, &"steady".parse().unwrap()), "step {step}");
        }
        let last = format!("mark-{step:06}");
        until("the last content is in effect", || {
            let (_, headers, _) = runtime.block_on(client.get("/mark/"));
            (headers[TOLD] == *last).then_some(())
        });
    }
}

#[test]
fn a_file_replaced_again_and_again_ends_as_its_last_content() {
    rewritten_without_a_pause(|gateway, text| gateway.write("routes.yaml", text));
}

#[test]
fn a_file_rewritten_in_place_again_and_again_is_never_seen_empty() {
    rewritten_without_a_pause(|gateway, text| fs::write(gateway.file("routes.yaml"), text).unwrap());
}

#[test]
fn a_file_rewritten_in_place_beside_other_edits_is_never_seen_empty() {
    rewritten_without_a_pause(|gateway, text| {
        gateway.write("other.yaml", &yaml::route("other", &rule("/other/", "other")));
        fs::write(gateway.file("routes.yaml"), text).unwrap();
    });
}
