//! What carries a stream: two bounded channels, whatever is between them.

pub mod grpc;
pub mod mtls;

use std::future::Future;
use std::pin::Pin;

use meshwork_messages::v1::{DiscoveryRequest, DiscoveryResponse};
use tokio::sync::mpsc;

/// Messages under way in one direction before the sender waits.
const DEPTH: usize = 32;

/// Why a stream is not there, or no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Nobody answered.
    #[error(
        "the control plane at {target} cannot be reached: {why}; the last good configuration stays in effect"
    )]
    Unreachable {
        /// Where it should be.
        target: String,
        /// What the network said.
        why: String,
    },
    /// The control plane does not serve this proxy.
    #[error("the control plane refuses this proxy: {0}")]
    Refused(String),
    /// The stream broke.
    #[error("the stream to the control plane broke: {0}")]
    Broken(String),
}

/// One end of a stream. Dropping it closes the stream.
#[derive(Debug)]
pub struct Transport<Out, In> {
    /// Towards the other end.
    pub tx: mpsc::Sender<Out>,
    /// From the other end.
    pub rx: mpsc::Receiver<In>,
}

/// The proxy's end; the last item may say why the stream ended.
pub type ClientTransport = Transport<DiscoveryRequest, Result<DiscoveryResponse, StreamError>>;
/// The control plane's end.
pub type ServerTransport = Transport<Result<DiscoveryResponse, StreamError>, DiscoveryRequest>;

/// Opens streams, one after another as they break.
pub type Connector =
    Box<dyn FnMut() -> Pin<Box<dyn Future<Output = Result<ClientTransport, StreamError>> + Send>> + Send>;

/// Both ends of a stream within one process.
#[must_use]
pub fn in_memory() -> (ClientTransport, ServerTransport) {
    let (to_server, from_client) = mpsc::channel(DEPTH);
    let (to_client, from_server) = mpsc::channel(DEPTH);
    (Transport { tx: to_server, rx: from_server }, Transport { tx: to_client, rx: from_client })
}
