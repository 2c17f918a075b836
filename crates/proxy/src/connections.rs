//! The downstream connections of one worker: what each waits for, since when, and how to end it.
//!
//! A timer per wait would cost every request; instead each connection notes in a cell what it waits for and since
//! when, and a sweep of the worker, twice a second, wakes those that have waited too long. The connection then finds
//! its order to close. Drain uses the same way.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use meshwork_base::Tick;

/// What a connection waits for; each has a time limit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A handshake (TLS, HTTP/2 preface).
    Handshake,
    /// The next request.
    Idle,
    /// The rest of a request's head.
    Head,
    /// Bytes of a request's or response's body, or the upstream.
    Exchange,
}

/// Why a connection is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The process drains: finish what runs, take nothing new.
    Drain,
    /// The phase has taken longer than its limit.
    TimedOut(Phase),
    /// Its listener is gone or the process stops: end at once.
    Stop,
}

/// How long a downstream connection may stay in each phase.
#[derive(Clone, Copy, Debug)]
pub struct DownstreamTimeouts {
    /// TLS handshake or HTTP/2 preface.
    pub handshake: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// From the first byte of a head to its end.
    pub head: Duration,
    /// Without any progress of a running exchange.
    pub stream_idle: Duration,
}

impl Default for DownstreamTimeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            head: Duration::from_secs(10),
            stream_idle: Duration::from_secs(300),
        }
    }
}

impl DownstreamTimeouts {
    fn of(&self, phase: Phase) -> Duration {
        match phase {
            Phase::Handshake => self.handshake,
            Phase::Idle => self.idle,
            Phase::Head => self.head,
            Phase::Exchange => self.stream_idle,
        }
    }
}

/// One connection's entry.
#[derive(Debug)]
pub(crate) struct Entry {
    id: u64,
    phase: Cell<Phase>,
    since: Cell<Tick>,
    order: Cell<Option<Order>>,
    waker: RefCell<Option<Waker>>,
}

impl Entry {
    /// Enters a phase.
    pub(crate) fn enter(&self, phase: Phase, now: Tick) {
        self.phase.set(phase);
        self.since.set(now);
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Something moved: the time of the phase starts again.
    pub(crate) fn progress(&self, now: Tick) {
        self.since.set(now);
    }

    /// What the connection was asked to do.
    pub(crate) fn order(&self) -> Option<Order> {
        self.order.get()
    }

    /// Has the task woken when an order comes. Call before returning `Pending`.
    pub(crate) fn watch(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &*waker {
            Some(known) if known.will_wake(cx.waker()) => {}
            _ => *waker = Some(cx.waker().clone()),
        }
    }

    fn give(&self, order: Order) {
        self.order.set(Some(order));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// All downstream connections of a worker.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    entries: RefCell<HashMap<u64, Rc<Entry>>>,
    next_id: Cell<u64>,
}

impl Connections {
    /// Notes a new connection; the guard forgets it on drop.
    pub(crate) fn register(self: &Rc<Self>, now: Tick) -> Registration {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let entry = Rc::new(Entry {
            id,
            phase: Cell::new(Phase::Handshake),
            since: Cell::new(now),
            order: Cell::new(None),
            waker: RefCell::new(None),
        });
        self.entries.borrow_mut().insert(id, Rc::clone(&entry));
        Registration { entry, connections: Rc::clone(self) }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Gives every connection an order.
    pub(crate) fn order_all(&self, order: Order) {
        for entry in self.entries.borrow().values() {
            entry.give(order);
        }
    }

    /// Ends what has waited too long.
    pub(crate) fn sweep(&self, now: Tick, timeouts: &DownstreamTimeouts) {
        for entry in self.entries.borrow().values() {
            let phase = entry.phase.get();
            if now.since(entry.since.get()) >= timeouts.of(phase)
                && !matches!(entry.order(), Some(Order::TimedOut(_)))
            {
                entry.give(Order::TimedOut(phase));
            }
        }
    }
}

/// A connection's place in the list, as long as it lives.
#[derive(Debug)]
pub(crate) struct Registration {
    entry: Rc<Entry>,
    connections: Rc<Connections>,
}

impl std::ops::Deref for Registration {
    type Target = Entry;
    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.connections.entries.borrow_mut().remove(&self.entry.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Tick {
        Tick::ZERO.after(Duration::from_secs(seconds))
    }

    #[test]
    fn a_sweep_ends_only_what_waited_longer_than_its_phase_allows() {
        let connections = Rc::new(Connections::default());
        let timeouts = DownstreamTimeouts::default();
        let head = connections.register(at(0));
        head.enter(Phase::Head, at(0));
        let idle = connections.register(at(0));
        idle.enter(Phase::Idle, at(0));
        connections.sweep(at(10), &timeouts);
        assert_eq!(head.order(), Some(Order::TimedOut(Phase::Head)));
        assert_eq!(idle.order(), None, "an idle connection has 75 s");
        drop((head, idle));
        assert_eq!(connections.len(), 0);
    }

    #[test]
    fn progress_keeps_an_exchange_alive() {
        let connections = Rc::new(Connections::default());
        let exchange = connections.register(at(0));
        exchange.enter(Phase::Exchange, at(0));
        exchange.progress(at(299));
        connections.sweep(at(598), &DownstreamTimeouts::default());
        assert_eq!(exchange.order(), None);
        connections.sweep(at(599), &DownstreamTimeouts::default());
        assert_eq!(exchange.order(), Some(Order::TimedOut(Phase::Exchange)));
    }

    #[test]
    fn an_order_wakes_the_task_that_watches() {
        let connections = Rc::new(Connections::default());
        let entry = connections.register(at(0));
        let (waker, count) = futures_util_test_waker();
        entry.watch(&Context::from_waker(&waker));
        connections.order_all(Order::Drain);
        assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 1);
        assert_eq!(entry.order(), Some(Order::Drain));
    }

    fn futures_util_test_waker() -> (Waker, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
        struct Count(std::sync::Arc<std::sync::atomic::AtomicUsize>);
        impl std::task::Wake for Count {
            fn wake(self: std::sync::Arc<Self>) {
                self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        }
        let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        (Waker::from(std::sync::Arc::new(Count(std::sync::Arc::clone(&count)))), count)
    }
}
