//! The listening sockets of a worker. Some are closed as they are, others when who waits there is taken; meanwhile the worker goes on, for
//! it may be told that there is no time for that.

use std::collections::HashMap;
use std::rc::Rc;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::accept::Accepting;
use crate::mesh::Place;
use crate::worker::Worker;

/// What follows when sockets are closed.
pub(crate) enum Then {
    /// This is said.
    Say(oneshot::Sender<()>),
    /// What calls the application beside us is drained, and that is said.
    DrainInbound(oneshot::Sender<usize>),
}

/// See the module's text.
#[derive(Default)]
pub(crate) struct Doors {
    open: HashMap<Place, Accepting>,
    closing: Vec<(Place, JoinHandle<()>)>,
    then: Vec<Then>,
}

impl Doors {
    pub(crate) fn open(&mut self, worker: &Rc<Worker>, place: Place, socket: std::net::TcpListener) {
        if let Some(accepting) = Accepting::start(worker, place, socket) {
            self.open.insert(place, accepting);
        }
    }

    /// Closes this one as it is.
    pub(crate) fn abort(&mut self, place: Place) {
        if let Some(accepting) = self.open.remove(&place) {
            accepting.abort();
        }
    }

    /// Closes all as they are, also those that are being closed.
    pub(crate) fn abort_all(&mut self) {
        self.abort_those(|_| true);
    }

    /// Closes those as they are, and what was to follow when they are closed of itself does not.
    pub(crate) fn abort_inbound(&mut self) {
        self.abort_those(is_inbound);
        self.then.retain(|then| !matches!(then, Then::DrainInbound(_)));
    }

    fn abort_those(&mut self, which: impl Fn(Place) -> bool) {
        self.open.extract_if(|place, _| which(*place)).for_each(|(_, accepting)| accepting.abort());
        self.closing.iter().filter(|(place, _)| which(*place)).for_each(|(_, closing)| closing.abort());
    }

    /// Closes those as soon as who waits there is taken.
    pub(crate) fn close(&mut self, which: impl Fn(Place) -> bool, then: Then) {
        let stopped = self.open.extract_if(|place, _| which(*place));
        self.closing.extend(stopped.map(|(place, accepting)| (place, accepting.stop())));
        self.then.push(then);
    }

    /// Who waits at some is still being taken.
    pub(crate) const fn is_closing(&self) -> bool {
        !self.then.is_empty()
    }

    /// Waits until those that are being closed are, and gives what follows. Cancelling this loses nothing.
    pub(crate) async fn closed(&mut self) -> Vec<Then> {
        if self.then.is_empty() {
            std::future::pending::<()>().await;
        }
        while let Some((_, closing)) = self.closing.last_mut() {
            // A task that is gone has closed its socket.
            let _ = closing.await;
            self.closing.pop();
        }
        std::mem::take(&mut self.then)
    }
}

/// Whether the application beside us is called there.
pub(crate) const fn is_inbound(place: Place) -> bool {
    matches!(place, Place::Inbound(_) | Place::Hbone(_))
}
