//! Bytes of bodies that the streams of one HTTP/2 connection have handed to it and that have not left. Windows bound
//! what a reader may be sent; a reader who opens them wide and then does not read is bounded here, for all of its streams
//! together: no stream takes more of its source before some of that has left.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

use bytes::{Buf, Bytes};

/// Bytes that may wait for one connection's socket; one chunk more may come on top.
const LIMIT: usize = 256 * 1024;

/// See the module's text.
#[derive(Default)]
pub(crate) struct Backlog {
    held: Cell<usize>,
    waiting: RefCell<Vec<Waker>>,
}

impl Backlog {
    /// Whether more may be handed to the connection.
    pub(crate) fn has_room(&self) -> bool {
        self.held.get() < LIMIT
    }

    /// Has the task woken when there is room again.
    pub(crate) fn watch(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting.iter().any(|known| known.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
    }

    fn left(&self, count: usize) {
        self.held.set(self.held.get() - count);
        if self.has_room() {
            self.waiting.borrow_mut().drain(..).for_each(Waker::wake);
        }
    }
}

/// A chunk of a body, counted until it has left or its stream is gone.
pub(crate) struct Payload {
    bytes: Bytes,
    counted: usize,
    backlog: Rc<Backlog>,
}

impl Payload {
    pub(crate) fn new(bytes: Bytes, backlog: &Rc<Backlog>) -> Self {
        let counted = bytes.len();
        backlog.held.set(backlog.held.get() + counted);
        Self { bytes, counted, backlog: Rc::clone(backlog) }
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.backlog.left(self.counted);
    }
}

impl Buf for Payload {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn what_has_left_or_was_given_up_makes_room_for_all_who_wait() {
        let backlog = Rc::new(Backlog::default());
        let large = Payload::new(Bytes::from(vec![0; LIMIT - 1]), &backlog);
        assert!(backlog.has_room());
        let small = Payload::new(Bytes::from_static(b"ab"), &backlog);
        assert!(!backlog.has_room());
        let counts: Vec<_> = (0..2).map(|_| Arc::new(Count(AtomicUsize::new(0)))).collect();
        for count in &counts {
            let waker = Waker::from(Arc::clone(count));
            // Asked twice, woken once.
            backlog.watch(&Context::from_waker(&waker));
            backlog.watch(&Context::from_waker(&waker));
        }
        drop(small);
        assert!(backlog.has_room());
        assert!(counts.iter().all(|count| count.0.load(Ordering::SeqCst) == 1));
        drop(large);
        assert_eq!(backlog.held.get(), 0);
        assert!(counts.iter().all(|count| count.0.load(Ordering::SeqCst) == 1));
    }
}
