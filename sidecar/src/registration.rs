//! The instance's entry in the registry: made when the application accepts, renewed while it lives, removed first when
//! it is to end.

use std::time::Duration;

use http::StatusCode;
use meshwork_api::registry::Registration;
use meshwork_api::{ClientError, RegistryClient};
use meshwork_base::Rng;
use meshwork_xds::client::Backoff;

/// How long the registry keeps an instance of which it hears nothing.
pub(crate) const LEASE_SECONDS: u64 = 15;
/// How often it hears from us.
const RENEW: Duration = Duration::from_secs(LEASE_SECONDS / 3);
/// How long one call may take.
const CALL: Duration = Duration::from_secs(4);

/// Who is registered, and where.
#[derive(Clone, Debug)]
pub(crate) struct Registrar {
    pub(crate) registry: RegistryClient,
    pub(crate) namespace: String,
    pub(crate) service: String,
    pub(crate) instance: String,
    pub(crate) registration: Registration,
}

impl Registrar {
    /// Registers, takes the instance into use once `usable`, and renews for as long as it is polled; what the registry
    /// forgot is registered again.
    pub(crate) async fn keep(self, usable: impl Future<Output = ()>, mut rng: impl Rng) {
        let mut usable = Some(Box::pin(usable));
        let mut backoff = Backoff::new(Duration::from_millis(100), RENEW);
        let mut registered = false;
        loop {
            let result = if registered { self.renew().await } else { self.register(&mut usable).await };
            match result {
                Ok(()) => {
                    if !registered {
                        tracing::info!(service = %self.service, instance = %self.instance, "registered");
                    }
                    registered = true;
                    backoff.reset();
                    tokio::time::sleep(RENEW).await;
                }
                Err(error) => {
                    tracing::warn!(%error, registered, "the registry was not told; trying again");
                    // Forgotten, or somebody else's now: only a registration tells which.
                    registered &=
                        !matches!(error.status(), Some(StatusCode::NOT_FOUND | StatusCode::FORBIDDEN));
                    tokio::time::sleep(backoff.next(&mut rng)).await;
                }
            }
        }
    }

    async fn register(
        &self,
        usable: &mut Option<std::pin::Pin<Box<impl Future<Output = ()>>>>,
    ) -> Result<(), ClientError> {
        let (namespace, service, id) = self.name();
        let registering = self.registry.register(namespace, service, id, &self.registration);
        bounded(&self.registry, registering).await?;
        // Only what is registered has a workload at the control plane, and callers must not come before it is here.
        if let Some(usable) = usable.take() {
            usable.await;
        }
        bounded(&self.registry, self.registry.end_maintenance(namespace, service, id)).await
    }

    async fn renew(&self) -> Result<(), ClientError> {
        let (namespace, service, id) = self.name();
        bounded(&self.registry, self.registry.renew(namespace, service, id)).await
    }

    /// Takes the instance out. A registry that is away learns it when the lease ends.
    pub(crate) async fn deregister(&self) {
        let (namespace, service, id) = self.name();
        match bounded(&self.registry, self.registry.deregister(namespace, service, id)).await {
            Ok(()) => tracing::info!(service, instance = id, "deregistered"),
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => {}
            Err(error) => {
                tracing::warn!(%error, "not deregistered; the registry forgets it when its lease ends");
            }
        }
    }

    fn name(&self) -> (&str, &str, &str) {
        (&self.namespace, &self.service, &self.instance)
    }
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
