//! An open loop: requests leave when their time has come, whatever has become of those before, and each is counted.
//!
//! A client that waits for an answer before it sends the next request sends least when the service fails most, and
//! hides what it was to measure. No request is sent twice, and a connection that breaks under one fails it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use meshwork_base::{Rng as _, SeededRng};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections are given up before the gateway closes them.
const IDLE: Duration = Duration::from_secs(30);

/// A kind of request, and its share of all.
pub struct Kind {
    pub name: &'static str,
    pub percent: u64,
    pub method: Method,
    pub path: &'static str,
    pub body: Bytes,
}

/// What is sent.
pub struct Load {
    pub address: SocketAddr,
    /// Requests per second.
    pub rate: u32,
    pub seed: u64,
    pub kinds: Vec<Kind>,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// A good status and the whole body.
    Succeeded,
    /// Another status, with what it says.
    Status(u16, String),
    /// No head of a response.
    Broken(String),
    /// A head of a response, and not all of its body.
    CutShort(String),
    /// Nothing within the time.
    TimedOut,
}

struct One {
    kind: usize,
    at: Duration,
    took: Duration,
    outcome: Outcome,
}

/// What became of all.
pub struct Tally {
    names: Vec<&'static str>,
    all: Vec<One>,
    /// By how much the latest request left late.
    late: Duration,
}

type Http = Client<HttpConnector, Full<Bytes>>;

impl Load {
    /// Sends until told to stop; returns when every request has ended.
    pub async fn run(self, stop: Arc<AtomicBool>) -> Tally {
        let mut builder = Client::builder(TokioExecutor::new());
        let client: Http = builder.retry_canceled_requests(false).pool_idle_timeout(IDLE).build_http();
        let names = self.kinds.iter().map(|kind| kind.name).collect();
        let mut tally = Tally { names, all: Vec::new(), late: Duration::ZERO };
        let mut rng = SeededRng::new(self.seed);
        let mut under_way = JoinSet::new();
        let begin = Instant::now();
        for number in 0.. {
            let due = begin + Duration::from_secs(1) * number / self.rate;
            sleep_until(due).await;
            if stop.load(Ordering::SeqCst) {
                break;
            }
            tally.late = tally.late.max(due.elapsed());
            let (kind, request) = self.draw(rng.below(100));
            let client = client.clone();
            under_way.spawn(async move {
                let outcome = timeout(TIMEOUT, send(client, request)).await.unwrap_or(Outcome::TimedOut);
                One { kind, at: due - begin, took: due.elapsed(), outcome }
            });
            while let Some(one) = under_way.try_join_next() {
                tally.all.push(one.expect("a request does not panic"));
            }
        }
        while let Some(one) = under_way.join_next().await {
            tally.all.push(one.expect("a request does not panic"));
        }
        tally
    }

    fn draw(&self, mut of_hundred: u64) -> (usize, Request<Full<Bytes>>) {
        let is_next = |kind: &Kind| {
            let here = of_hundred < kind.percent;
            of_hundred = of_hundred.saturating_sub(kind.percent);
            here
        };
        let index = self.kinds.iter().position(is_next).expect("the shares make a hundred");
        let kind = &self.kinds[index];
        let request = Request::builder()
            .method(kind.method.clone())
            .uri(format!("http://{}{}", self.address, kind.path))
            .header("content-type", "application/json");
        (index, request.body(Full::new(kind.body.clone())).expect("a request"))
    }
}

async fn send(client: Http, request: Request<Full<Bytes>>) -> Outcome {
    let response = match client.request(request).await {
        Ok(response) => response,
        Err(error) => return Outcome::Broken(chain(&error)),
    };
    let status = response.status();
    match response.into_body().collect().await {
        Err(error) => Outcome::CutShort(chain(&error)),
        Ok(_) if status.is_success() => Outcome::Succeeded,
        Ok(body) => {
            let text = String::from_utf8_lossy(&body.to_bytes()).trim().chars().take(80).collect();
            Outcome::Status(status.as_u16(), text)
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let inner = error.source().map(|source| format!(": {}", chain(source))).unwrap_or_default();
    format!("{error}{inner}")
}

impl Tally {
    pub fn sent(&self) -> usize {
        self.all.len()
    }

    /// Those that an answer was owed to and that got none: a response that had begun and was cut is counted apart.
    pub fn failed(&self) -> impl Iterator<Item = (&'static str, Duration, &Outcome)> {
        let bad = |one: &&One| !matches!(one.outcome, Outcome::Succeeded | Outcome::CutShort(_));
        self.all.iter().filter(bad).map(|one| (self.names[one.kind], one.at, &one.outcome))
    }

    pub fn cut_short(&self) -> usize {
        self.all.iter().filter(|one| matches!(one.outcome, Outcome::CutShort(_))).count()
    }

    /// For people: what was sent, what became of it, and when what failed was sent.
    pub fn report(&self) -> String {
        let mut sorted: Vec<Duration> = self.all.iter().map(|one| one.took).collect();
        sorted.sort();
        let at = |percent: usize| sorted.get((sorted.len() * percent / 100).min(sorted.len() - 1)).copied();
        let mut text = format!(
            "sent {}, failed {}, cut short {}; p50 {:.1?}, p99 {:.1?}, longest {:.1?}; latest send {:.1?} late\n",
            self.sent(),
            self.failed().count(),
            self.cut_short(),
            at(50).unwrap_or_default(),
            at(99).unwrap_or_default(),
            at(100).unwrap_or_default(),
            self.late,
        );
        let mut counts: BTreeMap<(&str, &Outcome), (usize, Vec<String>)> = BTreeMap::new();
        for one in &self.all {
            let (count, times) = counts.entry((self.names[one.kind], &one.outcome)).or_default();
            *count += 1;
            if one.outcome != Outcome::Succeeded && times.len() < 12 {
                times.push(format!("{:.2}", one.at.as_secs_f64()));
            }
        }
        for ((name, outcome), (count, times)) in counts {
            writeln!(text, "  {count:>6} {name} {outcome:?} {}", times.join(" ")).expect("a string takes it");
        }
        text
    }
}
