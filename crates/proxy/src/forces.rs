//! Breakers that an operator has forced, and what is said of one that is forced. Each holds until its own end, by this proxy's clock: new snapshots find it again
//! in its services and routes, and that the control plane is away changes nothing.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::clock::rfc3339_millis;
use meshwork_base::{Clock, Tick};
use meshwork_decision::{Cause, Cluster, ForcedBy, ForcedState, RouteBreaker, Snapshot};
use meshwork_messages::v1::{self, breaker_force::State};
use meshwork_telemetry::{MetricsRegistry, inventory};

use crate::error::Failure;

/// One that holds.
#[derive(Debug)]
struct Force {
    of: Of,
    state: ForcedState,
    until: Tick,
    /// As it was said: what is said again is no news.
    until_unix_ms: u64,
}

/// Whose breakers are forced.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Of {
    /// A service's; port 0: every port.
    Service(String, u32),
    /// A route's and those of its rules, or one rule's.
    Route(String),
}

impl Of {
    fn said(force: &v1::BreakerForce) -> Self {
        match &*force.route {
            "" => Self::Service(force.service.clone(), force.port),
            route => Self::Route(route.to_owned()),
        }
    }

    fn means(&self, cluster: &Cluster) -> bool {
        let Self::Service(service, port) = self else { return false };
        // A service's name speaks of its subsets too.
        let named = **service == *cluster.key.service || **service == *cluster.name;
        named && (*port == 0 || *port == u32::from(cluster.key.port))
    }

    fn means_route(&self, breaker: &RouteBreaker) -> bool {
        let Self::Route(route) = self else { return false };
        let rest = breaker.name.strip_prefix(&**route);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// What is said of less goes before what is said of more: a subset before its service, a port before all.
    fn width(&self) -> (usize, u32) {
        match self {
            Self::Service(service, port) => (service.len(), *port),
            Self::Route(route) => (route.len(), 0),
        }
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Forces(Vec<Force>);

impl Forces {
    /// Takes what the control plane says. What it does not speak of holds on.
    pub(crate) fn take(
        &mut self,
        said: &[v1::BreakerForce],
        snapshot: &Snapshot,
        clock: &dyn Clock,
        metrics: &MetricsRegistry,
    ) {
        let (now, wall) = (clock.now(), clock.wall());
        for force in said {
            let of = Of::said(force);
            let known = self.0.iter().position(|held| held.of == of);
            let state = match force.state() {
                State::Open => ForcedState::Open,
                State::Closed => ForcedState::Closed,
                State::None => {
                    if let Some(at) = known {
                        let ended = self.0.remove(at);
                        release(&ended, snapshot);
                        changed(&ended, "released", metrics);
                    }
                    continue;
                }
            };
            let is_news = known.is_none_or(|at| {
                self.0[at].state != state || self.0[at].until_unix_ms != force.until_unix_ms
            });
            let left = Duration::from_millis(force.until_unix_ms).saturating_sub(wall);
            if !is_news || left.is_zero() {
                continue;
            }
            let until = now.after(left);
            let held = Force { of, state, until, until_unix_ms: force.until_unix_ms };
            changed(&held, held.state.state().as_str(), metrics);
            match known {
                Some(at) => self.0[at] = held,
                None => self.0.push(held),
            }
        }
        self.apply(snapshot, now);
    }

    /// Puts all that holds into effect on the services of a snapshot.
    pub(crate) fn apply(&self, snapshot: &Snapshot, now: Tick) {
        if self.0.is_empty() {
            return;
        }
        for cluster in snapshot.clusters() {
            let forced = self.held(now, |of| of.means(cluster));
            if !forced.is_empty() {
                cluster.force_breaker(forced);
            }
        }
        for breaker in snapshot.route_breakers() {
            let forced = self.held(now, |of| of.means_route(breaker));
            if !forced.is_empty() {
                breaker.force(forced);
            }
        }
    }

    /// What holds of those that mean the same, the narrowest first: when it ends, the next one holds at once.
    fn held(&self, now: Tick, means: impl Fn(&Of) -> bool) -> Vec<(ForcedState, Tick)> {
        let mut held: Vec<_> = self.0.iter().filter(|force| force.until > now && means(&force.of)).collect();
        held.sort_by_key(|force| std::cmp::Reverse(force.of.width()));
        held.into_iter().map(|force| (force.state, force.until)).collect()
    }

    /// Forgets what is over. It has ended in the breakers by itself, and what stood behind it holds there.
    pub(crate) fn tidy(&mut self, now: Tick, metrics: &MetricsRegistry) {
        self.0
            .extract_if(.., |force| force.until <= now)
            .for_each(|force| changed(&force, "expired", metrics));
    }
}

/// A call that a limit of its service, or a circuit breaker, has refused; with who keeps that open where its calls do not.
#[cold]
pub(crate) fn refusal(cluster: &Cluster, cause: Cause, now: Tick, clock: &dyn Clock) -> Failure {
    let forced = if cause == Cause::CircuitBreaker { of_service(cluster, now, clock) } else { None };
    Failure::local(cause).because(forced.map_or_else(|| Arc::clone(&cluster.key.service), Arc::from))
}

/// Who forces the circuit breaker of a service open, where somebody does. Minutes later it is asked.
pub(crate) fn of_service(cluster: &Cluster, now: Tick, clock: &dyn Clock) -> Option<String> {
    cluster.forced_open(now).map(|by| told(&cluster.key.service, by, now, clock))
}

/// Whose breaker that of a route is, and who forces it open, where somebody does.
pub(crate) fn of_route(breaker: &RouteBreaker, now: Tick, clock: &dyn Clock) -> String {
    let whose = breaker.to_string();
    breaker.forced_open(now).map_or(whose.clone(), |by| told(&whose, by, now, clock))
}

fn told(whose: &str, by: ForcedBy, now: Tick, clock: &dyn Clock) -> String {
    match by {
        ForcedBy::Policy => format!("{whose}: {}", ForcedBy::POLICY),
        ForcedBy::Operator(until) => {
            let end = rfc3339_millis(clock.wall() + until.since(now));
            format!("{whose}: {} until {end}", ForcedBy::OPERATOR)
        }
    }
}

fn release(ended: &Force, snapshot: &Snapshot) {
    let meant = snapshot.clusters().filter(|cluster| ended.of.means(cluster));
    meant.for_each(|cluster| cluster.force_breaker(None));
    let meant = snapshot.route_breakers().iter().filter(|breaker| ended.of.means_route(breaker));
    meant.for_each(|breaker| breaker.force(None));
}

fn changed(force: &Force, what: &str, metrics: &MetricsRegistry) {
    let (state, cause) = match what {
        "released" | "expired" => ("as_policy_says", what),
        state => (state, "forced"),
    };
    let (metric, of) = match &force.of {
        Of::Service(service, port) => {
            let port = (*port > 0).then_some(*port);
            tracing::info!(service, port, state, cause, "circuit breaker changed");
            (&inventory::BREAKER_CHANGES, service)
        }
        Of::Route(route) => {
            tracing::info!(route, state, cause, "circuit breaker of a route changed");
            (&inventory::ROUTE_BREAKER_CHANGES, route)
        }
    };
    metrics.counter(metric, &[of, state, cause]).increment();
}

#[cfg(test)]
mod tests;
