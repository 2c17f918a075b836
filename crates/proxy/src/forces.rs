//! Breakers that an operator has forced. Each holds until its own end, by this proxy's clock: new snapshots find it again
//! in its services, and that the control plane is away changes nothing.

use std::time::Duration;

use meshwork_base::{Clock, Tick};
use meshwork_decision::{Cluster, ForcedState, Snapshot};
use meshwork_messages::v1::{self, breaker_force::State};
use meshwork_telemetry::{MetricsRegistry, inventory};

/// One that holds.
#[derive(Debug)]
struct Force {
    service: String,
    /// 0: every port.
    port: u32,
    state: ForcedState,
    until: Tick,
    /// As it was said: what is said again is no news.
    until_unix_ms: u64,
}

impl Force {
    fn means(&self, cluster: &Cluster) -> bool {
        // A service's name speaks of its subsets too.
        let named = *self.service == *cluster.key.service || *self.service == *cluster.name;
        named && (self.port == 0 || self.port == u32::from(cluster.key.port))
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
            let known =
                self.0.iter().position(|held| held.service == force.service && held.port == force.port);
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
            let held = Force {
                service: force.service.clone(),
                port: force.port,
                state,
                until,
                until_unix_ms: force.until_unix_ms,
            };
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
            // What is said of one port goes before what is said of all.
            let held = self.0.iter().filter(|force| force.until > now && force.means(cluster));
            if let Some(force) = held.max_by_key(|force| force.port) {
                cluster.force_breaker(Some((force.state, force.until)));
            }
        }
    }

    /// Forgets what is over. It has ended in the breakers by itself.
    pub(crate) fn tidy(&mut self, snapshot: &Snapshot, now: Tick, metrics: &MetricsRegistry) {
        let mut ended = self.0.extract_if(.., |force| force.until <= now).peekable();
        let any = ended.peek().is_some();
        ended.for_each(|force| changed(&force, "expired", metrics));
        if any {
            // One of all ports may have stood behind one of a single port.
            self.apply(snapshot, now);
        }
    }
}

fn release(ended: &Force, snapshot: &Snapshot) {
    let meant = snapshot.clusters().filter(|cluster| ended.means(cluster));
    meant.for_each(|cluster| cluster.force_breaker(None));
}

fn changed(force: &Force, what: &str, metrics: &MetricsRegistry) {
    let (service, port) = (&*force.service, force.port);
    let (state, cause) = match what {
        "released" | "expired" => ("as_policy_says", what),
        state => (state, "forced"),
    };
    tracing::info!(service, port, state, cause, "circuit breaker changed");
    metrics.counter(&inventory::BREAKER_CHANGES, &[service, state, cause]).increment();
}
