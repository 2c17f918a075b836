//! Whether a peer's settings have come. HTTP/2 lets a client begin before them, but an extended CONNECT must wait for
//! the peer's word that it takes one (RFC 8441 section 3). Settings are the first thing a peer sends, so whatever
//! answers a PING comes after them. Only who needs to know has one sent.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, Waker};

use h2::{Ping, PingPong};
use tokio::sync::Notify;

/// See the module's text. Shared between a connection's task and its requests.
#[derive(Default)]
pub(crate) struct Settled {
    asked: Cell<bool>,
    known: Cell<bool>,
    task: RefCell<Option<Waker>>,
    told: Notify,
}

impl Settled {
    /// Waits until the peer's settings have come, or the connection has ended.
    pub(crate) async fn wait(&self) {
        while !self.known.get() {
            let told = self.told.notified();
            self.asked.set(true);
            if let Some(task) = self.task.borrow_mut().take() {
                task.wake();
            }
            told.await;
        }
    }

    /// The connection's task has a turn.
    pub(crate) fn turn(&self, cx: &mut Context<'_>, pings: &mut PingPong) {
        if self.known.get() {
            return;
        }
        // A second one is refused while the first is on its way: there need not be two.
        if self.asked.get() && pings.send_ping(Ping::opaque()).is_err() {
            tracing::trace!("a ping is on its way already");
        }
        if let Poll::Ready(answered) = pings.poll_pong(cx) {
            tracing::trace!(ok = answered.is_ok(), "the peer's settings have come");
            self.over();
        }
        *self.task.borrow_mut() = Some(cx.waker().clone());
    }

    /// Nothing more will come.
    pub(crate) fn over(&self) {
        self.known.set(true);
        self.told.notify_waiters();
    }
}
