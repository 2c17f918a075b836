//! Who waits for a connection to an endpoint, in the order in which they came.
//!
//! Only the first tries; it keeps its place as long as it tries in vain, and whoever leaves the first place, served or
//! not, wakes the next. So what is left over when one was served finds whoever comes after.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::task::{Context, Waker};

/// See the module's text.
#[derive(Default)]
pub(crate) struct Line {
    waiting: RefCell<VecDeque<(u64, Option<Waker>)>>,
    came: Cell<u64>,
}

impl Line {
    /// Whether anybody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Takes the last place.
    pub(crate) fn join(&self) -> Place<'_> {
        let number = self.came.get();
        self.came.set(number + 1);
        self.waiting.borrow_mut().push_back((number, None));
        Place { line: self, number }
    }

    /// Something became free, perhaps.
    pub(crate) fn wake(&self) {
        // Whoever is woken may come back here at once.
        let first = self.waiting.borrow_mut().front_mut().and_then(|(_, waker)| waker.take());
        if let Some(waker) = first {
            waker.wake();
        }
    }
}

/// A place in line, as long as this lives.
pub(crate) struct Place<'a> {
    line: &'a Line,
    number: u64,
}

impl Place<'_> {
    /// Whether its turn has come; it is woken when that is so, and again whenever something became free.
    pub(crate) fn is_first(&self, cx: &Context<'_>) -> bool {
        let mut waiting = self.line.waiting.borrow_mut();
        // Numbers only grow along the line.
        let Ok(place) = waiting.binary_search_by_key(&self.number, |(number, _)| *number) else {
            return false;
        };
        waiting[place].1 = Some(cx.waker().clone());
        place == 0
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.line.waiting.borrow_mut();
        let place = waiting.binary_search_by_key(&self.number, |(number, _)| *number);
        let left = place.ok().and_then(|place| waiting.remove(place));
        drop(waiting);
        drop(left);
        if place == Ok(0) {
            self.line.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Looks whether a place is the first; the count says how often it was woken.
    fn look(place: &Place<'_>, woken: &Arc<Woken>) -> bool {
        let waker = Waker::from(Arc::clone(woken));
        place.is_first(&Context::from_waker(&waker))
    }

    fn times(woken: &Arc<Woken>) -> usize {
        woken.0.load(Ordering::Relaxed)
    }

    #[test]
    fn whoever_is_served_wakes_the_next_however_often_it_was_woken_itself() {
        let line = Line::default();
        let [first, second] = [Arc::new(Woken::default()), Arc::new(Woken::default())];
        let one = line.join();
        assert!(look(&one, &first));
        // Two become free before the first has run: the second waits from now on.
        line.wake();
        line.wake();
        let two = line.join();
        assert!(!look(&two, &second));
        drop(one);
        assert_eq!((times(&first), times(&second)), (1, 1));
        assert!(look(&two, &second));
        drop(two);
        assert!(line.is_empty());
    }

    #[test]
    fn who_tries_in_vain_keeps_its_place() {
        let line = Line::default();
        let [first, second] = [Arc::new(Woken::default()), Arc::new(Woken::default())];
        let (one, two) = (line.join(), line.join());
        for round in 0..3 {
            assert!(look(&one, &first) && !look(&two, &second));
            line.wake();
            assert_eq!((times(&first), times(&second)), (round + 1, 0));
        }
    }

    #[test]
    fn who_gives_up_is_passed_over() {
        let line = Line::default();
        let woken = Arc::new(Woken::default());
        let (one, two, three) = (line.join(), line.join(), line.join());
        assert!(!look(&three, &woken));
        drop(two);
        assert_eq!(times(&woken), 0, "its turn has not come");
        drop(one);
        assert_eq!(times(&woken), 1);
        assert!(look(&three, &woken));
    }
}
