//! Events in the order of time.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Rng, SeededRng, Tick};

use super::calls::{self, Caller, Tickets};
use super::client::{Client, instance_of};
use super::events::{Events, Row};
use super::hedged::{End, Hedging};
use super::report::{Answered, Report};
use super::scenario::{Scenario, Spread, exponential};
use super::server::{Gate, Moves, Server, Taken};
use crate::cause::Cause;
use crate::cluster::{Cluster, Wanted};
use crate::endpoint::{Endpoint, InFlight};
use crate::hedge::{Hedged, Leg};
use crate::invariants;
use crate::limits::Permit;
use crate::load::Answer;
use crate::outlier::{AttemptOutcome, Picked, Shift, Trial};
use crate::overload::{Overload, Priority};
use crate::reasons::NoReasons;
use crate::retry::{AttemptFailure, Decision, RequestFacts, Retry, RetryPolicy};

/// Names an attempt; what has ended is never taken for what has its place now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct AttemptId {
    place: u32,
    number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A client's next request.
    Arrives(usize),
    /// A client's burst begins or ends.
    Burst(usize),
    /// A request's back-off is over.
    Again(usize),
    /// A first attempt has taken so long that there may be a second one.
    Hedges(AttemptId),
    /// An attempt comes to its instance.
    Reaches(AttemptId),
    /// An instance has done its work on an attempt, in this life of it.
    Done(usize, AttemptId, u32),
    /// An attempt has waited before its instance for as long as it may.
    GivesUp(usize, AttemptId),
    /// A client hears how its attempt ended.
    Hears(AttemptId, Heard),
    /// The next of an instance's phases.
    Phase(usize, usize),
    /// The proxies hear of another instance.
    Joins,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Heard {
    Ok,
    Status503,
    Reset,
    Refused,
    /// The proxy before the instance has sent it away.
    Shed,
    TimedOut,
}

struct Request {
    client: usize,
    arrived: Tick,
    retry: Retry,
    work: f64,
    priority: Priority,
    /// Its next attempt has been asked about, and is not held back.
    is_let_through: bool,
    /// Counts the retry under way.
    permit: Option<Permit>,
    hedging: Option<Hedging>,
}

struct Attempt {
    number: u64,
    request: usize,
    endpoint: Arc<Endpoint>,
    trial: Option<Trial>,
    tickets: Tickets,
    began: Tick,
    leg: Leg,
    _in_flight: InFlight,
    /// What a second attempt holds while it runs.
    _hedged: Option<Hedged>,
}

/// See the module's text.
pub(super) struct Engine<'s> {
    scenario: &'s Scenario,
    policy: Arc<RetryPolicy>,
    now: Tick,
    events: Events<Event>,
    clients: Vec<Client>,
    servers: Vec<Server<'s>>,
    /// The proxies before them, where these have something to do.
    gates: Vec<Gate<'s>>,
    requests: Slots<Request>,
    attempts: Slots<Attempt>,
    attempts_so_far: u64,
    /// What happens to the fleet and its clients.
    world: SeededRng,
    /// What the proxies' decisions are made with.
    chance: SeededRng,
    report: Report,
}

impl<'s> Engine<'s> {
    pub(super) fn new(scenario: &'s Scenario, overload: Option<&'s Overload>, seed: u64) -> Self {
        let mut world = SeededRng::new(seed);
        let chance = SeededRng::new(world.next_u64());
        let mut engine = Self {
            scenario,
            policy: Arc::new(scenario.policies.retry.clone()),
            now: Tick::ZERO,
            events: Events::new(),
            clients: (0..scenario.clients).map(|client| Client::new(scenario, client)).collect(),
            servers: scenario.instances.iter().map(Server::new).collect(),
            gates: overload.map_or_else(Vec::new, |config| {
                scenario.instances.iter().map(|_| Gate::new(config)).collect()
            }),
            requests: Slots::default(),
            attempts: Slots::default(),
            attempts_so_far: 0,
            world,
            chance,
            report: Report::new(seed, scenario.instances.len()),
        };
        for client in 0..scenario.clients {
            let gap = engine.gap(client);
            engine.plan(gap, Event::Arrives(client));
            if let Some(burst) = scenario.arrivals.burst {
                let first = burst.every.mul_f64(exponential(&mut engine.world));
                engine.plan(first, Event::Burst(client));
            }
        }
        for (instance, plan) in scenario.instances.iter().enumerate() {
            if !plan.joins.is_zero() {
                engine.plan(plan.joins, Event::Joins);
            }
            for (at, phase) in plan.phases.iter().enumerate() {
                engine.plan(phase.at, Event::Phase(instance, at));
            }
        }
        engine
    }

    pub(super) fn run(mut self) -> Report {
        while let Some((at, event)) = self.events.next() {
            self.now = at;
            self.happens(event);
        }
        self.expect_nothing_left();
        self.report.finish();
        self.report
    }

    fn plan(&mut self, after: Duration, event: Event) {
        self.events.plan(self.now.after(after), None, event);
    }

    /// A way through the network from now.
    fn plan_beyond_network(&mut self, event: Event) {
        self.events.plan(self.now.after(self.scenario.network), Some(Row::Network), event);
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Arrives(client) => self.arrives(client),
            Event::Burst(client) => self.burst(client),
            Event::Again(request) => self.attempt(request),
            Event::Hedges(first) => self.hedges(first),
            Event::Reaches(attempt) => self.reaches(attempt),
            Event::Done(instance, attempt, life) => self.done(instance, attempt, life),
            Event::GivesUp(instance, attempt) => {
                if self.gates[instance].gave_up(attempt, self.now) {
                    self.plan_beyond_network(Event::Hears(attempt, Heard::Shed));
                }
            }
            Event::Hears(attempt, heard) => self.hears(attempt, heard),
            Event::Joins => {
                let (scenario, now) = (self.scenario, self.now);
                self.clients.iter_mut().for_each(|client| client.hears_of(scenario, now));
            }
            Event::Phase(instance, at) => {
                let state = self.scenario.instances[instance].phases[at].state;
                for attempt in self.servers[instance].becomes(state) {
                    self.abandoned(instance, attempt);
                    self.plan_beyond_network(Event::Hears(attempt, Heard::Reset));
                }
            }
        }
    }

    /// The time to a client's next request.
    fn gap(&mut self, client: usize) -> Duration {
        let arrivals = &self.scenario.arrivals;
        let times = arrivals.burst.filter(|_| self.clients[client].bursting).map_or(1.0, |burst| burst.times);
        #[expect(clippy::cast_precision_loss, reason = "a count of proxies")]
        let share = times / self.scenario.clients as f64;
        arrivals.gap(self.now.since(Tick::ZERO), share, exponential(&mut self.world))
    }

    fn burst(&mut self, client: usize) {
        let Some(burst) = self.scenario.arrivals.burst else { return };
        let began = !self.clients[client].bursting;
        self.clients[client].bursting = began;
        let lasts = if began { burst.lasts } else { burst.every.mul_f64(exponential(&mut self.world)) };
        if self.now.after(lasts) < Tick::ZERO.after(self.scenario.duration) {
            self.plan(lasts, Event::Burst(client));
        }
    }

    fn arrives(&mut self, client: usize) {
        let gap = self.gap(client);
        if self.now.after(gap) < Tick::ZERO.after(self.scenario.duration) {
            self.plan(gap, Event::Arrives(client));
        }
        let work = self.spread().draw(&mut self.world);
        let retry = Retry::begin(Some(&self.policy), &self.clients[client].cluster, self.now);
        let priority = self.priority();
        let request = Request {
            client,
            arrived: self.now,
            retry,
            work,
            priority,
            is_let_through: false,
            permit: None,
            hedging: None,
        };
        let request = self.requests.add(request);
        self.report.requests += 1;
        self.attempt(request);
    }

    /// Nothing is drawn where all are alike, so that traffic does not depend on it.
    fn priority(&mut self) -> Priority {
        match self.scenario.arrivals.high {
            0 => Priority::Default,
            high if self.world.below(100) < high.into() => Priority::High,
            _ => Priority::Low,
        }
    }

    /// Of the request and not of the instance, so that it does not depend on who is picked.
    fn spread(&self) -> Spread {
        self.scenario.instances.first().map_or(Spread::Constant, |instance| instance.spread)
    }

    fn deadline(&self, request: &Request) -> Tick {
        request.arrived.after(self.scenario.policies.timeout)
    }

    fn attempt(&mut self, request: usize) {
        let (id, deadline) = (request, self.deadline(self.requests.get(request)));
        let request = self.requests.get_mut(id);
        let caller = Caller {
            is_exempt: request.priority >= Priority::High,
            is_let_through: std::mem::take(&mut request.is_let_through),
        };
        let cluster = &self.clients[request.client].cluster;
        let wanted = Wanted { tried: request.retry.tried(), ..Wanted::default() };
        let (picked, tickets) = match calls::begin(cluster, caller, &wanted, self.now, &mut self.chance) {
            Ok(begun) => begun,
            Err(cause) => return self.refused(id, cause),
        };
        let held = calls::check_call(cluster, &picked.endpoint, self.now)
            .and_then(|()| calls::check_ejection(cluster, &picked, self.now));
        if let Err(why) = held {
            self.report.broken(|| why);
        }
        let Picked { endpoint: picked, trial } = picked;
        let first = self.send(id, deadline, picked, (trial, tickets, None));
        self.may_hedge(id, deadline, first);
    }

    /// A proxy refuses an attempt itself: nobody hears of it.
    fn refused(&mut self, id: usize, cause: Cause) {
        let request = self.requests.get_mut(id);
        request.permit = None;
        request.retry.not_made();
        let caller = Caller { is_exempt: request.priority >= Priority::High, is_let_through: false };
        let cluster = &self.clients[request.client].cluster;
        if let Err(why) = calls::check_refusal(cluster, cause, caller, self.now) {
            self.report.broken(|| why);
        }
        match cause {
            Cause::AdmissionControl => self.report.held_back += 1,
            _ => self.report.refused += 1,
        }
        self.ended(id, false);
    }

    /// What comes after the first attempt of a request is a retry and is not hedged.
    fn may_hedge(&mut self, id: usize, deadline: Tick, first: AttemptId) {
        let Some(policy) = &self.scenario.policies.hedge else { return };
        let request = self.requests.get_mut(id);
        let cluster = &self.clients[request.client].cluster;
        request.hedging = match request.retry.retries() {
            0 => Hedging::begin(policy, cluster, deadline, first, self.now),
            _ => None,
        };
        if let Some(delay) = request.hedging.as_ref().and_then(|hedging| hedging.hedge.delay()) {
            self.plan(delay, Event::Hedges(first));
        }
    }

    fn hedges(&mut self, first: AttemptId) {
        let Some(attempt) = self.awaited(first) else { return };
        let (id, tried) = (attempt.request, attempt.endpoint.id);
        let deadline = self.deadline(self.requests.get(id));
        let Some(hedging) = &mut self.requests.get_mut(id).hedging else { return };
        let retries = self.policy.budget;
        let Some(mut hedged) = hedging.admit(tried, deadline, retries, self.now, &mut self.chance) else {
            return;
        };
        self.report.hedges += 1;
        let endpoint = Arc::clone(&hedged.endpoint);
        let cluster = &self.clients[self.requests.get(id).client].cluster;
        if let Err(why) = calls::check_call(cluster, &endpoint, self.now) {
            self.report.broken(|| why);
        }
        let tickets = Tickets::of_hedge(&mut hedged);
        let second = self.send(id, deadline, endpoint, (None, tickets, Some(hedged)));
        if let Some(hedging) = &mut self.requests.get_mut(id).hedging {
            hedging.second = Some(second);
        }
    }

    fn send(
        &mut self,
        id: usize,
        deadline: Tick,
        picked: Arc<Endpoint>,
        (trial, tickets, hedged): (Option<Trial>, Tickets, Option<Hedged>),
    ) -> AttemptId {
        self.attempts_so_far += 1;
        let attempt = Attempt {
            number: self.attempts_so_far,
            request: id,
            began: self.now,
            _in_flight: picked.begin(),
            endpoint: picked,
            trial,
            tickets,
            leg: if hedged.is_some() { Leg::Second } else { Leg::First },
            _hedged: hedged,
        };
        self.report.attempts += 1;
        if self.is_measured(self.now) {
            self.report.loads[instance_of(&attempt.endpoint)] += 1;
        }
        let number = attempt.number;
        let place = u32::try_from(self.attempts.add(attempt)).expect("fewer attempts than 2^32");
        let attempt = AttemptId { place, number };
        let per_try = self.policy.per_try_timeout.unwrap_or(Duration::MAX);
        let time_out = self.now.after(per_try.min(deadline.since(self.now)));
        self.events.plan(time_out, Some(Row::TimeOut), Event::Hears(attempt, Heard::TimedOut));
        self.plan_beyond_network(Event::Reaches(attempt));
        attempt
    }

    fn is_measured(&self, at: Tick) -> bool {
        at >= Tick::ZERO.after(self.scenario.warm_up)
    }

    fn awaited(&self, id: AttemptId) -> Option<&Attempt> {
        self.attempts.find(id.place as usize).filter(|attempt| attempt.number == id.number)
    }

    fn reaches(&mut self, id: AttemptId) {
        let Some(attempt) = self.awaited(id) else { return };
        let instance = instance_of(&attempt.endpoint);
        let priority = self.requests.get(attempt.request).priority;
        let Some(gate) = self.gates.get_mut(instance) else { return self.works(instance, id) };
        let (moves, waits) = gate.enter(id, priority, self.now);
        if waits && let Some((_, queue)) = &self.scenario.policies.overload {
            self.plan(queue.max_wait, Event::GivesUp(instance, id));
        }
        self.moves(instance, moves);
    }

    /// What an instance's proxy makes of those who were at it.
    fn moves(&mut self, instance: usize, moves: Moves) {
        for away in moves.away {
            self.plan_beyond_network(Event::Hears(away, Heard::Shed));
        }
        for on in moves.on {
            self.works(instance, on);
        }
        if let Err(why) = self.gates[instance].holds() {
            self.report.broken(|| why);
        }
    }

    /// Whoever sent this does not wait for it any more, or will not hear of it.
    fn abandoned(&mut self, instance: usize, id: AttemptId) {
        if let Some(gate) = self.gates.get_mut(instance) {
            let moves = gate.abandoned(id, self.now, &mut self.chance);
            self.moves(instance, moves);
        }
    }

    /// An attempt comes to the instance itself.
    fn works(&mut self, instance: usize, id: AttemptId) {
        let Some(attempt) = self.awaited(id) else { return self.abandoned(instance, id) };
        let work = self.requests.get(attempt.request).work;
        let server = &mut self.servers[instance];
        let network = self.scenario.network;
        match server.take(id, work) {
            Taken::Served(time) => {
                let life = server.life;
                self.plan(time, Event::Done(instance, id, life));
            }
            Taken::Queued | Taken::Hangs => {}
            Taken::Failed(after) => {
                self.plan(after + network, Event::Hears(id, Heard::Status503));
                self.abandoned(instance, id);
            }
            Taken::Refused => {
                self.plan_beyond_network(Event::Hears(id, Heard::Refused));
                self.abandoned(instance, id);
            }
        }
    }

    fn done(&mut self, instance: usize, id: AttemptId, life: u32) {
        if self.servers[instance].life != life {
            return;
        }
        self.plan_beyond_network(Event::Hears(id, Heard::Ok));
        let attempts = &self.attempts;
        let is_awaited =
            |id: AttemptId| attempts.find(id.place as usize).is_some_and(|a| a.number == id.number);
        if let Some((next, time)) = self.servers[instance].done(id, is_awaited) {
            self.plan(time, Event::Done(instance, next, life));
        }
        if let Some(gate) = self.gates.get_mut(instance) {
            let moves = gate.answered(id, self.now, &mut self.chance);
            self.moves(instance, moves);
        }
    }

    fn hears(&mut self, id: AttemptId, heard: Heard) {
        if self.awaited(id).is_none() {
            return;
        }
        let mut attempt = self.attempts.take(id.place as usize);
        if heard == Heard::TimedOut {
            self.abandoned(instance_of(&attempt.endpoint), id);
        }
        let request = self.requests.get_mut(attempt.request);
        request.permit = None;
        let cluster = Arc::clone(&self.clients[request.client].cluster);
        let outcome = match heard {
            Heard::Ok => AttemptOutcome::Success,
            Heard::Shed => AttemptOutcome::Overloaded,
            Heard::Status503 | Heard::Reset | Heard::Refused | Heard::TimedOut => AttemptOutcome::Failure,
        };
        let answer = Answer::new(outcome, self.now.since(attempt.began));
        let trial = attempt.trial.take();
        let tried = trial.and_then(|trial| cluster.tried(trial, &answer, self.now));
        let mut shifts = cluster.record(&attempt.endpoint, &answer, self.now);
        shifts.extend(tried);
        std::mem::take(&mut attempt.tickets).ended(&answer, self.now, &mut self.chance);
        self.check_ejections(&cluster, &attempt.endpoint, &shifts);
        if let Err(why) = calls::check_fastest(&cluster, &answer, self.now) {
            self.report.broken(|| why);
        }
        let failure = match heard {
            Heard::Ok => None,
            Heard::Status503 | Heard::Shed => Some(AttemptFailure::Status(503)),
            Heard::Reset => Some(AttemptFailure::Reset),
            Heard::Refused => Some(AttemptFailure::Connect),
            Heard::TimedOut => Some(AttemptFailure::PerTryTimeout),
        };
        let (id, endpoint, leg, began) = (attempt.request, attempt.endpoint.id, attempt.leg, attempt.began);
        drop(attempt);
        match self.outcome(id, (leg, began), failure.map(|failure| (failure, endpoint))) {
            // The other one is waited for.
            None => {}
            Some(None) => {
                self.requests.get_mut(id).retry.ended(true);
                self.give_up_other(id, leg);
                self.ended(id, true);
            }
            Some(Some((failure, endpoint))) => self.failed(id, endpoint, failure),
        }
    }

    /// What becomes of a request by the end of an attempt, or nothing yet; and what must hold of its race and of what hedges go by.
    fn outcome(&mut self, id: usize, (leg, began): (Leg, Tick), end: End) -> Option<End> {
        let Some(hedging) = &mut self.requests.get_mut(id).hedging else { return Some(end) };
        let outcome = hedging.ended(leg, end);
        if leg == Leg::First && end.is_none() {
            hedging.hedge.first_took(self.now.since(began), self.now);
        }
        let held = hedging.hedge.holds(self.now);
        match outcome.and_then(|outcome| held.map(|()| outcome)) {
            Ok(outcome) => outcome,
            Err(why) => {
                self.report.broken(|| why);
                Some(end)
            }
        }
    }

    /// Counts the ejections that came of an answer, and checks what must hold of them and of the endpoint.
    fn check_ejections(&mut self, cluster: &Cluster, heard_of: &Endpoint, shifts: &[Shift]) {
        if let Err(why) = heard_of.stats.standing.holds() {
            self.report.broken(|| why);
        }
        for ejection in shifts.iter().filter_map(|shift| shift.ejection) {
            self.report.ejections += 1;
            let config = cluster.outlier_detection.as_ref().expect("something ejected");
            let time = ejection.until.since(self.now);
            let held = invariants::ejection(config, &cluster.endpoints())
                .and_then(|()| invariants::ejection_time(config, time));
            if let Err(why) = held {
                self.report.broken(|| why);
            }
        }
    }

    /// An attempt has won; the other one, if it runs, is given up. Its endpoint has neither failed nor done well.
    fn give_up_other(&mut self, id: usize, winner: Leg) {
        let Some(other) = self.requests.get(id).hedging.as_ref().and_then(|hedging| hedging.other(winner))
        else {
            return;
        };
        if self.awaited(other).is_none() {
            return;
        }
        let attempt = self.attempts.take(other.place as usize);
        let request = self.requests.get(id);
        let waited = self.now.since(attempt.began);
        self.clients[request.client].cluster.outlasted(&attempt.endpoint, waited, self.now);
        if let (Leg::First, Some(hedging)) = (attempt.leg, &request.hedging) {
            hedging.hedge.first_took(waited, self.now);
        }
        self.abandoned(instance_of(&attempt.endpoint), other);
    }

    fn failed(&mut self, id: usize, endpoint: u64, failure: AttemptFailure) {
        let deadline = self.deadline(self.requests.get(id));
        let request = self.requests.get_mut(id);
        let tried: Vec<_> = request.retry.tried().iter().copied().chain([endpoint]).collect();
        let facts = RequestFacts {
            idempotent: true,
            sent: failure != AttemptFailure::Connect,
            replayable: true,
            nested: false,
            deadline: Some(deadline),
            push_back: None,
            tried: &tried,
        };
        match request.retry.after(failure, Some(endpoint), &facts, self.now, &mut self.chance, &mut NoReasons)
        {
            Decision::Again { after, permit } => {
                request.permit = permit;
                // An answer is given up only for an attempt that is sure to be made.
                if matches!(failure, AttemptFailure::Status(_)) {
                    let cluster = &self.clients[request.client].cluster;
                    let is_exempt = request.priority >= Priority::High;
                    if let Err(cause) = calls::may_repeat(cluster, is_exempt, self.now, &mut self.chance) {
                        return self.refused(id, cause);
                    }
                    request.is_let_through = true;
                }
                self.report.retries += 1;
                self.plan(after, Event::Again(id));
            }
            Decision::Stop(_) => self.ended(id, false),
        }
    }

    fn ended(&mut self, request: usize, well: bool) {
        let request = self.requests.take(request);
        let measured = self.is_measured(request.arrived);
        self.report.ended += 1;
        if !well {
            self.report.failures += u64::from(measured);
        }
        if request.priority != Priority::Default {
            let high = request.priority == Priority::High;
            let arrived = request.arrived.since(Tick::ZERO);
            self.report.answers.push(Answered { arrived, took: self.now.since(request.arrived), high, well });
        }
        if measured {
            let took = if well { self.now.since(request.arrived) } else { self.scenario.policies.timeout };
            self.report.took(took);
        }
    }

    /// Every request has ended once, and nothing is counted that is over.
    fn expect_nothing_left(&mut self) {
        let (begun, ended) = (self.report.requests, self.report.ended);
        if begun != ended {
            self.report.broken(|| format!("{begun} requests began and {ended} ended"));
        }
        if self.gates.iter().any(|gate| !gate.is_empty()) {
            self.report.broken(|| "somebody never left a gate".to_owned());
        }
        let clusters = self.clients.iter().map(|client| &client.cluster);
        let Report { held_back, refused, .. } = self.report;
        if let Err(why) = calls::check_counts(clusters, held_back, refused, self.now) {
            self.report.broken(|| why);
        }
        for client in &self.clients {
            if let Err(why) = calls::check_nothing_left(&client.cluster) {
                self.report.broken(|| why);
            }
        }
    }
}

/// Things that come and go; the place of one that is gone is used again.
struct Slots<T> {
    all: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { all: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    fn add(&mut self, thing: T) -> usize {
        let place = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            self.all.len() - 1
        });
        self.all[place] = Some(thing);
        place
    }

    fn find(&self, place: usize) -> Option<&T> {
        self.all.get(place)?.as_ref()
    }

    fn get(&self, place: usize) -> &T {
        self.find(place).expect("it is under way")
    }

    fn get_mut(&mut self, place: usize) -> &mut T {
        self.all[place].as_mut().expect("it is under way")
    }

    fn take(&mut self, place: usize) -> T {
        self.free.push(place);
        self.all[place].take().expect("it is under way")
    }
}
