//! The registry's own API (`/v1/meshwork/…`): who is where. The Consul-compatible one beside it has Consul's shapes.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde::{Deserialize, Serialize};

use crate::client::{Client, ClientError, body, segment};

/// The code of a refusal because another copy has the instance's name.
pub const TAKEN: &str = "MW5026";

/// The header in which an instance says which copy of its name it is. What was added later than the first version is told in
/// headers: a registry that is a version behind passes over those, and refuses parameters and keys that it does not know.
pub const INCARNATION: &str = "meshwork-incarnation";

/// The port by this name is where an instance's metrics are scraped; it is no port of the service.
pub const METRICS_PORT: &str = "metrics";

/// Metadata by this key makes an instance a process of the platform itself, with its role as value (`gateway`, `server`,
/// …). It serves no callers and is no service of the mesh; it is registered so that who scrapes metrics finds it.
pub const ROLE: &str = "meshwork.dev/role";

/// Metadata by this key names the proxy that such a process is, by the id under which the control plane knows it: as long
/// as its lease lives the control plane counts it, connected or not.
pub const PROXY: &str = "meshwork.dev/proxy";

/// What the sidecar beside an instance writes into the instance's metadata when it registers it. Its ports are then
/// where the *application* listens; the instance is reached through the sidecar, by mTLS, as its identity says.
pub mod sidecar {
    /// Where the sidecar takes mTLS HTTP/2 (15006). Its presence means that there is a sidecar.
    pub const MESH_PORT: &str = "meshwork.dev/mesh-port";
    /// Where the sidecar takes opaque connections: HBONE, a CONNECT over HTTP/2 over mTLS. Absent: it takes none.
    pub const HBONE_PORT: &str = "meshwork.dev/hbone-port";
    /// The number by which callers know the service's port, whatever the application listens on: the same for every
    /// instance of a service. Absent: the port's own number.
    pub const SERVICE_PORT: &str = "meshwork.dev/service-port";
    /// The region in which the instance's zone lies.
    pub const REGION: &str = "meshwork.dev/region";
}

/// A service and all its instances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// The name callers use.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its instances, by id.
    pub instances: Vec<Instance>,
}

/// One running copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Unique in its namespace and node.
    pub id: String,
    /// IP address or host name.
    pub address: String,
    /// Its ports by name.
    pub ports: BTreeMap<String, Port>,
    /// The program it is a copy of.
    pub workload: Option<String>,
    /// The version of that program.
    pub version: Option<String>,
    /// Where it stands.
    pub zone: Option<String>,
    /// Its share of requests, relative to the others'.
    pub weight: u32,
    /// The same while its health is [`Health::Warning`], where that is another one: 0 is nothing as long as another instance has
    /// something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning_weight: Option<u32>,
    /// Free labels, as Consul has them.
    pub tags: Vec<String>,
    /// Free keys and values.
    pub metadata: BTreeMap<String, String>,
    /// What its checks and its lease say.
    pub health: Health,
    /// When its lease ends unless renewed (RFC 3339); absent without a lease.
    pub lease_expires: Option<String>,
    /// Its lease ran out together with those of more than half of its service, so that it may well be alive; `health` tells
    /// something worse where a check fails too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspect: bool,
    /// Which copy of its name it is, where it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<String>,
    /// The SPIFFE ID it registered with; absent: external, reached in plaintext.
    pub identity: Option<String>,
    /// The node it was registered on.
    pub node: String,
}

/// A port and what is spoken on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// 1 to 65535.
    pub port: u16,
    /// `http`, `http2`, `grpc`, `tls`, `tcp`; absent: detected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// What is known of an instance's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// All checks pass.
    Passing,
    /// Its lease ran out together with those of more than half of its service: it may well be alive.
    Suspect,
    /// A check warns.
    Warning,
    /// A check fails.
    Critical,
    /// Its owner took it out.
    Maintenance,
}

impl Health {
    /// Whether requests may be sent to it: a suspect is kept in use, because silence is no proof.
    #[must_use]
    pub const fn usable(self) -> bool {
        matches!(self, Self::Passing | Self::Suspect | Self::Warning)
    }
}

/// What is sent to register an instance. Keys that a registry does not know it refuses: see [`INCARNATION`] for what is new.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Registration {
    /// IP address or host name.
    pub address: String,
    /// Its ports by name.
    #[serde(default)]
    pub ports: BTreeMap<String, Port>,
    /// The program it is a copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// The version of that program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Its share of requests; absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Free keys and values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// It must be renewed within so many seconds; absent: it stays until deregistered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_seconds: Option<u64>,
    /// A new instance begins out of use, for this reason, until its owner ends that; an instance that is there already
    /// stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<String>,
    /// Which copy of that name it is: while the lease of one lives, another one at another place is refused. Absent: whoever
    /// comes takes the place of who was there. No key of the body, but the header [`INCARNATION`].
    #[serde(skip)]
    pub incarnation: Option<String>,
}

/// The name of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What changed since a revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// Which life of the registry the revision belongs to.
    pub epoch: String,
    /// Where the registry is; ask from here next.
    pub revision: u64,
    /// `services` is everything: forget what is not in it.
    pub reset: bool,
    /// Services that changed, whole.
    pub services: Vec<Service>,
    /// Services whose last instance was removed.
    pub removed: Vec<ServiceRef>,
    /// For how long instances have been able to reach this registry, in milliseconds: who is alive has told it again after a
    /// lease. A store of another epoch than before, in a registry that began a moment ago, may have lost what was in it. An
    /// earlier registry does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs_ms: Option<u64>,
    /// Who wanted to be removed in its first minute and was not there: the store that was lost may have had it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub departed: Vec<Departed>,
}

/// An instance that is to be gone, though the registry never had it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Departed {
    /// Its namespace.
    pub namespace: String,
    /// The node it would be registered on.
    pub node: String,
    /// Its id.
    pub id: String,
    /// Who says so: what stays of an instance with another identity is not meant.
    pub identity: Option<String>,
}

/// A place in the registry's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Since {
    /// From [`Changes::epoch`].
    pub epoch: String,
    /// From [`Changes::revision`].
    pub revision: u64,
}

/// A client of the registry's own API.
#[derive(Clone, Debug)]
pub struct RegistryClient(pub Client);

impl RegistryClient {
    fn instance(namespace: &str, service: &str, id: &str) -> String {
        format!("/v1/meshwork/instances/{}/{}/{}", segment(namespace), segment(service), segment(id))
    }

    /// All services.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn services(&self) -> Result<Vec<Service>, ClientError> {
        self.0.json(Method::GET, "/v1/meshwork/services", &[], Bytes::new()).await
    }

    /// Registers an instance, or replaces it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn register(
        &self,
        namespace: &str,
        service: &str,
        id: &str,
        registration: &Registration,
    ) -> Result<Instance, ClientError> {
        let path = Self::instance(namespace, service, id);
        let headers = of(registration.incarnation.as_deref());
        self.0.json(Method::PUT, &path, headers.as_slice(), body(registration)).await
    }

    /// Renews an instance's lease, if it is (still) this incarnation's.
    ///
    /// # Errors
    /// [`ClientError`]; status 404 means that it must register again, 409 that another copy has its name.
    pub async fn renew(
        &self,
        namespace: &str,
        service: &str,
        id: &str,
        incarnation: Option<&str>,
    ) -> Result<(), ClientError> {
        let path = Self::instance(namespace, service, id) + "/renew";
        self.0.send(Method::PUT, &path, of(incarnation).as_slice(), Bytes::new()).await.map(drop)
    }

    /// Removes an instance, if it is (still) this incarnation.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn deregister(
        &self,
        namespace: &str,
        service: &str,
        id: &str,
        incarnation: Option<&str>,
    ) -> Result<(), ClientError> {
        let path = Self::instance(namespace, service, id);
        self.0.send(Method::DELETE, &path, of(incarnation).as_slice(), Bytes::new()).await.map(drop)
    }

    /// Takes an instance into use, if it is (still) this incarnation.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn end_maintenance(
        &self,
        namespace: &str,
        service: &str,
        id: &str,
        incarnation: Option<&str>,
    ) -> Result<(), ClientError> {
        let path = Self::instance(namespace, service, id) + "/maintenance";
        self.0.send(Method::DELETE, &path, of(incarnation).as_slice(), Bytes::new()).await.map(drop)
    }

    /// What changed since then; waits up to `wait` for a change. Without a place, everything.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn changes(&self, since: Option<&Since>, wait: Duration) -> Result<Changes, ClientError> {
        let path = since.map_or_else(
            || "/v1/meshwork/watch".to_owned(),
            |at| {
                let wait = wait.as_millis();
                format!("/v1/meshwork/watch?epoch={}&since={}&wait={wait}ms", segment(&at.epoch), at.revision)
            },
        );
        self.0.json(Method::GET, &path, &[], Bytes::new()).await
    }
}

/// The header of a call that means one incarnation.
fn of(incarnation: Option<&str>) -> Option<(&'static str, &str)> {
    incarnation.map(|incarnation| (INCARNATION, incarnation))
}
