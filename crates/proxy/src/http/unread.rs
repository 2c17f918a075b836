//! Bodies of one caller's connection over HTTP/2 that nobody has taken yet. `h2` keeps each of their frames by itself, which costs some
//! 300 bytes besides what it carries, and a window counts only that. So where many small ones have come, the connection's task takes
//! them out and joins them: what is held is what the windows say, and nobody's connection ends for an application that does not read.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;

/// What of joined bytes is given on at once.
const PIECE: usize = 16 * 1024;

/// The bodies of a connection.
#[derive(Default)]
pub(crate) struct Unread {
    bodies: RefCell<Vec<Weak<RefCell<Body>>>>,
}

impl Unread {
    fn add(&self, body: &Rc<RefCell<Body>>) {
        let mut bodies = self.bodies.borrow_mut();
        if bodies.len() == bodies.capacity() {
            bodies.retain(|body| body.strong_count() > 0);
        }
        bodies.push(Rc::downgrade(body));
    }

    /// Joins what has come.
    pub(crate) fn join(&self) {
        for body in self.bodies.borrow().iter().filter_map(Weak::upgrade) {
            body.borrow_mut().join();
        }
    }
}

/// What has come of one of them.
#[derive(Debug)]
pub(crate) struct Body {
    recv: RecvStream,
    joined: BytesMut,
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
                Poll::Ready(Some(Ok(data))) => self.joined.extend_from_slice(&data),
                Poll::Ready(Some(Err(error))) => self.failed = Some(error),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => return,
            }
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if !self.joined.is_empty() {
            let piece = match self.joined.len() {
                ..=PIECE => std::mem::take(&mut self.joined),
                _ => self.joined.split_to(PIECE),
            };
            return Poll::Ready(Some(Ok(piece.freeze())));
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
        let body = Body { recv, joined: BytesMut::new(), failed: None, ended: false, waker };
        let body = Rc::new(RefCell::new(body));
        unread.add(&body);
        Self::Joined(body)
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
