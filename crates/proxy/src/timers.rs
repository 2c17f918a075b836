//! Timers that one request after the other sets. Most are set for a while and never run out; what a new one costs is being
//! entered into the runtime's wheel and taken out again. So one that is there is taken as it is, set for the latest moment before
//! the wanted one: only if somebody still waits for it when that comes, it is set for later.
//!
//! A process may stand still: suspended, moved to another machine, out of its share of the CPU. What it waited for may have come
//! meanwhile and lie in its sockets when it goes on, of which the runtime has not been told yet; its timers have run out at once. So
//! a timer that is found late lets what has arrived go first: our own pause is not the fault of whom we called.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// So many a worker keeps.
const KEPT: usize = 64;
/// Of so many that were given back last the best is taken: requests have few kinds of time limits.
const LOOKED_AT: usize = 8;

/// Found so much later than it was set for, a timer was kept from being seen by more than a busy turn of the loop.
const LATE: Duration = Duration::from_millis(100);
/// Turns of the loop in which what has arrived goes before a timer that is late: each tells of a thousand sockets at most.
const TURNS: u8 = 4;

/// What a worker's requests have given back, and for when each is set: who looks for one need not look at all of them.
#[derive(Default)]
pub(crate) struct Timers(RefCell<Vec<(Instant, Pin<Box<Sleep>>)>>);

impl Timers {
    /// One that runs out after this time.
    pub(crate) fn start(self: &Rc<Self>, time: Duration) -> Timer {
        self.start_until(end_of(time))
    }

    /// One that runs out then.
    pub(crate) fn start_until(self: &Rc<Self>, end: Instant) -> Timer {
        let sleep = self.take(end).unwrap_or_else(|| Box::pin(sleep_until(end)));
        Timer { sleep: Some(sleep), end, turns: 0, timers: Rc::clone(self) }
    }

    /// One that is set for no later than this, or can be.
    fn take(&self, end: Instant) -> Option<Pin<Box<Sleep>>> {
        let mut kept = self.0.borrow_mut();
        let last = kept.len().checked_sub(1)?;
        let mut best: Option<(usize, Instant)> = None;
        // A plain loop: as a chain of iterators this was a sixth of what a request's time limits cost.
        for at in kept.len().saturating_sub(LOOKED_AT)..kept.len() {
            let set_for = kept[at].0;
            if set_for <= end && best.is_none_or(|(_, latest)| latest < set_for) {
                best = Some((at, set_for));
            }
        }
        if let Some((at, _)) = best {
            return Some(kept.swap_remove(at).1);
        }
        let mut sleep = kept.swap_remove(last).1;
        sleep.as_mut().reset(end);
        Some(sleep)
    }
}

/// When a time that begins now is over; as in tokio, one without an end is over in thirty years.
pub(crate) fn end_of(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or_else(|| now + Duration::from_secs(86_400 * 365 * 30))
}

/// A timer, as long as somebody waits for it.
pub(crate) struct Timer {
    /// Absent only while it is dropped; set for the end, or for before.
    sleep: Option<Pin<Box<Sleep>>>,
    end: Instant,
    /// In which others went first.
    turns: u8,
    timers: Rc<Timers>,
}

impl Timer {
    /// It runs out then, whatever was wanted of it before.
    pub(crate) fn set(&mut self, end: Instant) {
        if self.end == end {
            return;
        }
        (self.end, self.turns) = (end, 0);
        let sleep = self.sleep.as_mut().expect("it is there until it is dropped");
        if sleep.deadline() > end {
            sleep.as_mut().reset(end);
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.as_mut().expect("it is there until it is dropped");
        loop {
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if sleep.deadline() >= self.end {
                return poll_after_others(self.end, &mut self.turns, cx);
            }
            sleep.as_mut().reset(self.end);
        }
    }
}

/// Ready at once where the timer is seen in time, and else when others had their turns.
fn poll_after_others(set_for: Instant, turns: &mut u8, cx: &mut Context<'_>) -> Poll<()> {
    if *turns >= TURNS || Instant::now().saturating_duration_since(set_for) < LATE {
        return Poll::Ready(());
    }
    *turns += 1;
    // Wakes us behind the runtime's next look at its sockets.
    pin!(yield_now()).poll(cx)
}

/// The time was over first.
#[derive(Debug)]
pub(crate) struct Elapsed;

/// As tokio's, but for a process that stood still: see the module's text.
///
/// # Errors
/// It is not ready in time.
pub(crate) async fn timeout<F: Future>(time: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut sleep = pin!(sleep(time));
    let mut turns = 0;
    poll_fn(|cx| {
        if let Poll::Ready(done) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        if sleep.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        poll_after_others(sleep.deadline(), &mut turns, cx).map(|()| Err(Elapsed))
    })
    .await
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut kept = self.timers.0.borrow_mut();
        if let Some(sleep) = self.sleep.take()
            && kept.len() < KEPT
        {
            kept.push((sleep.deadline(), sleep));
        }
    }
}

#[cfg(test)]
mod tests {
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
    #[expect(clippy::disallowed_methods, reason = "the loop stands still")]
    async fn one_that_is_late_lets_others_go_first() {
        let timers = Rc::new(Timers::default());
        let mut timer = timers.start(Duration::ZERO);
        // The loop stands still.
        std::thread::sleep(2 * LATE);
        let mut waited = 0;
        let over = |cx: &mut Context<'_>| {
            let over = timer.poll(cx);
            waited += u8::from(over.is_pending());
            over
        };
        poll_fn(over).await;
        assert!(waited >= TURNS, "{waited}");
    }

    #[tokio::test]
    async fn one_that_is_hardly_late_is_over_at_once_and_before_a_late_one_others_have_so_many_turns() {
        for late in [Duration::ZERO, TICK, LATE, 9 * LATE] {
            let (set_for, mut turns) = (Instant::now() - late, 0);
            poll_fn(|cx| poll_after_others(set_for, &mut turns, cx)).await;
            if late >= LATE {
                assert_eq!(turns, TURNS, "{late:?}");
            } else {
                assert!(turns == 0 || set_for.elapsed() >= LATE, "{late:?}");
            }
        }
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "the loop stands still")]
    async fn what_is_there_has_come_in_time_also_where_the_time_is_found_to_be_over_late() {
        assert!(timeout(Duration::ZERO, std::future::ready(())).await.is_ok());
        // It is there when others have had a turn.
        let mut asked = 0;
        let arrives = poll_fn(|_| {
            asked += 1;
            if asked > 3 { Poll::Ready(()) } else { Poll::Pending }
        });
        let mut waited_for = pin!(timeout(TICK, arrives));
        assert!(waited_for.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())).is_pending());
        std::thread::sleep(2 * LATE);
        assert!(waited_for.await.is_ok());
        assert!(timeout(TICK, std::future::pending::<()>()).await.is_err(), "and what never comes has not");
    }

    #[tokio::test]
    async fn of_several_the_one_is_taken_that_need_not_be_moved() {
        let timers = Rc::new(Timers::default());
        let minutes = [1, 10, 5].map(|minutes| Duration::from_secs(60 * minutes));
        let place = |timer: &Timer| timer.sleep.as_ref().map(|sleep| std::ptr::from_ref(&**sleep));
        let first = minutes.map(|time| timers.start(time));
        let places = first.each_ref().map(place);
        drop(first);
        assert_eq!(minutes.map(|time| place(&timers.start(time))), places, "each kind has its own again");
    }

    #[tokio::test]
    async fn one_that_is_taken_as_it_is_wakes_nobody_twice_before_its_end() {
        let timers = Rc::new(Timers::default());
        let time = Duration::from_millis(50);
        drop(timers.start(time));
        let mut timer = timers.start(3 * time);
        let set_for = timer.sleep.as_ref().map(|sleep| sleep.deadline());
        assert!(set_for.is_some_and(|set_for| set_for < timer.end), "it is not moved");
        let mut polls = 0;
        let began = Instant::now();
        poll_fn(|cx| {
            polls += 1;
            timer.poll(cx)
        })
        .await;
        assert!(began.elapsed() >= 3 * time - TICK, "{:?}", began.elapsed());
        assert!(polls <= 3 + i32::from(TURNS), "{polls}");
    }

    #[tokio::test]
    async fn no_more_than_some_are_kept() {
        let timers = Rc::new(Timers::default());
        let many: Vec<_> = (0..2 * KEPT).map(|_| timers.start(Duration::MAX)).collect();
        drop(many);
        assert_eq!(timers.0.borrow().len(), KEPT);
    }
}
