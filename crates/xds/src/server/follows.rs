//! Traces that proxies are to keep, as other proxies say; bounded, since each wakes all streams.

use meshwork_base::Tick;
use meshwork_messages::v1::Follow;

/// So many a second are passed on, and so many at once: in a flood of failures some stand for all.
const PAUSE: u64 = 20_000_000;
const AT_ONCE: u64 = 64;
/// Said and not passed on yet.
const WAITING: usize = 64;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Follows {
    said: Vec<Follow>,
    /// When the next one may be passed on, in nanoseconds.
    next: u64,
}

impl Follows {
    pub(super) fn add(&mut self, follow: Follow) {
        if self.said.len() < WAITING {
            self.said.push(follow);
        }
    }

    /// Those that are passed on now; the others are forgotten.
    pub(super) fn take(&mut self, now: Tick) -> Vec<Follow> {
        let now = now.as_nanos();
        let mut said = std::mem::take(&mut self.said);
        said.retain(|_| {
            let is_in_time = self.next <= now + AT_ONCE * PAUSE;
            if is_in_time {
                self.next = self.next.max(now) + PAUSE;
            }
            is_in_time
        });
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_flood_some_stand_for_all() {
        let mut follows = Follows::default();
        let mut passed = |millis: u64| {
            (0..10).for_each(|_| follows.add(Follow::default()));
            follows.take(Tick::from_nanos(10_000_000_000 + millis * 1_000_000)).len()
        };
        let at_once: usize = (0..100).map(|_| passed(0)).sum();
        assert!((64..=66).contains(&at_once), "{at_once}");
        let later: usize = (0..1_000).map(&mut passed).sum();
        assert!((49..=51).contains(&later), "{later} in a second");
        (0..1_000).for_each(|_| follows.add(Follow::default()));
        assert_eq!(follows.said.len(), WAITING);
    }
}
