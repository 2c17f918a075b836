//! What goes on happening is said now and then, with how often it has happened, so that a log stays readable and small when
//! something runs out.

use std::time::Duration;

use meshwork_base::Tick;

/// How often it is said at most.
const PAUSE: Duration = Duration::from_secs(5);

/// One thing that may go on happening.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seldom {
    said: Option<Tick>,
    times: u64,
}

impl Seldom {
    /// It has happened. Gives how often since it was said last, if it is to be said now.
    pub(crate) fn happened(&mut self, now: Tick) -> Option<u64> {
        self.times += 1;
        if self.said.is_some_and(|said| now.since(said) < PAUSE) {
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_said_at_once_and_then_now_and_then_with_how_often_it_has_happened() {
        let mut seldom = Seldom::default();
        let start = Tick::default();
        // Each 20 ms for eleven seconds.
        let said: Vec<(u64, u64)> = (0..550)
            .map(|step| 20 * step)
            .filter_map(|ms| Some((ms, seldom.happened(start.after(Duration::from_millis(ms)))?)))
            .collect();
        assert_eq!(said, [(0, 1), (5_000, 250), (10_000, 250)]);
    }
}
