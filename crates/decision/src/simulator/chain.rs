//! A chain of services of which the last always fails: how many requests reach each.
//!
//! Every service stands beside a proxy of its own, and so does the client. Work and network take no time: what is asked
//! is only who repeats what.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{SeededRng, Tick};

use super::client::Client;
use super::scenario::{Arrivals, Instance, Policies, Scenario, Spread};
use crate::kinship::{Family, Kin, Kinship};
use crate::reasons::NoReasons;
use crate::retry::{AttemptFailure, Decision, PushBack, RequestFacts, Retry, RetryPolicy};

/// See the module's text.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Services, one behind the other.
    pub depth: usize,
    /// Requests of the client.
    pub per_second: u64,
    /// How long they arrive.
    pub duration: Duration,
    /// Every caller's.
    pub retry: RetryPolicy,
    /// Applications pass on the id of a request.
    pub traced: bool,
}

/// What reached each service, in the order of the chain, and what the client began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// What the client began.
    pub incoming: u64,
    /// Requests at each service.
    pub at: Vec<u64>,
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
        kin: (0..chain.depth).map(|_| Kinship::default()).collect(),
        chance: SeededRng::new(seed),
        ids: 0,
        reached: Reached { incoming: 0, at: vec![0; chain.depth] },
    };
    let gap = Duration::from_secs(1) / u32::try_from(chain.per_second).expect("a rate below 2^32");
    let mut now = Tick::ZERO;
    while now < Tick::ZERO.after(chain.duration) {
        run.reached.incoming += 1;
        run.ids += 1;
        let id = run.ids;
        run.call(0, id, now, false);
        now = now.after(gap);
    }
    run.reached
}

struct Run<'c> {
    chain: &'c Chain,
    policy: Arc<RetryPolicy>,
    /// The proxy that calls each service.
    callers: Vec<Client>,
    /// What the proxy beside each service remembers.
    kin: Vec<Kinship>,
    chance: SeededRng,
    ids: u64,
    reached: Reached,
}

impl Run<'_> {
    /// A service is called until its caller's proxy gives up; that is when.
    fn call(&mut self, service: usize, id: u64, mut now: Tick, nested: bool) -> Tick {
        let cluster = Arc::clone(&self.callers[service].cluster);
        let mut retry = Retry::begin(Some(&self.policy), &cluster, now);
        loop {
            let picked = cluster.pick(now, &mut self.chance, retry.tried()).expect("two instances");
            self.reached.at[service] += 1;
            let push_back = self.serve(service, id, &mut now, nested || retry.retries() > 0);
            let facts = RequestFacts {
                idempotent: true,
                sent: true,
                replayable: true,
                nested,
                deadline: None,
                push_back,
            };
            let failure = AttemptFailure::Status(503);
            match retry.after(failure, Some(picked.id), &facts, now, &mut self.chance, &mut NoReasons) {
                Decision::Again { after, .. } => now = now.after(after),
                Decision::Stop(stop) => {
                    if stop.is_for_good() && service > 0 {
                        self.kin[service - 1].remember(Family::of(id), Kin::Failed, now);
                    }
                    return now;
                }
            }
        }
    }

    /// A service answers 503: the last at once, the others when what they call has failed.
    fn serve(&mut self, service: usize, id: u64, now: &mut Tick, retried: bool) -> Option<PushBack> {
        if service + 1 == self.chain.depth {
            return None;
        }
        if retried {
            self.kin[service].remember(Family::of(id), Kin::Retried, *now);
        }
        let own = if self.chain.traced {
            id
        } else {
            self.ids += 1;
            self.ids
        };
        let nested = self.kin[service].knows(Family::of(own), Kin::Retried, *now);
        *now = self.call(service + 1, own, *now, nested);
        self.kin[service].forget(Family::of(id), Kin::Retried);
        self.kin[service].knows(Family::of(id), Kin::Failed, *now).then_some(PushBack::Never)
    }
}

fn two_instances() -> Scenario {
    let instance = Instance {
        weight: 1,
        zone: 0,
        concurrency: 1,
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
    use crate::load::Answer;
    use crate::outlier::AttemptOutcome;
    use crate::retry::RetryBudget;

    fn chain(depth: usize, traced: bool) -> Chain {
        let retry = RetryPolicy { attempts: 3, budget: RetryBudget::DEFAULT, ..Policies::default().retry };
        Chain { depth, per_second: 100, duration: Duration::from_secs(60), retry, traced }
    }

    /// With every endpoint failing the last service gets hardly more than the first was asked.
    #[test]
    fn retries_do_not_multiply_along_a_chain() {
        for depth in 1..=6 {
            for seed in 0..5 {
                let reached = run_chain(&chain(depth, true), seed);
                let last = *reached.at.last().unwrap();
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
    /// where little comes and where much does.
    #[test]
    fn without_ids_three_services_deep_the_last_gets_at_most_a_fifth_more_than_the_first() {
        for (per_second, seconds) in [(1, 120), (5, 60), (100, 10), (2_000, 1)] {
            for seed in 0..100 {
                let rate = Chain { per_second, duration: Duration::from_secs(seconds), ..chain(3, false) };
                let reached = run_chain(&rate, seed);
                let last = *reached.at.last().unwrap();
                assert!(10 * last <= 12 * reached.incoming, "{per_second}/s, seed {seed}: {reached:?}");
                assert!(
                    last > reached.incoming,
                    "retries are tried: {per_second}/s, seed {seed}: {reached:?}"
                );
            }
        }
    }

    /// The same where all three have answered well until then.
    #[test]
    fn without_ids_what_was_well_before_it_fails_gets_no_more_than_a_fifth_from_some_hundred_requests_on() {
        for (attempts, seconds) in [(2, 250), (3, 350)] {
            for seed in 0..100 {
                let retry = RetryPolicy { attempts, ..chain(3, false).retry };
                let rate =
                    Chain { per_second: 1, duration: Duration::from_secs(seconds), retry, ..chain(3, false) };
                let callers = (0..3).map(|caller| Client::new(&two_instances(), caller));
                let callers: Vec<_> = callers.inspect(answers).collect();
                let reached = run_calls(&rate, callers, seed);
                let last = *reached.at.last().unwrap();
                assert!(10 * last <= 12 * reached.incoming, "{attempts}, seed {seed}: {reached:?}");
            }
        }
    }

    fn answers(caller: &Client) {
        let endpoint = Arc::clone(&caller.cluster.endpoints().all()[0]);
        let well = Answer::new(AttemptOutcome::Success, Duration::from_millis(1));
        (0..100).for_each(|_| drop(caller.cluster.record(&endpoint, &well, Tick::ZERO)));
    }
}
