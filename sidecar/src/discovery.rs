//! Services as the application calls them for the first time.

use std::pin::Pin;
use std::time::Duration;

use meshwork_base::{Namespace, QualifiedName};
use meshwork_messages::v1;
use meshwork_proxy::{Found, OnDemand};
use meshwork_xds::ResourceKey;
use meshwork_xds::client::{Answer, Handle};

/// Asks the control plane, on behalf of callers in one namespace.
#[derive(Debug)]
pub(crate) struct Discovery {
    pub(crate) handle: Handle,
    pub(crate) namespace: Namespace,
}

/// The service that a host names, as callers in `namespace` mean it: `NAME`, `NAME.NAMESPACE`, and with `.svc`,
/// `.svc.cluster.local` or `.mesh` behind it.
fn service(host: &str, namespace: &Namespace) -> Option<QualifiedName> {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let mut labels = host.splitn(3, '.');
    let name = labels.next()?;
    let namespace = labels.next().unwrap_or(namespace.as_str());
    match labels.next() {
        None | Some("svc" | "mesh" | "svc.cluster.local") => QualifiedName::new(namespace, name).ok(),
        Some(_) => None,
    }
}

impl OnDemand for Discovery {
    fn find(&self, host: &str, patience: Duration) -> Pin<Box<dyn Future<Output = Found> + Send>> {
        let Some(name) = service(host, &self.namespace) else {
            return Box::pin(std::future::ready(Found::Unknown));
        };
        let handle = self.handle.clone();
        Box::pin(async move {
            match handle.watch(ResourceKey::of::<v1::Service>(name.to_string()), patience).await {
                Answer::Present => Found::Held,
                Answer::Absent => Found::Unknown,
                Answer::Unavailable => Found::Unavailable,
                Answer::Refused(why) => {
                    tracing::warn!(service = %name, why, "a service was delivered that cannot be used");
                    Found::Unavailable
                }
            }
        })
    }

    fn touch(&self, service: &str) {
        self.handle.touch(ResourceKey::of::<v1::Service>(service));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_names_a_service_as_kubernetes_and_the_mesh_write_it() {
        let of = |host| service(host, &Namespace::new("shop").unwrap()).map(|name| name.to_string());
        assert_eq!(of("catalog").as_deref(), Some("shop/catalog"));
        assert_eq!(of("Catalog.").as_deref(), Some("shop/catalog"));
        for host in
            ["catalog.other", "catalog.other.svc", "catalog.other.svc.cluster.local", "catalog.other.mesh"]
        {
            assert_eq!(of(host).as_deref(), Some("other/catalog"), "{host}");
        }
        for host in ["", "a.b.com", "catalog.other.svc.example.com", "10.0.0.1", "-"] {
            assert_eq!(of(host), None, "{host}");
        }
    }
}
