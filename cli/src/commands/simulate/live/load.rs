//! Requests that arrive as the scenario says and wait for nobody: a late one is late from when it was due.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::HOST;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use meshwork_base::{Clock, Rng as _, SeededRng, Tick};
use meshwork_decision::simulator::{Scenario, Spread};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::ratio;
use super::told::FLEET;

/// The field by which proxies know a request's priority, and what it says.
pub(super) const PRIORITY: &str = "x-priority";
pub(super) const HIGH: &str = "high";
pub(super) const LOW: &str = "low";

/// So long after its time a request that has not ended never will.
const SLACK: Duration = Duration::from_secs(5);

type Http = Client<HttpConnector, Empty<Bytes>>;

/// What came of the requests.
#[derive(Default)]
pub(super) struct Counted {
    pub(super) arrived: u64,
    pub(super) unended: u64,
    /// Of those that arrived after the warm-up, of high priority and of low: how many, and how many of them failed.
    of: [(u64, u64); 2],
    /// Of the same, sorted; one that failed has all the time it had.
    took: Vec<Duration>,
}

impl Counted {
    /// The part of the measured requests that failed.
    pub(super) fn failed(&self) -> f64 {
        let failed: u64 = self.of.iter().map(|(_, failed)| failed).sum();
        ratio(failed, self.took.len() as u64)
    }

    /// The same of those of high priority, and of those of low.
    pub(super) fn failed_by_priority(&self) -> [f64; 2] {
        self.of.map(|(all, failed)| ratio(failed, all))
    }

    /// The latency that this share of the measured requests did not exceed.
    pub(super) fn quantile(&self, share: f64) -> Duration {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in a list")]
        let place = (share * self.took.len() as f64) as usize;
        self.took.get(place.min(self.took.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// One proxy's callers.
struct Callers<'a> {
    scenario: &'a Scenario,
    world: &'a RefCell<SeededRng>,
    bursting: Cell<bool>,
}

impl Callers<'_> {
    /// Whether the next request has high priority.
    fn is_high(&self) -> bool {
        let high = u64::from(self.scenario.arrivals.high);
        high > 0 && self.world.borrow_mut().below(100) < high
    }

    fn drawn(&self) -> f64 {
        Spread::Exponential.draw(&mut *self.world.borrow_mut())
    }

    /// The time to the next request, after so long.
    fn gap(&self, elapsed: Duration) -> Duration {
        let arrivals = &self.scenario.arrivals;
        let times = arrivals.burst.filter(|_| self.bursting.get()).map_or(1.0, |burst| burst.times);
        arrivals.gap(elapsed, times / self.scenario.clients as f64, self.drawn())
    }

    /// Bursts begin and end.
    async fn burst(&self) {
        let Some(burst) = self.scenario.arrivals.burst else { return std::future::pending().await };
        loop {
            sleep(burst.every.mul_f64(self.drawn())).await;
            self.bursting.set(true);
            sleep(burst.lasts).await;
            self.bursting.set(false);
        }
    }
}

/// Sends everything and waits for everything.
pub(super) async fn run(
    scenario: &Scenario,
    proxies: &[SocketAddr],
    world: &Rc<RefCell<SeededRng>>,
    clock: &Arc<dyn Clock>,
    began: Tick,
) -> Counted {
    let counted = Rc::new(RefCell::new(Counted::default()));
    let mut all = JoinSet::new();
    for &proxy in proxies {
        let (scenario, world, clock) = (scenario.clone(), Rc::clone(world), Arc::clone(clock));
        let counted = Rc::clone(&counted);
        all.spawn_local(async move {
            let callers = Callers { scenario: &scenario, world: &world, bursting: Cell::new(false) };
            tokio::select! {
                () = callers.burst() => {}
                () = call(&callers, proxy, &clock, began, &counted) => {}
            }
        });
    }
    while let Some(ended) = all.join_next().await {
        ended.expect("callers neither panic nor are aborted");
    }
    let mut counted = Rc::try_unwrap(counted).ok().expect("all callers have ended").into_inner();
    counted.took.sort_unstable();
    counted
}

async fn call(
    callers: &Callers<'_>,
    proxy: SocketAddr,
    clock: &Arc<dyn Clock>,
    began: Tick,
    counted: &Rc<RefCell<Counted>>,
) {
    let Scenario { duration, warm_up, policies, .. } = callers.scenario;
    let (whole, warm) = (began.after(*duration), began.after(*warm_up));
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Http = Client::builder(TokioExecutor::new()).build(connector);
    let mut requests = JoinSet::new();
    let mut due = began.after(callers.gap(Duration::ZERO));
    while due < whole {
        sleep(due.since(clock.now())).await;
        counted.borrow_mut().arrived += 1;
        let is_high = callers.is_high();
        let (client, clock, counted) = (client.clone(), Arc::clone(clock), Rc::clone(counted));
        let (limit, measured) = (policies.timeout, due >= warm);
        requests.spawn_local(async move {
            let ended = timeout(limit + SLACK, one(&client, proxy, is_high)).await;
            let mut counted = counted.borrow_mut();
            counted.unended += u64::from(ended.is_err());
            let good = ended.unwrap_or(false);
            if measured {
                let of = &mut counted.of[usize::from(!is_high)];
                of.0 += 1;
                of.1 += u64::from(!good);
                counted.took.push(if good { clock.now().since(due) } else { limit });
            }
        });
        due = due.after(callers.gap(due.since(began)));
    }
    while let Some(ended) = requests.join_next().await {
        ended.expect("a request neither panics nor is aborted");
    }
}

/// Whether a request was answered well.
async fn one(client: &Http, proxy: SocketAddr, is_high: bool) -> bool {
    let request = Request::get(format!("http://{proxy}/")).header(HOST, FLEET);
    let request = request.header(PRIORITY, if is_high { HIGH } else { LOW });
    let request = request.body(Empty::new()).expect("an address is an authority");
    let Ok(response) = client.request(request).await else {
        return false;
    };
    let status = response.status();
    response.into_body().collect().await.is_ok() && status.is_success()
}
