//! The PINGs of one connection: one on its way at a time, however many want to know something by it.
//!
//! One wants to know whether the peer's settings have come. HTTP/2 lets a client begin before them, but an extended CONNECT
//! must wait for the peer's word that it takes one (RFC 8441 section 3). Settings are the first thing a peer sends, so whatever
//! answers a PING comes after them. Another wants to know whether anybody is there: see [`super::alive`].

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, Waker};

use h2::{Ping, PingPong};
use tokio::sync::Notify;

/// See the module's text. Shared between a connection's task and those who ask.
#[derive(Default)]
pub(crate) struct Pings {
    wanted: Cell<bool>,
    under_way: Cell<bool>,
    /// One has been answered, or nothing more will come.
    settled: Cell<bool>,
    task: RefCell<Option<Waker>>,
    told: Notify,
}

impl Pings {
    /// Waits until the peer's settings have come, or the connection has ended.
    pub(crate) async fn settled(&self) {
        while !self.settled.get() {
            let told = self.told.notified();
            self.ask();
            told.await;
        }
    }

    /// Sends one, unless one is on its way.
    pub(super) fn ask(&self) {
        if !self.under_way.get() {
            self.wanted.set(true);
            self.wake();
        }
    }

    /// Whether one is on its way that has not been answered.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.get()
    }

    /// The connection's task has something to look at.
    pub(super) fn wake(&self) {
        if let Some(task) = self.task.borrow_mut().take() {
            task.wake();
        }
    }

    /// The connection's task has a turn; whether a PING has been answered.
    pub(crate) fn turn(&self, cx: &mut Context<'_>, pings: &mut PingPong) -> bool {
        if self.wanted.replace(false) {
            self.under_way.set(pings.send_ping(Ping::opaque()).is_ok());
        }
        let answered = self.under_way.get() && matches!(pings.poll_pong(cx), Poll::Ready(Ok(_)));
        if answered {
            self.under_way.set(false);
            self.over();
        }
        self.watch(cx);
        answered
    }

    fn watch(&self, cx: &Context<'_>) {
        let mut task = self.task.borrow_mut();
        if task.as_ref().is_none_or(|known| !known.will_wake(cx.waker())) {
            *task = Some(cx.waker().clone());
        }
    }

    /// Nothing more is to be known about settings.
    pub(crate) fn over(&self) {
        self.settled.set(true);
        self.told.notify_waiters();
    }
}
