//! Those of a worker who wait for an HTTP/1.1 connection to an endpoint, or for room on one of HTTP/2: first come, first
//! served.
//!
//! Whoever is called in vain keeps its number. Whoever leaves calls the next one, with a connection or without: what it was
//! called for, and what ended while it was called already, is not lost with it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::Bound;
use std::task::{Poll, Waker};

use meshwork_decision::ConnectionLimit;

/// Why it is not somebody's turn yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum NotYet {
    /// Many others are being made.
    #[default]
    Dials,
    /// A limit stands in the way.
    Limit(ConnectionLimit),
}

/// The line of one endpoint.
#[derive(Default)]
pub(super) struct Line {
    /// Of the last who came.
    number: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, Waiting>>,
    /// Why whoever looked last had to wait.
    late: Cell<NotYet>,
}

#[derive(Default)]
struct Waiting {
    called: bool,
    waker: Option<Waker>,
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    pub(super) fn join(&self) -> InLine<'_> {
        let number = self.number.get() + 1;
        self.number.set(number);
        self.waiting.borrow_mut().insert(number, Waiting::default());
        InLine { line: self, number }
    }

    /// Calls the first one who is not called yet.
    pub(super) fn call_one(&self) {
        self.call_after(0);
    }

    /// Calls the first one; unless somebody is called already, who will find what there is or have the next one called.
    pub(super) fn call_again(&self) {
        if !self.waiting.borrow().values().any(|one| one.called) {
            self.call_one();
        }
    }

    fn call_after(&self, number: u64) {
        let mut waiting = self.waiting.borrow_mut();
        let behind = (Bound::Excluded(number), Bound::Unbounded);
        let Some((_, next)) = waiting.range_mut(behind).find(|(_, one)| !one.called) else { return };
        next.called = true;
        let waker = next.waker.take();
        drop(waiting);
        waker.into_iter().for_each(Waker::wake);
    }

    pub(super) fn late(&self) -> NotYet {
        self.late.get()
    }

    pub(super) fn set_late(&self, why: NotYet) {
        self.late.set(why);
    }
}

/// One who waits, as long as it does.
pub(super) struct InLine<'a> {
    line: &'a Line,
    number: u64,
}

impl InLine<'_> {
    /// Waits until it is called.
    pub(super) async fn called(&self) {
        poll_fn(|cx| {
            let mut waiting = self.line.waiting.borrow_mut();
            let own = waiting.get_mut(&self.number).expect("it waits as long as this lives");
            if std::mem::take(&mut own.called) {
                return Poll::Ready(());
            }
            own.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// It looks elsewhere, and is not called meanwhile: what it would be called for is the next one's.
    pub(super) fn leaves(&self) {
        self.set_called(true);
    }

    /// It waits again, where it was. As nobody has called it, it has to look once for itself.
    pub(super) fn is_back(&self) {
        self.set_called(false);
    }

    fn set_called(&self, called: bool) {
        let mut waiting = self.line.waiting.borrow_mut();
        waiting.get_mut(&self.number).expect("it waits as long as this lives").called = called;
    }

    /// Whoever comes next is to look for itself, too.
    pub(super) fn call_next(&self) {
        self.line.call_after(self.number);
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.line.waiting.borrow_mut().remove(&self.number);
        self.line.call_one();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use super::*;

    fn is_called(one: &InLine<'_>) -> bool {
        pin!(one.called()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn who_is_called_in_vain_is_the_first_to_be_called_again() {
        let line = Line::default();
        let [first, second] = [line.join(), line.join()];
        for _ in 0..2 {
            line.call_one();
            assert!(is_called(&first) && !is_called(&second));
        }
        line.call_one();
        line.call_one();
        assert!(is_called(&second), "what ends while one is called is the next one's");
        assert!(is_called(&first));
    }

    #[test]
    fn nobody_is_called_beside_one_who_has_yet_to_look() {
        let line = Line::default();
        let [first, second] = [line.join(), line.join()];
        line.call_again();
        line.call_again();
        assert!(is_called(&first) && !is_called(&second));
    }

    #[test]
    fn whoever_leaves_has_the_next_one_called_called_or_not() {
        let line = Line::default();
        let [first, second, third] = [line.join(), line.join(), line.join()];
        drop(first);
        assert!(is_called(&second) && !is_called(&third));
        line.call_one();
        drop(second);
        assert!(is_called(&third));
        drop(third);
        assert!(line.is_empty());
        line.call_one();
        assert!(!is_called(&line.join()), "nobody was there to be called");
    }
}
