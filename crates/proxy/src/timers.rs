//! Timers that one request after the other sets. Most are set for a while and never run out; what a new one costs is being
//! entered into the runtime's wheel and taken out again. One that is there and is set for later stays where it is.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// So many a worker keeps.
const KEPT: usize = 64;

/// What a worker's requests have given back, the last one first: it is set for about the time that the next one wants.
#[derive(Default)]
pub(crate) struct Timers(RefCell<Vec<Pin<Box<Sleep>>>>);

impl Timers {
    /// One that runs out after this time.
    pub(crate) fn start(self: &Rc<Self>, time: Duration) -> Timer {
        // As tokio does where a time has no end.
        let far = || Instant::now() + Duration::from_secs(86_400 * 365 * 30);
        let end = Instant::now().checked_add(time).unwrap_or_else(far);
        let sleep = match self.0.borrow_mut().pop() {
            Some(mut sleep) => {
                sleep.as_mut().reset(end);
                sleep
            }
            None => Box::pin(sleep_until(end)),
        };
        Timer { sleep: Some(sleep), timers: Rc::clone(self) }
    }
}

/// A timer, as long as somebody waits for it.
pub(crate) struct Timer {
    /// Absent only while it is dropped.
    sleep: Option<Pin<Box<Sleep>>>,
    timers: Rc<Timers>,
}

impl Timer {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.as_mut().expect("it is there until it is dropped");
        sleep.as_mut().poll(cx)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut kept = self.timers.0.borrow_mut();
        if let Some(sleep) = self.sleep.take()
            && kept.len() < KEPT
        {
            kept.push(sleep);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// As exactly as the runtime counts.
    const TICK: Duration = Duration::from_millis(1);

    async fn runs_out_after(timer: &mut Timer) -> Duration {
        let began = Instant::now();
        poll_fn(|cx| timer.poll(cx)).await;
        began.elapsed()
    }

    #[tokio::test]
    async fn each_runs_out_after_its_own_time_whatever_it_was_set_for_before() {
        let timers = Rc::new(Timers::default());
        let time = Duration::from_millis(20);
        for before in [time / 10, time, 3_000 * time] {
            for is_over in [false, true] {
                let mut first = timers.start(before);
                if is_over && before <= time {
                    runs_out_after(&mut first).await;
                }
                drop(first);
                assert_eq!(timers.0.borrow().len(), 1);
                let mut timer = timers.start(time);
                assert_eq!(timers.0.borrow().len(), 0, "it is used again");
                let took = runs_out_after(&mut timer).await;
                assert!(took >= time - TICK && took < 1_000 * time, "{took:?} after {before:?}");
            }
        }
    }

    #[tokio::test]
    async fn no_more_than_some_are_kept() {
        let timers = Rc::new(Timers::default());
        let many: Vec<_> = (0..2 * KEPT).map(|_| timers.start(Duration::MAX)).collect();
        drop(many);
        assert_eq!(timers.0.borrow().len(), KEPT);
    }
}
