//! What goes on happening is said now and then, with how often it has happened, so that a log stays readable and small when
//! something runs out.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use meshwork_base::Tick;

/// How often it is said at most.
const PAUSE: Duration = Duration::from_secs(5);

/// One thing that may go on happening; on a worker's thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seldom(Rc<Cell<State>>);

#[derive(Clone, Copy, Debug, Default)]
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
    /// goes on until then or not.
    pub(crate) fn happened(&self, now: Tick, say: impl Fn(u64) + 'static) {
        match self.takes(now) {
            Next::Say(times) => say(times),
            Next::Look(after) => {
                let seldom = self.clone();
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(after).await;
                    seldom.rest(now.after(after)).into_iter().for_each(say);
                });
            }
            Next::Nothing => {}
        }
    }

    fn takes(&self, now: Tick) -> Next {
        let State { said, times } = self.0.get();
        let left = said.map_or(Duration::ZERO, |said| PAUSE.saturating_sub(now.since(said)));
        if left.is_zero() {
            self.0.set(State { said: Some(now), times: 0 });
            return Next::Say(times + 1);
        }
        self.0.set(State { said, times: times + 1 });
        if times == 0 { Next::Look(left) } else { Next::Nothing }
    }

    /// How often it has happened and was not said, if somebody who came later has not said it.
    fn rest(&self, now: Tick) -> Option<u64> {
        let times = self.0.get().times;
        (times > 0).then(|| {
            self.0.set(State { said: Some(now), times: 0 });
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
