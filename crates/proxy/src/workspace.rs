//! Memory that a request works in: its head, its response's, its record. The requests of a worker use it one after the
//! other, so that one takes what the last has left warm, and a connection that waits holds none.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use meshwork_http1::RequestHead;
use meshwork_telemetry::Protocol;

use crate::request::Scratch;
use crate::worker::Worker;

/// So many a worker keeps.
const KEPT: usize = 16;
/// One that holds more bytes than this is not kept.
const MOST: usize = 32 * 1024;

/// See the module's text.
pub(crate) struct Workspace {
    pub(crate) head: RequestHead,
    pub(crate) scratch: Scratch,
}

impl Workspace {
    fn held(&self) -> usize {
        self.head.held() + self.scratch.held()
    }
}

/// What a worker's requests have given back.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "they are lent out as they are, without being copied")]
pub(crate) struct Workspaces(RefCell<Vec<Box<Workspace>>>);

impl Workspaces {
    fn take(&self, protocol: Protocol) -> Box<Workspace> {
        match self.0.borrow_mut().pop() {
            Some(mut kept) => {
                kept.scratch.protocol = protocol;
                kept
            }
            None => Box::new(Workspace { head: RequestHead::new(), scratch: Scratch::new(protocol) }),
        }
    }

    fn give_back(&self, space: Box<Workspace>) {
        let mut kept = self.0.borrow_mut();
        if kept.len() < KEPT && space.held() <= MOST {
            kept.push(space);
        }
    }
}

/// A workspace as long as a request, or the head of one, uses it.
pub(crate) struct Lent {
    worker: Rc<Worker>,
    /// Absent only while it is dropped.
    space: Option<Box<Workspace>>,
}

impl Lent {
    pub(crate) fn new(worker: &Rc<Worker>, protocol: Protocol) -> Self {
        Self { worker: Rc::clone(worker), space: Some(worker.workspaces.take(protocol)) }
    }
}

impl Deref for Lent {
    type Target = Workspace;
    fn deref(&self) -> &Workspace {
        self.space.as_ref().expect("it is there until it is dropped")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Workspace {
        self.space.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(space) = self.space.take() {
            self.worker.workspaces.give_back(space);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_request_has_left_is_the_next_one_s_unless_it_is_large() {
        let spaces = Workspaces::default();
        let mut first = spaces.take(Protocol::Http11);
        first.head.fields.push("host", "a").unwrap();
        let place = std::ptr::from_ref(&*first);
        spaces.give_back(first);
        let mut again = spaces.take(Protocol::Http2);
        assert_eq!(std::ptr::from_ref(&*again), place);
        assert_eq!(again.scratch.protocol, Protocol::Http2);
        again.head.fields.push("x-large", vec![b'x'; 2 * MOST]).unwrap();
        spaces.give_back(again);
        assert_eq!(spaces.0.borrow().len(), 0);
        let many: Vec<_> = (0..2 * KEPT).map(|_| spaces.take(Protocol::Http11)).collect();
        many.into_iter().for_each(|space| spaces.give_back(space));
        assert_eq!(spaces.0.borrow().len(), KEPT);
    }
}
