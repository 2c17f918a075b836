//! What is wrong here besides the configuration, as the control plane is told: what `meshwork proxies` shows as LAST ERROR.

use meshwork_xds::client::Handle;
use tokio::sync::watch;

/// Cheap to clone; clones share.
#[derive(Clone)]
pub(crate) struct Troubles {
    handle: Handle,
    known: watch::Sender<Known>,
}

#[derive(Default)]
struct Known {
    identity: Option<String>,
    name: Option<String>,
}

impl Troubles {
    pub(crate) fn new(handle: Handle) -> Self {
        Self { handle, known: watch::Sender::default() }
    }

    /// What is wrong with the SVID.
    pub(crate) fn identity(&self, why: Option<String>) {
        self.tell(|known| known.identity = why);
    }

    /// Why the instance has no place under its name.
    pub(crate) fn name(&self, why: Option<String>) {
        self.tell(|known| known.name = why);
    }

    /// The worst first: without an SVID nobody reads the rest for long.
    fn tell(&self, change: impl FnOnce(&mut Known)) {
        self.known.send_modify(change);
        let known = self.known.borrow();
        self.handle.troubled(known.identity.clone().or_else(|| known.name.clone()));
    }
}
