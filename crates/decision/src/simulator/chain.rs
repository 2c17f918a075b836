//! A chain of services of which the last always fails: how many requests reach each.
//!
//! Every service stands beside a proxy of its own, and so does the client. Work and network take no time but for the last
//! service's, where it is said; back-offs do. What is asked is only who repeats what.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{SeededRng, Tick};

use super::client::Client;
use super::scenario::{Arrivals, Instance, Policies, Scenario, Spread};
use crate::endpoint::Endpoint;
use crate::invariants;
use crate::kinship::{Family, Kin, Kinship, Told};
use crate::limits::Permit;
use crate::load::Answer;
use crate::outlier::AttemptOutcome;
use crate::reasons::NoReasons;
use crate::retry::{AttemptFailure, Decision, PushBack, RequestFacts, Retry, RetryPolicy};

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Services, one behind the other.
    pub depth: usize,
    /// Requests of the client, which are evenly spread.
    pub per_second: u64,
    /// So many come while the last service fails.
    pub requests: u64,
    /// So many came before, and were answered well.
    pub well: u64,
    /// How long the last service takes to fail.
    pub takes: Duration,
    /// Every caller's.
    pub retry: RetryPolicy,
    /// Applications pass on the id of a request.
    pub traced: bool,
}

/// What reached each service, in the order of the chain, and what the client began; what was answered well is counted in
/// neither.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// What the client began.
    pub incoming: u64,
    /// Requests at each service.
    pub at: Vec<u64>,
    /// The first thing that did not hold.
    pub broken: Option<String>,
}

impl Reached {
    /// Requests at the last service for one of the client's.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub fn times(&self) -> f64 {
        self.at.last().map_or(0.0, |&last| last as f64) / self.incoming as f64
    }
}

/// Runs a chain.
#[must_use]
pub fn run_chain(chain: &Chain, seed: u64) -> Reached {
    run_calls(chain, (0..chain.depth).map(|caller| Client::new(&two_instances(), caller)).collect(), seed)
}

fn run_calls(chain: &Chain, callers: Vec<Client>, seed: u64) -> Reached {
    let mut run = Run {
        chain,
        policy: Arc::new(chain.retry.clone()),
        callers,
        kin: (0..chain.depth).map(|_| Remembered::default()).collect(),
        chance: SeededRng::new(seed),
        ids: 0,
        calls: Vec::new(),
        events: BinaryHeap::new(),
        planned: 0,
        now: Tick::ZERO,
        reached: Reached { incoming: 0, at: vec![0; chain.depth], broken: None },
    };
    let gap = Duration::from_secs(1) / u32::try_from(chain.per_second).expect("a rate below 2^32");
    let mut arrives = Tick::ZERO;
    for number in 0..chain.well + chain.requests {
        run.until(arrives);
        run.now = arrives;
        let well = number < chain.well;
        run.reached.incoming += u64::from(!well);
        let id = run.new_id();
        run.begin(Call::new(None, 0, id, well, run.retry(0)));
        arrives = arrives.after(gap);
    }
    run.until(Tick::from_nanos(u64::MAX));
    run.reached
}

/// What happens to a call later, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// Its back-off is over.
    Again(usize),
    /// The last service has failed it.
    Fails(usize),
}

/// A request on one hop, with all its attempts.
struct Call {
    /// The call for whose sake an application makes this one.
    parent: Option<usize>,
    service: usize,
    id: u64,
    /// It is a retry of the hop before, or made for the sake of one.
    nested: bool,
    /// It is answered well.
    well: bool,
    retry: Retry,
    endpoint: Option<Arc<Endpoint>>,
    permit: Option<Permit>,
}

impl Call {
    const fn new(parent: Option<usize>, service: usize, id: u64, well: bool, retry: Retry) -> Self {
        Self { parent, service, id, nested: false, well, retry, endpoint: None, permit: None }
    }
}

/// What a proxy remembers, and all that it was told.
#[derive(Default)]
struct Remembered {
    known: Kinship,
    told: Told,
}

impl Remembered {
    fn remember(&mut self, family: Family, what: Kin, now: Tick) {
        self.known.remember(family, what, now);
        self.told.remember(family, what, now);
    }

    fn forget(&mut self, family: Family, what: Kin) {
        self.known.forget(family, what);
        self.told.forget(family, what);
    }

    /// Whether that is remembered of a family; and what must hold of it.
    fn knows(&self, family: Family, what: Kin, now: Tick, broken: &mut Option<String>) -> bool {
        let knows = self.known.knows(family, what, now);
        if let Err(why) = invariants::kinship(knows, self.told.ago(family, what, now)) {
            broken.get_or_insert(why);
        }
        knows
    }
}

struct Run<'c> {
    chain: &'c Chain,
    policy: Arc<RetryPolicy>,
    /// The proxy that calls each service.
    callers: Vec<Client>,
    /// What the proxy beside each service remembers.
    kin: Vec<Remembered>,
    chance: SeededRng,
    ids: u64,
    calls: Vec<Call>,
    /// With the order in which they were planned, where they come at the same time.
    events: BinaryHeap<Reverse<(Tick, u64, Event)>>,
    planned: u64,
    now: Tick,
    reached: Reached,
}

impl Run<'_> {
    fn plan(&mut self, after: Duration, event: Event) {
        self.planned += 1;
        self.events.push(Reverse((self.now.after(after), self.planned, event)));
    }

    fn until(&mut self, end: Tick) {
        while let Some(&Reverse((at, _, event))) = self.events.peek()
            && at <= end
        {
            self.events.pop();
            self.now = at;
            match event {
                Event::Again(call) => self.attempt(call),
                Event::Fails(call) => self.failed(call, None),
            }
        }
    }

    fn new_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    fn retry(&self, service: usize) -> Retry {
        Retry::begin(Some(&self.policy), &self.callers[service].cluster, self.now)
    }

    fn begin(&mut self, call: Call) {
        self.calls.push(call);
        self.attempt(self.calls.len() - 1);
    }

    /// A service is called; the last answers, the others call the next one first.
    fn attempt(&mut self, call: usize) {
        let Call { service, id, nested, well, .. } = self.calls[call];
        let (cluster, retry) = (&self.callers[service].cluster, &self.calls[call].retry);
        let endpoint = cluster.pick(self.now, &mut self.chance, retry.tried()).expect("two instances");
        let retried = nested || retry.retries() > 0;
        self.calls[call].endpoint = Some(endpoint);
        self.reached.at[service] += u64::from(!well);
        if service + 1 == self.chain.depth {
            return if well { self.answered(call) } else { self.plan(self.chain.takes, Event::Fails(call)) };
        }
        if retried {
            self.kin[service].remember(Family::of(id), Kin::Retried, self.now);
        }
        let own = if self.chain.traced { id } else { self.new_id() };
        let mut next = Call::new(Some(call), service + 1, own, well, self.retry(service + 1));
        let (kin, broken) = (&self.kin[service], &mut self.reached.broken);
        next.nested = kin.knows(Family::of(own), Kin::Retried, self.now, broken);
        self.begin(next);
    }

    /// A call is answered well, and so is what it was made for.
    fn answered(&mut self, call: usize) {
        let now = self.now;
        let Call { service, parent, retry, endpoint, .. } = &mut self.calls[call];
        let answer = Answer::new(AttemptOutcome::Success, Duration::from_millis(1));
        let endpoint = endpoint.as_ref().expect("it was called");
        drop(self.callers[*service].cluster.record(endpoint, &answer, now));
        retry.ended(true);
        if let &mut Some(parent) = parent {
            self.answered(parent);
        }
    }

    fn failed(&mut self, number: usize, push_back: Option<PushBack>) {
        let call = &mut self.calls[number];
        call.permit = None;
        let (failure, endpoint) = (AttemptFailure::Status(503), call.endpoint.as_ref().map(|one| one.id));
        let tried: Vec<_> = call.retry.tried().iter().copied().chain(endpoint).collect();
        let facts = RequestFacts {
            idempotent: true,
            sent: true,
            replayable: true,
            nested: call.nested,
            deadline: None,
            push_back,
            tried: &tried,
        };
        match call.retry.after(failure, endpoint, &facts, self.now, &mut self.chance, &mut NoReasons) {
            Decision::Again { after, permit } => {
                call.permit = permit;
                self.plan(after, Event::Again(number));
            }
            Decision::Stop(stop) => {
                let (id, parent) = (Family::of(call.id), call.parent);
                let Some(parent) = parent else { return };
                let before = &self.calls[parent];
                let (kin, of_parent) = (&mut self.kin[before.service], Family::of(before.id));
                if stop.is_for_good() {
                    kin.remember(id, Kin::Failed, self.now);
                }
                kin.forget(of_parent, Kin::Retried);
                let fails = kin.knows(of_parent, Kin::Failed, self.now, &mut self.reached.broken);
                self.failed(parent, fails.then_some(PushBack::Never));
            }
        }
    }
}

fn two_instances() -> Scenario {
    let instance = Instance {
        weight: 1,
        zone: 0,
        concurrency: 1,
        is_deaf: false,
        queue: 1,
        service: Duration::ZERO,
        spread: Spread::Constant,
        joins: Duration::ZERO,
        phases: Vec::new(),
    };
    Scenario {
        name: "chain",
        duration: Duration::ZERO,
        warm_up: Duration::ZERO,
        clients: 1,
        arrivals: Arrivals { per_second: 1.0, burst: None, loads: Vec::new(), high: 0 },
        instances: vec![instance; 2],
        network: Duration::ZERO,
        zones: 0,
        policies: Policies::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::RetryBudget;

    fn chain(depth: usize, traced: bool) -> Chain {
        let retry = RetryPolicy { attempts: 3, budget: RetryBudget::DEFAULT, ..Policies::default().retry };
        let (per_second, requests, takes) = (100, 6_000, Duration::ZERO);
        Chain { depth, per_second, requests, well: 0, takes, retry, traced }
    }

    /// With every endpoint failing the last service gets hardly more than the first was asked.
    #[test]
    fn retries_do_not_multiply_along_a_chain() {
        for depth in 1..=6 {
            for seed in 0..5 {
                let reached = run_chain(&chain(depth, true), seed);
                let last = *reached.at.last().unwrap();
                assert_eq!(reached.broken, None, "depth {depth}, seed {seed}");
                assert!(100 * last <= 103 * reached.incoming, "depth {depth}, seed {seed}: {reached:?}");
                assert!(100 * last >= 102 * reached.incoming, "some are tried: {depth}, {reached:?}");
                let before = &reached.at[..depth - 1];
                assert!(
                    before.iter().all(|&at| at == reached.incoming),
                    "only the last hop repeats: {reached:?}"
                );
            }
        }
    }

    /// Where no application passes on an id, and no hop knows of another: what each learns of its own retries is enough,
    /// where little comes and where much does, at once or slowly.
    #[test]
    fn without_ids_three_services_deep_the_last_gets_at_most_a_fifth_more_than_the_first() {
        for (per_second, requests) in [(1, 120), (5, 300), (100, 1_000), (2_000, 2_000), (1_000_000, 120)] {
            for takes in [Duration::ZERO, Duration::from_secs(1)] {
                for seed in 0..100 {
                    let rate = Chain { per_second, requests, takes, ..chain(3, false) };
                    let reached = run_chain(&rate, seed);
                    let why = format!("{per_second}/s, {takes:?}, seed {seed}: {reached:?}");
                    assert!(reached.times() <= 1.2, "{why}");
                    assert!(reached.times() > 1.0, "retries are tried: {why}");
                    assert_eq!(reached.incoming, requests, "{why}");
                }
            }
        }
    }

    /// Where all went well until now, those that are under way when it ends have their budget.
    #[test]
    fn what_went_well_before_leaves_a_crowd_its_budget_and_no_more() {
        for seed in 0..20 {
            let well = Chain { well: 1_000, requests: 1_000, ..chain(3, false) };
            let reached = run_chain(&well, seed);
            assert_eq!(reached.incoming, 1_000);
            assert!(reached.times() > 1.0 && reached.times() <= 1.2, "seed {seed}: {reached:?}");
            for (attempts, requests) in [(2, 250), (3, 350)] {
                let retry = RetryPolicy { attempts, ..chain(3, false).retry };
                let few = Chain { per_second: 1, well: 100, requests, retry, ..chain(3, false) };
                let reached = run_chain(&few, seed);
                assert!(reached.times() <= 1.2, "{attempts}, seed {seed}: {reached:?}");
            }
            let crowd = Chain { per_second: 2_000, ..well };
            let reached = run_chain(&crowd, seed);
            assert!(reached.times() > 1.1 && reached.times() <= 1.4, "seed {seed}: {reached:?}");
        }
    }
}
