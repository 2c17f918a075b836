//! What goes on happening is said now and then, with how often it has happened, so that a log stays readable and small when
//! something runs out.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Tick;
use parking_lot::Mutex;

/// How often it is said at most.
const PAUSE: Duration = Duration::from_secs(5);

/// One thing that may go on happening. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub struct Seldom(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    said: Option<Tick>,
    /// How often it has happened since then.
    times: u64,
}

/// What is to be done when it has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Say how often.
    Say(u64),
    /// Look for [`Seldom::rest`] after this time.
    Look(Duration),
    /// Somebody looks already.
    Nothing,
}

impl Seldom {
    /// It has happened, and is said with how often since it was said last: now, or when it may be said again, whether it
    /// goes on until then or not. To be called within the runtime.
    pub fn happened(&self, now: Tick, say: impl FnOnce(u64) + Send + 'static) {
        match self.takes(now) {
            Next::Say(times) => say(times),
            Next::Look(after) => {
                let seldom = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    if let Some(times) = seldom.rest(now.after(after)) {
                        say(times);
                    }
                });
            }
            Next::Nothing => {}
        }
    }

    fn takes(&self, now: Tick) -> Next {
        let mut state = self.0.lock();
        let left = state.said.map_or(Duration::ZERO, |said| PAUSE.saturating_sub(now.since(said)));
        state.times += 1;
        if left.is_zero() {
            state.said = Some(now);
            return Next::Say(std::mem::take(&mut state.times));
        }
        if state.times == 1 { Next::Look(left) } else { Next::Nothing }
    }

    /// How often it has happened and was not said, if somebody who came later has not said it.
    fn rest(&self, now: Tick) -> Option<u64> {
        let mut state = self.0.lock();
        let times = std::mem::take(&mut state.times);
        (times > 0).then(|| {
            state.said = Some(now);
            times
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_said_at_once_and_then_now_and_then_and_nothing_is_left_unsaid() {
        let (seldom, mut looks, mut said) = (Seldom::default(), None, Vec::new());
        // Each 30 ms for eleven seconds, and once more after a minute.
        for ms in 0..=60_000_u64 {
            let now = Tick::default().after(Duration::from_millis(ms));
            if looks == Some(now) {
                looks = None;
                said.extend(seldom.rest(now).map(|times| (ms, times)));
            }
            if ms != 60_000 && (ms > 11_000 || ms % 30 != 0) {
                continue;
            }
            match seldom.takes(now) {
                Next::Say(times) => said.push((ms, times)),
                Next::Look(after) => looks = Some(now.after(after)),
                Next::Nothing => {}
            }
        }
        assert_eq!(said, [(0, 1), (5_000, 166), (10_000, 167), (15_000, 33), (60_000, 1)]);
    }

    #[test]
    fn whoever_comes_after_the_pause_says_what_was_not_said_and_nobody_says_it_twice() {
        let seldom = Seldom::default();
        let at = |ms| Tick::default().after(Duration::from_millis(ms));
        assert_eq!(seldom.takes(at(0)), Next::Say(1));
        assert_eq!(seldom.takes(at(4_000)), Next::Look(Duration::from_secs(1)));
        assert_eq!(seldom.takes(at(5_000)), Next::Say(2));
        assert_eq!(seldom.rest(at(5_000)), None);
    }
}
