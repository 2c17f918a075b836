//! Sources that live elsewhere: whoever watches a registry, a config service or a certificate authority feeds what it
//! sees to the control plane.

use std::collections::BTreeMap;
use std::sync::Arc;

use meshwork_compile::Catalog;
use meshwork_messages::v1::Resource;
use meshwork_xds::ResourceKey;
use tokio::sync::{mpsc, oneshot};

use crate::folder::Changes;
use crate::pipeline::{Update, What};

/// The control plane has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the control plane has ended; nothing is taken from its sources any more")]
pub struct Ended;

/// One source, declared in [`crate::Settings::feeds`]. Nothing is published before each has said its first word, which
/// is everything it holds.
#[derive(Clone, Debug)]
pub struct Feed {
    pub(crate) source: u8,
    pub(crate) updates: mpsc::Sender<Update>,
}

impl Feed {
    /// Documents that are new, changed or gone, by their addresses.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn documents(&self, changes: Changes) -> Result<(), Ended> {
        self.say(What::Documents(changes)).await
    }

    /// The same; gives the revision that holds them, once proxies are told. That waits for all sources' first word.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn documents_published(&self, changes: Changes) -> Result<u64, Ended> {
        let (published, revision) = oneshot::channel();
        let update =
            Update { source: self.source, what: What::Documents(changes), published: Some(published) };
        self.updates.send(update).await.map_err(|_| Ended)?;
        revision.await.map_err(|_| Ended)
    }

    /// Who is where, whole: it replaces the catalog before. One feed only may say this.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn catalog(&self, catalog: Catalog) -> Result<(), Ended> {
        self.say(What::Catalog(catalog)).await
    }

    /// Messages for proxies that are not compiled from documents, whole: they replace this feed's before.
    ///
    /// # Errors
    /// [`Ended`].
    pub async fn messages(&self, messages: BTreeMap<ResourceKey, Arc<Resource>>) -> Result<(), Ended> {
        self.say(What::Messages(messages)).await
    }

    async fn say(&self, what: What) -> Result<(), Ended> {
        let update = Update { source: self.source, what, published: None };
        self.updates.send(update).await.map_err(|_| Ended)
    }
}
