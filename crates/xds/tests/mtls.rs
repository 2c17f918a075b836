//! The stream over mTLS: who is at both ends is proven, and it ends when the right to it ends.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Clock, SeededRng, SpiffeId, SystemClock, TrustDomain};
use meshwork_identity::{
    Authority, Bundle, ClientAuth, DEFAULT_SVID_TTL, Denied, Expected, Identity, PendingSvid, Svid,
};
use meshwork_messages::{type_url, v1};
use meshwork_xds::client::{Batch, Settings, start};
use meshwork_xds::server::{Hub, Open, Publication};
use meshwork_xds::transport::Connector;
use meshwork_xds::transport::grpc::DiscoveryService;
use meshwork_xds::transport::mtls::{Connections, Endpoints, connector, identify, serve};
use tonic::service::Routes;

struct Mesh {
    clock: Arc<dyn Clock>,
    authority: Authority,
    _folder: tempfile::TempDir,
}

impl Mesh {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let domain = TrustDomain::new("mesh.local").unwrap();
        let authority = Authority::open_or_create(folder.path(), &domain, clock.clone()).unwrap();
        Self { clock, authority, _folder: folder }
    }

    fn id(workload: &str) -> SpiffeId {
        let namespace = if workload == "control-plane" { "meshwork" } else { "shop" };
        SpiffeId::parse(&format!("spiffe://mesh.local/ns/{namespace}/sa/{workload}")).unwrap()
    }

    fn bundle(&self, sequence: u64, denied: Option<Denied>) -> Bundle {
        let domain = self.authority.trust_domain().clone();
        Bundle::new(domain, sequence, vec![self.authority.root().clone()], denied).unwrap()
    }

    fn svid(&self, workload: &str, ttl: Duration) -> Svid {
        let pending = PendingSvid::generate().unwrap();
        let issued = self.authority.issue(pending.csr(), &Self::id(workload), ttl).unwrap();
        pending.complete(issued.chain).unwrap()
    }

    fn identity(&self, workload: &str, ttl: Duration) -> Arc<Identity> {
        Identity::new(self.svid(workload, ttl), self.bundle(1, None), self.clock.clone()).unwrap()
    }
}

struct Plane {
    hub: Hub,
    address: String,
    connections: Connections,
}

async fn plane(mesh: &Mesh) -> Plane {
    let hub = Hub::new(Arc::new(Open), mesh.clock.clone());
    hub.publish(Publication { revision: 1, ..Publication::default() });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connections = Connections::default();
    let endpoints = Endpoints {
        identity: mesh.identity("control-plane", DEFAULT_SVID_TTL),
        client_auth: ClientAuth::Required,
        routes: Routes::new(DiscoveryService::new(hub.clone(), identify())),
        connections: connections.clone(),
        clock: mesh.clock.clone(),
    };
    tokio::spawn(async move { serve(listener, endpoints, std::future::pending()).await.unwrap() });
    Plane { hub, address, connections }
}

/// The first batch over a new stream, with what keeps the stream open.
async fn join(mesh: &Mesh, plane: &Plane, identity: Arc<Identity>) -> (Batch, impl Sized) {
    let connector = to(mesh, plane, &identity, "control-plane");
    let node = v1::Node { id: "shop/web-1".into(), ..v1::Node::default() };
    let settings = Settings::new(node).all_of([type_url::<v1::Route>()]);
    let (handle, mut updates, driver) =
        start(settings, None, connector, mesh.clock.clone(), SeededRng::new(1));
    tokio::spawn(driver);
    let batch = tokio::time::timeout(Duration::from_secs(20), updates.next()).await.unwrap().unwrap();
    (batch, (handle, updates))
}

/// A connector that expects this workload to answer.
fn to(mesh: &Mesh, plane: &Plane, identity: &Arc<Identity>, expected: &str) -> Connector {
    let expected = Expected::one(Mesh::id(expected));
    connector(plane.address.clone(), Arc::clone(identity), expected, mesh.clock.clone())
}

#[tokio::test]
async fn both_ends_are_proven_and_the_proxy_is_known_by_its_identity() {
    let mesh = Mesh::new();
    let plane = plane(&mesh).await;
    let (batch, _open) = join(&mesh, &plane, mesh.identity("web", DEFAULT_SVID_TTL)).await;
    assert_eq!(batch.revision, Some(1));
    assert_eq!(plane.hub.proxies()[0].identity, Some(Mesh::id("web")));
    assert_eq!(plane.connections.count(), 1);
}

#[tokio::test]
async fn whoever_is_not_who_was_meant_is_refused_on_both_sides() {
    let mesh = Mesh::new();
    let plane = plane(&mesh).await;
    let web = mesh.identity("web", DEFAULT_SVID_TTL);
    let wrong = to(&mesh, &plane, &web, "registry")().await.unwrap_err().to_string();
    assert!(wrong.contains("sa/registry") && wrong.contains("sa/control-plane"), "{wrong}");
    let svid = Mesh::new().svid("web", DEFAULT_SVID_TTL);
    let forged = Identity::new(svid, mesh.bundle(1, None), mesh.clock.clone()).unwrap();
    let opened = to(&mesh, &plane, &forged, "control-plane")().await;
    // The server judges a client after the client believes the handshake done.
    if let Ok(mut transport) = opened {
        assert!(transport.rx.recv().await.is_none_or(|item| item.is_err()));
    }
    assert_eq!((plane.hub.proxies().len(), plane.connections.count()), (0, 0));
}

#[tokio::test]
async fn a_revocation_closes_the_live_connection() {
    let mesh = Mesh::new();
    let plane = plane(&mesh).await;
    let (_batch, _open) = join(&mesh, &plane, mesh.identity("web", DEFAULT_SVID_TTL)).await;
    let mut activity = plane.hub.activity();
    let denied = |workload| Denied::Identity { id: Mesh::id(workload), issued_before: None, made: None };
    assert_eq!(plane.connections.review(&mesh.bundle(2, Some(denied("api")))), 0);
    assert_eq!(plane.connections.review(&mesh.bundle(3, Some(denied("web")))), 1);
    while plane.hub.proxies()[0].connected {
        tokio::time::timeout(Duration::from_secs(20), activity.changed()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_connection_ends_with_the_svid_of_its_peer() {
    let mesh = Mesh::new();
    let plane = plane(&mesh).await;
    let (_batch, _open) = join(&mesh, &plane, mesh.identity("web", Duration::from_secs(2))).await;
    let mut activity = plane.hub.activity();
    while plane.hub.proxies()[0].connected {
        tokio::time::timeout(Duration::from_secs(20), activity.changed()).await.unwrap().unwrap();
    }
    assert_eq!(plane.connections.count(), 0);
}

#[tokio::test]
async fn who_says_nothing_makes_place_for_who_does() {
    let mesh = Mesh::new();
    let plane = plane(&mesh).await;
    let mut silent = Vec::new();
    for _ in 0..256 {
        silent.push(tokio::net::TcpStream::connect(&plane.address).await.unwrap());
    }
    let (batch, _open) = join(&mesh, &plane, mesh.identity("web", DEFAULT_SVID_TTL)).await;
    assert_eq!(batch.revision, Some(1));
    // It came in place of one, and did not wait until the time of all was over.
    let refused: Vec<_> = plane.connections.refused().iter().map(|r| r.refusal.to_string()).collect();
    assert!(refused.len() == 1 && refused[0].contains("no more place"), "{refused:?}");
}
