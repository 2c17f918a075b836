//! The clock is asked once per poll of a connection's task.
//!
//! A request asks a dozen times what time it is, in two or three polls of its task, which take microseconds each: what
//! happens in one poll happens at one moment.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use meshwork_base::Tick;

use crate::worker::Worker;

/// What is known of the time.
#[derive(Clone, Copy, Debug, Default)]
enum Known {
    /// No such task runs: time goes on.
    #[default]
    Nothing,
    /// Nobody has asked in this poll.
    Unasked,
    /// It is this, until the poll ends.
    Is(Tick),
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct PollTime(Cell<Known>);

impl PollTime {
    /// The time; `clock` is asked where nobody in this poll has.
    pub(crate) fn get(&self, clock: impl FnOnce() -> Tick) -> Tick {
        match self.0.get() {
            Known::Is(now) => now,
            Known::Unasked => {
                let now = clock();
                self.0.set(Known::Is(now));
                now
            }
            Known::Nothing => clock(),
        }
    }

    /// A poll lasts until what this gives is dropped.
    fn begin(&self) -> Polling<'_> {
        Polling { time: self, before: self.0.replace(Known::Unasked) }
    }
}

struct Polling<'a> {
    time: &'a PollTime,
    before: Known,
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.time.0.set(self.before);
    }
}

pin_project_lite::pin_project! {
    /// See [`timed_by_poll`].
    pub(crate) struct TimedByPoll<F> {
        worker: Rc<Worker>,
        #[pin]
        future: F,
    }
}

/// While the future runs, [`Worker::now`] stands still in each of its polls.
pub(crate) fn timed_by_poll<F: Future>(worker: Rc<Worker>, future: F) -> TimedByPoll<F> {
    TimedByPoll { worker, future }
}

impl<F: Future> Future for TimedByPoll<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _polling = this.worker.poll_time.begin();
        this.future.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stands_still_in_a_poll_and_goes_on_between() {
        let (time, clock) = (PollTime::default(), Cell::new(0));
        let now = || {
            clock.set(clock.get() + 1);
            time.get(|| Tick::from_nanos(clock.get())).as_nanos()
        };
        assert_eq!([now(), now()], [1, 2], "no poll");
        {
            let _polling = time.begin();
            assert_eq!([now(), now()], [3, 3]);
            {
                let _inner = time.begin();
                assert_eq!([now(), now()], [5, 5], "a poll of its own");
            }
            assert_eq!(now(), 3);
        }
        assert_eq!(now(), 8);
    }
}
