//! What operators have forced: kept until its end, and told to every proxy that understands it.

use std::collections::BTreeMap;
use std::time::Duration;

use meshwork_messages::v1::{BreakerForce, breaker_force::State};

/// All that stands, by service and port, or route.
#[derive(Debug, Default)]
pub(super) struct Forces(BTreeMap<Key, BreakerForce>);

/// Service and port, or route.
type Key = (String, u32, String);

fn key(force: &BreakerForce) -> Key {
    (force.service.clone(), force.port, force.route.clone())
}

impl Forces {
    /// Takes one. What is not forced any more is remembered until it would have ended, for proxies that are away.
    pub(super) fn insert(&mut self, force: BreakerForce, wall: Duration) {
        self.tidy(wall);
        let key = key(&force);
        let longest = self.0.get(&key).map_or(0, |before| before.until_unix_ms);
        let kept = match force.state() {
            State::None => BreakerForce { until_unix_ms: longest, ..force },
            State::Open | State::Closed => force,
        };
        self.0.insert(key, kept);
        self.tidy(wall);
    }

    /// Takes what stood before a restart, as it stood.
    pub(super) fn restore(&mut self, forces: Vec<BreakerForce>, wall: Duration) {
        let keyed = forces.into_iter().map(|force| (key(&force), force));
        self.0.extend(keyed);
        self.tidy(wall);
    }

    /// Forgets what is over.
    fn tidy(&mut self, wall: Duration) {
        self.0.retain(|_, force| u128::from(force.until_unix_ms) > wall.as_millis());
    }

    /// All that stands.
    pub(super) fn all(&self) -> Vec<BreakerForce> {
        self.0.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn force(port: u32, state: State, until_unix_ms: u64) -> BreakerForce {
        BreakerForce {
            service: "ns/a".into(),
            port,
            state: state.into(),
            until_unix_ms,
            ..Default::default()
        }
    }

    #[test]
    fn what_was_taken_back_is_told_until_it_would_have_ended() {
        let mut forces = Forces::default();
        let at = Duration::from_millis;
        forces.insert(force(0, State::Open, 5_000), at(1_000));
        forces.insert(force(80, State::Closed, 2_000), at(1_000));
        assert_eq!(forces.all().len(), 2);
        forces.insert(force(0, State::None, 0), at(1_500));
        assert_eq!(forces.all()[0], force(0, State::None, 5_000));
        forces.insert(force(81, State::None, 0), at(2_000));
        assert_eq!(
            forces.all(),
            [force(0, State::None, 5_000)],
            "the other is over, the last was never there"
        );
        forces.insert(force(0, State::Closed, 6_000), at(5_500));
        assert_eq!(forces.all(), [force(0, State::Closed, 6_000)]);
        let of = |route: &str| BreakerForce {
            service: String::new(),
            route: route.into(),
            ..force(0, State::Open, 6_000)
        };
        forces.insert(of("ns/a"), at(5_500));
        forces.insert(of("ns/a/pay"), at(5_500));
        assert_eq!(forces.all().len(), 3, "a route is no service, and a rule no route");
        let mut again = Forces::default();
        again.restore(forces.all(), at(5_500));
        assert_eq!(again.all(), forces.all());
    }

    #[test]
    fn what_stood_before_a_restart_stands_again_unless_it_is_over() {
        let mut forces = Forces::default();
        // What was taken back too: proxies that were away still have it.
        let stood =
            vec![force(0, State::Open, 5_000), force(80, State::None, 4_000), force(81, State::Closed, 900)];
        forces.restore(stood.clone(), Duration::from_millis(1_000));
        assert_eq!(forces.all(), stood[..2]);
    }
}
