//! What the eyes on an HTTP/2 connection's frames have seen, for the task that serves it.

use std::cell::Cell;

use h2::Reason;

/// Why a connection must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) reason: Reason,
    /// The name in the metric and the log.
    pub(crate) cause: &'static str,
}

impl Fault {
    pub(crate) const fn new(reason: Reason, cause: &'static str) -> Self {
        Self { reason, cause }
    }
}

/// See the module's text.
#[derive(Default)]
pub(crate) struct Watch {
    fault: Cell<Option<Fault>>,
    head: Cell<bool>,
    goodbye: Cell<bool>,
    /// Small frames of bodies that have come since they were joined.
    small: Cell<u32>,
}

/// So many small frames of bodies are let in before what nobody has taken of them is joined.
const MANY_SMALL: u32 = 512;

impl Watch {
    pub(crate) fn found(&self, fault: Fault) {
        self.fault.set(Some(fault));
    }

    /// What was found, once.
    pub(crate) fn take_fault(&self) -> Option<Fault> {
        self.fault.take()
    }

    pub(crate) fn set_head(&self, on_its_way: bool) {
        self.head.set(on_its_way);
    }

    /// Whether a part of a block of fields has come, and not all of it.
    pub(crate) fn reads_head(&self) -> bool {
        self.head.get()
    }

    pub(crate) fn say_goodbye(&self) {
        self.goodbye.set(true);
    }

    /// Whether the caller begins nothing new.
    pub(crate) fn said_goodbye(&self) -> bool {
        self.goodbye.get()
    }

    pub(crate) fn add_small(&self, frames: u32) {
        self.small.set(self.small.get().saturating_add(frames));
    }

    /// Whether no more may be let in now.
    pub(crate) fn has_many_small(&self) -> bool {
        self.small.get() >= MANY_SMALL
    }

    /// The same, asked by whoever joins them then.
    pub(crate) fn take_many_small(&self) -> bool {
        let many = self.has_many_small();
        if many {
            self.small.set(0);
        }
        many
    }
}
