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
}

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
}
