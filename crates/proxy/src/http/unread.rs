//! Bodies of one caller's connection over HTTP/2 that nobody has taken yet. `h2` keeps each of their frames by itself, which costs some
//! 300 bytes besides what it carries, and keeps all that was read with it; a window counts what it carries alone. So where many small
//! ones have come, the connection's task takes them out and joins them: what is held is what the windows say, and nobody's connection
//! ends for an application that does not read.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;

/// What of joined bytes is given on at once. A power of two.
const PIECE: usize = 16 * 1024;

/// The bodies of a connection.
#[derive(Default)]
pub(crate) struct Unread {
    bodies: RefCell<Living<RefCell<Body>>>,
}

impl Unread {
    fn add(&self, body: &Rc<RefCell<Body>>) {
        self.bodies.borrow_mut().add(body);
    }

    /// Joins what has come.
    pub(crate) fn join(&self) {
        for body in self.bodies.borrow().0.iter().filter_map(Weak::upgrade) {
            body.borrow_mut().join();
        }
    }
}

/// What lives, and some of what has gone.
struct Living<T>(Vec<Weak<T>>);

impl<T> Default for Living<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Living<T> {
    fn add(&mut self, one: &Rc<T>) {
        let Self(all) = self;
        if all.len() == all.capacity() {
            all.retain(|one| one.strong_count() > 0);
            // Where nearly all live there would soon be no room again, and each look at all of them would find room for few.
            all.reserve(all.len());
        }
        all.push(Rc::downgrade(one));
    }
}

/// Bytes in the order in which they came. Each piece is an allocation of its own: whoever keeps one keeps no other, and what is held is
/// what is there and less than a piece more, however much a window lets in.
#[derive(Debug, Default)]
struct Joined {
    pieces: VecDeque<Vec<u8>>,
}

impl Joined {
    fn push(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.pieces.back().is_none_or(|last| last.len() == PIECE) {
                self.pieces.push_back(Vec::new());
            }
            let Some(last) = self.pieces.back_mut() else { return };
            let (fits, rest) = data.split_at(data.len().min(PIECE - last.len()));
            let wanted = (last.len() + fits.len()).next_power_of_two();
            last.reserve_exact(wanted - last.len());
            last.extend_from_slice(fits);
            data = rest;
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        self.pieces.pop_front().map(Bytes::from)
    }

    fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

/// What has come of one of them.
#[derive(Debug)]
pub(crate) struct Body {
    recv: RecvStream,
    joined: Joined,
    /// What comes behind it.
    failed: Option<h2::Error>,
    ended: bool,
    /// Of whoever waits for the next frame: `h2` knows one task for each stream.
    waker: Waker,
}

impl Body {
    fn join(&mut self) {
        let mut cx = Context::from_waker(&self.waker);
        while !self.ended && self.failed.is_none() {
            match self.recv.poll_data(&mut cx) {
                Poll::Ready(Some(Ok(data))) => self.joined.push(&data),
                Poll::Ready(Some(Err(error))) => self.failed = Some(error),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => return,
            }
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if let Some(piece) = self.joined.pop() {
            return Poll::Ready(Some(Ok(piece)));
        }
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = self.recv.poll_data(cx);
        if polled.is_pending() {
            self.waker.clone_from(cx.waker());
        }
        polled
    }
}

/// A body that arrives: an endpoint's own, and a caller's that its connection's task may join.
#[derive(Debug)]
pub(crate) enum Incoming {
    Own(RecvStream),
    Joined(Rc<RefCell<Body>>),
}

impl Incoming {
    /// One that may be joined with what else comes on its connection.
    pub(crate) fn among(unread: &Unread, recv: RecvStream) -> Self {
        if recv.is_end_stream() {
            return Self::Own(recv);
        }
        let waker = Waker::noop().clone();
        let body = Body { recv, joined: Joined::default(), failed: None, ended: false, waker };
        let body = Rc::new(RefCell::new(body));
        unread.add(&body);
        Self::Joined(body)
    }

    /// Its stream's number.
    pub(crate) fn stream(&self) -> u32 {
        match self {
            Self::Own(recv) => recv.stream_id().as_u32(),
            Self::Joined(body) => body.borrow().recv.stream_id().as_u32(),
        }
    }

    /// No frame will follow.
    pub(crate) fn is_end(&self) -> bool {
        match self {
            Self::Own(recv) => recv.is_end_stream(),
            Self::Joined(body) => {
                let body = body.borrow();
                body.joined.is_empty() && body.failed.is_none() && body.recv.is_end_stream()
            }
        }
    }

    /// The next bytes, for which the window is open again.
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        let mut borrowed;
        let (polled, recv) = match self {
            Self::Own(recv) => (recv.poll_data(cx), recv),
            Self::Joined(body) => {
                borrowed = body.borrow_mut();
                (borrowed.poll_data(cx), &mut borrowed.recv)
            }
        };
        let Some(data) = ready!(polled) else { return Poll::Ready(None) };
        let released = data.and_then(|data| recv.flow_control().release_capacity(data.len()).map(|()| data));
        Poll::Ready(Some(released))
    }

    pub(crate) fn poll_trailers(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<HeaderMap>, h2::Error>> {
        match self {
            Self::Own(recv) => recv.poll_trailers(cx),
            Self::Joined(body) => body.borrow_mut().recv.poll_trailers(cx),
        }
    }
}

#[cfg(test)]
mod tests;
