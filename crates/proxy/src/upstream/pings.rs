//! The PINGs of one connection: one on its way at a time, however many want to know something by it.
//!
//! One wants to know whether the peer takes an extended CONNECT. HTTP/2 lets a client begin before the peer's settings, but that
//! must wait for the word in them (RFC 8441 section 3). That they hold it `h2` tells; that they have come without it, it does not.
//! Settings are the first thing a peer sends, so whatever answers a PING comes after them. Another wants to know whether anybody
//! is there: see [`super::alive`].

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
    has_waiters: Cell<bool>,
    task: RefCell<Option<Waker>>,
    told: Notify,
}

impl Pings {
    /// Waits until `known`, or until the peer's settings have come for certain, or the connection has ended.
    pub(crate) async fn settled(&self, known: impl Fn() -> bool) {
        while !self.settled.get() && !known() {
            let told = self.told.notified();
            self.ask();
            self.has_waiters.set(true);
            told.await;
        }
    }

    /// Waits until `known`, of which what comes from the peer tells, or until the connection has ended.
    pub(super) async fn heard(&self, known: impl Fn() -> bool) {
        while !self.settled.get() && !known() {
            let told = self.told.notified();
            self.has_waiters.set(true);
            told.await;
        }
    }

    /// Something may have come: whoever waits looks again.
    pub(super) fn moved(&self) {
        if self.has_waiters.replace(false) {
            self.told.notify_waiters();
        }
    }

    /// Sends one, unless one is on its way.
    pub(super) fn ask(&self) {
        if !self.under_way.get() {
            self.wanted.set(true);
            self.wake();
        }
    }

    /// Whether one is on its way that has not been answered, or about to be.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.get() || self.wanted.get()
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
