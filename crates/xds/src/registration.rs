//! A process's entry in the registry: an instance of a service, made when the application accepts, or a process of the
//! platform itself; renewed while it lives, removed first when it is to end.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use http::StatusCode;
use meshwork_api::registry::{METRICS_PORT, Port, ROLE, Registration, TAKEN};
use meshwork_api::{ClientError, RegistryClient};
use meshwork_base::Rng;

use crate::client::Backoff;

mod incarnation;

pub use incarnation::incarnation;

/// How long the registry keeps an instance of which it hears nothing.
pub const LEASE_SECONDS: u64 = 15;
/// How often it hears from us.
const RENEW: Duration = Duration::from_secs(LEASE_SECONDS / 3);
/// How long one call may take.
const CALL: Duration = Duration::from_secs(4);

/// What the registry knows of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// Nothing.
    Missing,
    /// It keeps us, and nobody is sent to us.
    Kept,
    /// We are in use.
    Used,
}

/// Who is registered, and where.
#[derive(Clone, Debug)]
pub struct Registrar {
    /// Whom to tell.
    pub registry: RegistryClient,
    /// The service's namespace.
    pub namespace: String,
    /// The service.
    pub service: String,
    /// The instance's id.
    pub instance: String,
    /// What is told.
    pub registration: Registration,
}

impl Registrar {
    /// The entry of a process of the platform itself: nobody calls it, but who scrapes metrics finds it. It belongs to a
    /// name (namespace and name) of the process's own.
    #[must_use]
    pub fn of_process(
        registry: RegistryClient,
        (namespace, name): (&str, &str),
        role: &str,
        metrics: SocketAddr,
    ) -> Self {
        let registration = Registration {
            address: metrics.ip().to_string(),
            ports: BTreeMap::from([(METRICS_PORT.to_owned(), Port { port: metrics.port(), protocol: None })]),
            workload: Some(name.to_owned()),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            metadata: BTreeMap::from([(ROLE.to_owned(), role.to_owned())]),
            lease_seconds: Some(LEASE_SECONDS),
            ..Registration::default()
        };
        let (namespace, service) = (namespace.to_owned(), name.to_owned());
        Self { registry, namespace, service, instance: metrics.to_string(), registration }
    }

    /// Registers, takes the instance into use once it is `usable`, and renews for as long as it is polled; what the registry
    /// forgot is registered again, and asked again whether it is usable. After each attempt `taken` hears the registry's words
    /// where another copy has the name, else nothing.
    pub async fn keep<F: Future<Output = ()>>(
        self,
        usable: impl Fn() -> F,
        taken: impl Fn(Option<&str>),
        mut rng: impl Rng,
    ) {
        let mut becoming = Box::pin(usable());
        let mut is_usable = false;
        let mut backoff = Backoff::new(Duration::from_millis(100), RENEW);
        let mut entry = Entry::Missing;
        let mut told = News::default();
        let mut refused = None;
        loop {
            match self.advance(entry, is_usable).await {
                Ok(next) => {
                    refused = None;
                    taken(None);
                    if next == Entry::Used && entry != Entry::Used {
                        tracing::info!(service = %self.service, instance = %self.instance, "registered");
                    }
                    (entry, told) = (next, News::default());
                    backoff.reset();
                    if entry == Entry::Used {
                        tokio::time::sleep(RENEW).await;
                    } else if !is_usable {
                        // Only what is registered has a workload at the control plane, and callers must not come before it
                        // is here; however long that takes, the registry must not forget us meanwhile.
                        is_usable = tokio::time::timeout(RENEW, becoming.as_mut()).await.is_ok();
                    }
                }
                Err(error) => {
                    let registered = entry != Entry::Missing;
                    if told.is_news(&error) {
                        tracing::warn!(%error, registered, "the registry was not told; trying again");
                    } else {
                        tracing::debug!(%error, registered, "the registry was not told; trying again");
                    }
                    if !registered {
                        refused = still_taken(refused, &error);
                    }
                    taken(refused.as_deref());
                    if is_lost(&error) {
                        entry = Entry::Missing;
                        // And what made it usable may have gone with it.
                        is_usable = false;
                        becoming.set(usable());
                    }
                    tokio::time::sleep(backoff.next(&mut rng)).await;
                }
            }
        }
    }

    /// The next thing to tell the registry, and what the entry is then.
    async fn advance(&self, entry: Entry, usable: bool) -> Result<Entry, ClientError> {
        let (namespace, service, id) = self.name();
        match entry {
            Entry::Missing => {
                let registering = self.registry.register(namespace, service, id, &self.registration);
                bounded(&self.registry, registering).await?;
                Ok(Entry::Kept)
            }
            Entry::Kept if usable => {
                let using = self.registry.end_maintenance(namespace, service, id, self.incarnation());
                bounded(&self.registry, using).await?;
                Ok(Entry::Used)
            }
            Entry::Kept | Entry::Used => self.renew().await.map(|()| entry),
        }
    }

    async fn renew(&self) -> Result<(), ClientError> {
        let (namespace, service, id) = self.name();
        let renewing = self.registry.renew(namespace, service, id, self.incarnation());
        bounded(&self.registry, renewing).await
    }

    /// Takes the instance out. A registry that is away learns it when the lease ends.
    pub async fn deregister(&self) {
        let (namespace, service, id) = self.name();
        let leaving = self.registry.deregister(namespace, service, id, self.incarnation());
        match bounded(&self.registry, leaving).await {
            Ok(()) => tracing::info!(service, instance = id, "deregistered"),
            // It has forgotten us, or the name is another copy's by now.
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) || error.code() == Some(TAKEN) => {}
            Err(error) => {
                tracing::warn!(%error, "not deregistered; the registry forgets it when its lease ends");
            }
        }
    }

    fn name(&self) -> (&str, &str, &str) {
        (&self.namespace, &self.service, &self.instance)
    }

    fn incarnation(&self) -> Option<&str> {
        self.registration.incarnation.as_deref()
    }
}

/// Whether the registry has forgotten us, or the name is somebody else's now: only a registration tells which. That others
/// changed something while a change of ours was tried, which is a conflict too, says nothing of our entry.
fn is_lost(error: &ClientError) -> bool {
    matches!(error.status(), Some(StatusCode::NOT_FOUND | StatusCode::FORBIDDEN))
        || error.code() == Some(TAKEN)
}

/// The kind of failure that was told last: the status and code of a refusal, which are missing where nobody has answered. Of
/// one kind the first is told; another kind is news, as that a name was lost while the registry could not be reached.
#[derive(Default)]
struct News(Option<(Option<StatusCode>, Option<String>)>);

impl News {
    fn is_news(&mut self, error: &ClientError) -> bool {
        let kind = Some((error.status(), error.code().map(str::to_owned)));
        std::mem::replace(&mut self.0, kind.clone()) != kind
    }
}

/// Whether another copy has the name, in the registry's words, after a registration that failed. A registry that is away says
/// nothing of it: what it said last stands.
fn still_taken(before: Option<String>, error: &ClientError) -> Option<String> {
    match error {
        ClientError::Refused { problem, .. } if error.code() == Some(TAKEN) => Some(problem.to_string()),
        _ => before.filter(|_| error.is_temporary()),
    }
}

/// Where others find what listens at `address`: where that is every address, at the one by which we reach `peer`
/// (`HOST:PORT`), else on this machine alone.
#[must_use]
pub fn reached_at(address: SocketAddr, peer: &str) -> SocketAddr {
    if !address.ip().is_unspecified() {
        return address;
    }
    // A datagram socket is told where to send and says where from; nothing is sent.
    let from = |any: &str| {
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(peer).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let own = from("0.0.0.0:0").or_else(|| from("[::]:0"));
    SocketAddr::new(own.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), address.port())
}

async fn bounded<T>(
    registry: &RegistryClient,
    call: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    tokio::time::timeout(CALL, call).await.unwrap_or_else(|_| {
        let cause = format!("no answer within {} s", CALL.as_secs());
        Err(ClientError::Unreachable { server: registry.0.server().to_owned(), cause })
    })
}

#[cfg(test)]
mod tests;
