//! The inbound side of a sidecar: which of its application's ports serves which service, and who may call it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use meshwork_base::{SpiffeId, Tick};

use crate::authorization::Authorization;
use crate::cause::Cause;
use crate::cluster::{AppProtocol, ClusterKey};
use crate::convert::{ServedSpec, WorkloadSpec};
use crate::deadline::Fastest;
use crate::overload::{Gate, Guard, Overload};
use crate::rate_limit::RateLimit;
use crate::request::split_authority;

/// Whether callers must prove who they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mtls {
    /// Plaintext is refused.
    #[default]
    Strict,
    /// Plaintext is taken too; its peer is nobody.
    Permissive,
}

/// Why nothing that comes in can be taken, as records say it: an instance without a workload is told from a port that none
/// of its services has.
pub const UNTOLD: &str = "the control plane has not said what this instance serves, or has taken it away";

/// What one instance serves.
#[derive(Debug, PartialEq, Eq)]
pub struct Inbound {
    /// `NAMESPACE/INSTANCE`.
    pub name: Arc<str>,
    /// Who it is.
    pub spiffe_id: SpiffeId,
    /// Its services' ports, in the order of the message.
    pub ports: Box<[InboundPort]>,
}

/// One port of one service that this instance serves.
#[derive(Debug, PartialEq, Eq)]
pub struct InboundPort {
    /// The service and its port.
    pub key: ClusterKey,
    /// The key as text, for records.
    pub label: Arc<str>,
    /// Where the application listens.
    pub app_port: u16,
    /// What the application speaks there.
    pub protocol: AppProtocol,
    /// Whether callers must prove who they are.
    pub mtls: Mtls,
    /// Who may call.
    pub authorization: Authorization,
    /// How many requests are taken.
    pub rate_limit: Option<Arc<RateLimit>>,
    /// What keeps the application from more than it can do.
    pub overload: Option<Arc<Overload>>,
    /// `PORT.SERVICE.NAMESPACE.mesh`, which callers name in their TLS handshake.
    pub sni: Arc<str>,
    /// What is known of the application there; outlives a snapshot.
    pub state: AppState,
}

/// What is known of an application's port, from its answers above all. It says nothing about configuration, so all are equal.
#[derive(Clone, Debug, Default)]
pub struct AppState {
    shared: Arc<AppShared>,
    spoken: Arc<Spoken>,
}

/// What makes an application a server of HTTP.
#[derive(Debug, Default)]
pub(crate) struct Spoken {
    /// It has answered as one: that stays so.
    answered: AtomicBool,
    /// That was told, as nobody could know it.
    told: AtomicBool,
    /// One of its services says so, as long as it does.
    declared: AtomicBool,
}

#[derive(Debug, Default)]
struct AppShared {
    fastest: Fastest,
    /// Made when a policy wants one.
    gate: OnceLock<Arc<Gate>>,
}

impl PartialEq for AppState {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for AppState {}

impl AppState {
    /// The application has answered well.
    pub fn answered(&self, took: Duration, now: Tick) {
        self.shared.fastest.answered(took, now);
    }

    /// The gate before it.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        self.shared.gate.get_or_init(Arc::default)
    }

    /// What its policy says from now on.
    pub(crate) fn is_under(&self, overload: Option<&Arc<Overload>>) {
        Gate::is_now_under(&self.shared.gate, overload);
    }

    /// Its fastest answer of late, if enough are known.
    #[must_use]
    pub fn fastest(&self, now: Tick) -> Option<Duration> {
        self.shared.fastest.of_late(now)
    }

    /// The application has answered as a server of HTTP; true: nobody declares that it is one, and this is the first time.
    #[must_use]
    #[inline]
    pub fn shows_http(&self) -> bool {
        let Spoken { answered, told, declared } = &*self.spoken;
        // Who sees what is known already writes nothing.
        if !answered.load(Ordering::Relaxed) {
            answered.store(true, Ordering::Relaxed);
        }
        !told.load(Ordering::Relaxed)
            && !declared.load(Ordering::Relaxed)
            && !told.swap(true, Ordering::Relaxed)
    }

    fn speaks_http(&self) -> bool {
        let Spoken { answered, declared, .. } = &*self.spoken;
        answered.load(Ordering::Relaxed) || declared.load(Ordering::Relaxed)
    }

    /// The same application, of which this is known of what it speaks.
    #[must_use]
    pub(crate) fn that_has_shown(self, spoken: Arc<Spoken>) -> Self {
        Self { spoken, ..self }
    }
}

/// Where applications speak HTTP: by instance and port, whichever services lead there and whatever they declare, and while the
/// control plane says nothing of the instance. Tunnels hold on to what they were opened by, and have to hear of it there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown(BTreeMap<(Arc<str>, u16), At>);

#[derive(Clone, Debug, Default)]
struct At {
    spoken: Arc<Spoken>,
    /// Something else than HTTP is declared.
    is_opaque: bool,
}

impl Shown {
    /// The same for what these instances serve now. Of a port for which something opaque is declared that is found out anew.
    pub(crate) fn of<'s>(&self, instances: &(impl Iterator<Item = &'s WorkloadSpec> + Clone)) -> Self {
        let mut shown = self.0.clone();
        let of = |instance: &'s WorkloadSpec| instance.served.iter().map(|served| (&instance.name, served));
        let served = || instances.clone().flat_map(of);
        for (name, served) in served() {
            shown.entry((Arc::clone(name), served.app_port)).or_default();
        }
        for ((name, port), at) in &mut shown {
            let is_here = |(of, served): &(&Arc<str>, &ServedSpec)| *of == name && served.app_port == *port;
            let here = || served().filter(is_here).map(|(_, served)| served.protocol);
            // Of an instance of which nothing is said nothing is taken back either.
            if instances.clone().any(|instance| instance.name == *name) {
                at.spoken.declared.store(here().any(AppProtocol::is_http), Ordering::Relaxed);
            }
            if here().next().is_none() {
                continue;
            }
            let was_opaque = std::mem::replace(&mut at.is_opaque, here().all(AppProtocol::is_opaque));
            if at.is_opaque && !was_opaque {
                at.spoken = Arc::default();
            }
        }
        Self(shown)
    }

    pub(crate) fn at(&self, instance: &Arc<str>, port: u16) -> Arc<Spoken> {
        self.0.get(&(Arc::clone(instance), port)).map(|at| Arc::clone(&at.spoken)).unwrap_or_default()
    }
}

impl Inbound {
    /// The port that a TLS handshake names.
    #[must_use]
    pub fn by_sni(&self, sni: &str) -> Option<&InboundPort> {
        self.ports.iter().find(|p| p.sni.eq_ignore_ascii_case(sni))
    }

    /// The port of a connection without a name that tells: when the instance serves only one, that one; otherwise the
    /// one whose service or application port the request's authority names.
    ///
    /// # Errors
    /// [`Cause::UnknownAppPort`] when that is not clear.
    pub fn by_port(&self, port: Option<u16>) -> Result<&InboundPort, Cause> {
        if let [only] = &*self.ports {
            return Ok(only);
        }
        let named = |field: fn(&InboundPort) -> u16| {
            let mut fits = self.ports.iter().filter(|p| Some(field(p)) == port);
            fits.next().filter(|_| fits.next().is_none())
        };
        named(|p| p.key.port).or_else(|| named(|p| p.app_port)).ok_or(Cause::UnknownAppPort)
    }

    /// Whether the application at this port of its own is known for a server of HTTP, by its answers or by what is declared, for
    /// whichever service.
    #[must_use]
    pub fn speaks_http(&self, app_port: u16) -> bool {
        self.ports.iter().any(|port| port.app_port == app_port && port.state.speaks_http())
    }
}

impl InboundPort {
    /// What keeps the application from more than it can do, where a policy says so.
    #[must_use]
    #[inline]
    pub fn guard(&self) -> Option<Guard<'_>> {
        self.overload.as_ref().map(|overload| (self.state.gate(), overload))
    }

    /// Whether the authority of a CONNECT can mean this port: proxies of ours say [`tunnel_authority`], those of others an
    /// address and the application's port. An address is taken as it is: there may be translation between them and us.
    #[must_use]
    pub fn is_meant_by(&self, authority: &str) -> bool {
        let (host, number) = split_authority(authority);
        let is_address = host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok();
        let is_port = [self.key.port, self.app_port].map(Some).contains(&number);
        is_port && (is_address || is_name_of(&self.key, host))
    }

    /// Whether a connection may go on.
    ///
    /// # Errors
    /// [`Cause::PeerUnauthenticated`] when it came without identity and must not.
    pub fn admit(&self, peer: Option<&SpiffeId>) -> Result<(), Cause> {
        match (peer, self.mtls) {
            (None, Mtls::Strict) => Err(Cause::PeerUnauthenticated),
            (Some(_), _) | (None, Mtls::Permissive) => Ok(()),
        }
    }
}

/// What the authority of a CONNECT says that wants a tunnel to a port of a service.
#[must_use]
pub fn tunnel_authority(key: &ClusterKey) -> String {
    let (namespace, name) = parts(key);
    format!("{name}.{namespace}:{}", key.port)
}

/// Whether a host is a service's name, alone, with its namespace, or with what may stand behind that (`svc.cluster.local`).
fn is_name_of(key: &ClusterKey, host: &str) -> bool {
    let (namespace, name) = parts(key);
    match strip_prefix(host, name) {
        Some("") => true,
        Some(behind) => behind
            .strip_prefix('.')
            .and_then(|behind| strip_prefix(behind, namespace))
            .is_some_and(|behind| behind.is_empty() || behind.starts_with('.')),
        None => false,
    }
}

/// What follows `prefix`, in any case.
fn strip_prefix<'t>(text: &'t str, prefix: &str) -> Option<&'t str> {
    let (before, behind) = text.split_at_checked(prefix.len())?;
    before.eq_ignore_ascii_case(prefix).then_some(behind)
}

/// Namespace and name.
fn parts(key: &ClusterKey) -> (&str, &str) {
    key.service.split_once('/').unwrap_or(("default", &key.service))
}

/// The name that callers put into their TLS handshake for a port of a service.
#[must_use]
pub fn mesh_sni(key: &ClusterKey) -> String {
    let (namespace, name) = parts(key);
    format!("{}.{name}.{namespace}.mesh", key.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(key: ClusterKey) -> InboundPort {
        InboundPort {
            label: "".into(),
            app_port: 5432,
            protocol: AppProtocol::Tcp,
            mtls: Mtls::Strict,
            authorization: Authorization::default(),
            rate_limit: None,
            overload: None,
            sni: mesh_sni(&key).into(),
            state: AppState::default(),
            key,
        }
    }

    #[test]
    fn a_connect_means_a_port_by_the_name_of_its_service_or_by_an_address() {
        let key = ClusterKey { service: "shop/db.main".into(), port: 80, subset: "".into() };
        let own = tunnel_authority(&key);
        let port = port(key);
        for authority in [
            &*own,
            "db.main.shop:80",
            "DB.main:5432",
            "db.main.shop.svc.cluster.local:80",
            "10.1.2.3:5432",
            "10.1.2.3:80",
            "[fd00::1]:5432",
        ] {
            assert!(port.is_meant_by(authority), "{authority}");
        }
        for authority in [
            "",
            "db.main",
            "db.main:",
            "db.main:0",
            "db.main:81",
            "db:80",
            "db.mainly:80",
            "db.main.other:80",
            "db.main.shopping:80",
            "xdb.main:80",
            "web:80",
            "10.1.2.3",
            "127.0.0.1:15000",
            "[fd00::1]:15008",
        ] {
            assert!(!port.is_meant_by(authority), "{authority}");
        }
    }
}
