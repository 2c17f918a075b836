//! A mesh in this process: an authority, workloads by name, proxies on both sides of a call.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{Request, Response};
use meshwork_base::{Clock, ManualClock, SpiffeId, TrustDomain};
use meshwork_decision::Change;
use meshwork_identity::{Authority, Bundle, DEFAULT_SVID_TTL, Identity, PendingSvid, Svid};
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{Mesh, OnDemand, Settings, Side};
use tokio::sync::Barrier;

use super::Harness;
use super::h2::{H2Upstream, h2_client, h2_upstream};

/// One trust domain. Its clock moves when told to.
pub struct TestMesh {
    pub clock: ManualClock,
    pub authority: Authority,
    _folder: tempfile::TempDir,
}

impl TestMesh {
    pub fn new() -> Self {
        let clock = ManualClock::new();
        clock.advance(Duration::from_secs(1_800_000_000));
        Self::of("mesh.local", clock)
    }

    pub fn of(domain: &str, clock: ManualClock) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let domain = TrustDomain::new(domain).unwrap();
        let authority = Authority::open_or_create(folder.path(), &domain, Arc::new(clock.clone())).unwrap();
        Self { clock, authority, _folder: folder }
    }

    pub fn id(&self, workload: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://{}/ns/shop/sa/{workload}", self.authority.trust_domain())).unwrap()
    }

    pub fn svid(&self, workload: &str) -> Svid {
        let pending = PendingSvid::generate().unwrap();
        let issued = self.authority.issue(pending.csr(), &self.id(workload), DEFAULT_SVID_TTL).unwrap();
        pending.complete(issued.chain).unwrap()
    }

    pub fn identity(&self, workload: &str) -> Arc<Identity> {
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let domain = self.authority.trust_domain().clone();
        let bundle = Bundle::new(domain, 1, vec![self.authority.root().clone()], []).unwrap();
        Identity::new(self.svid(workload), bundle, clock).unwrap()
    }

    /// The bundle as proxies get it, with denied identities.
    pub fn bundle(&self, sequence: u64, denied: &[&str]) -> Change {
        let denied = denied.iter().map(|workload| v1::bundle::Denied {
            spiffe_id: self.id(workload).as_str().to_owned(),
            ..Default::default()
        });
        let message = v1::Bundle {
            roots_der: vec![self.authority.root().to_vec().into()],
            sequence,
            denied: denied.collect(),
        };
        Change::upsert(self.authority.trust_domain().as_str(), &sequence.to_string(), &message)
    }

    /// Another workload, and where it calls `reviews` whose proxy is at `peer`.
    pub async fn another_caller(&self, peer: SocketAddr) -> (Harness, SocketAddr) {
        let mut other = self.proxy(&self.identity("other"), None, Settings::default());
        other
            .change([self.bundle(1, &[])].into_iter().chain(service_at("reviews", &self.id("reviews"), peer)))
            .await;
        let proxy = other.engine.listen(Side::Outbound, "127.0.0.1:0".parse().unwrap()).await.unwrap();
        (other, proxy)
    }

    /// A proxy with this identity, without listeners.
    pub fn proxy(
        &self,
        identity: &Arc<Identity>,
        on_demand: Option<Arc<dyn OnDemand>>,
        settings: Settings,
    ) -> Harness {
        let mesh = Mesh { identity: Some(Arc::clone(identity)), on_demand, ..Mesh::default() };
        Harness::join(settings, mesh, Arc::new(self.clock.clone()), identity.id().workload())
    }
}

/// What the proxy beside an application of this workload is told.
pub fn serving(id: &SpiffeId, service: &str, app: SocketAddr, protocol: AppProtocol) -> Change {
    let served = v1::workload::Served {
        service: format!("shop/{service}"),
        service_port: 80,
        app_port: app.port().into(),
        protocol: protocol.into(),
    };
    let workload =
        v1::Workload { spiffe_id: id.as_str().to_owned(), services: vec![served], ..Default::default() };
    Change::upsert(&format!("shop/{}-1", id.workload()), "1", &workload)
}

/// A service of the mesh with one endpoint behind a proxy at `mesh`, which must prove to be `id`.
pub fn service_at(service: &str, id: &SpiffeId, mesh: SocketAddr) -> [Change; 2] {
    let name = format!("shop/{service}");
    let message = v1::Service {
        ports: vec![v1::ServicePort { name: "http".into(), port: 80, protocol: AppProtocol::Http1.into() }],
        hostnames: vec![service.to_owned(), format!("{service}.shop")],
        ..Default::default()
    };
    let slice = v1::EndpointSlice {
        service: name.clone(),
        ports: vec![v1::EndpointPort { name: "http".into(), port: 80 }],
        endpoints: vec![v1::Endpoint {
            addresses: vec![mesh.ip().to_string()],
            weight: 1,
            instance: format!("{service}-1"),
            workload: id.workload().to_owned(),
            transport: v1::endpoint::Transport::Mesh.into(),
            mesh_port: mesh.port().into(),
            spiffe_id: id.as_str().to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    [Change::upsert(&name, "1", &message), Change::upsert(&format!("{name}-1"), "1", &slice)]
}

/// The service `shop/SERVICE`, which is in no mesh, at an address.
pub fn plain_at(service: &str, at: SocketAddr) -> [Change; 2] {
    let name = format!("shop/{service}");
    let message = v1::Service {
        ports: vec![v1::ServicePort { name: "http".into(), port: 80, protocol: AppProtocol::Http1.into() }],
        hostnames: vec![service.to_owned()],
        ..Default::default()
    };
    let slice = v1::EndpointSlice {
        service: name.clone(),
        ports: vec![v1::EndpointPort { name: "http".into(), port: at.port().into() }],
        endpoints: vec![v1::Endpoint {
            addresses: vec![at.ip().to_string()],
            weight: 1,
            ..Default::default()
        }],
        ..Default::default()
    };
    [Change::upsert(&name, "1", &message), Change::upsert(&format!("{name}-1"), "1", &slice)]
}

/// The service `shop/db` with the application at `app`, behind a proxy that takes requests and tunnels at these ports.
pub fn db_behind(
    id: &SpiffeId,
    app: SocketAddr,
    protocol: AppProtocol,
    (requests, tunnels): (u16, u16),
) -> [Change; 2] {
    let service = v1::Service {
        ports: vec![v1::ServicePort { name: "db".into(), port: 80, protocol: protocol.into() }],
        hostnames: vec!["db".to_owned(), "db.shop".to_owned()],
        ..Default::default()
    };
    let slice = v1::EndpointSlice {
        service: "shop/db".to_owned(),
        ports: vec![v1::EndpointPort { name: "db".into(), port: app.port().into() }],
        endpoints: vec![v1::Endpoint {
            addresses: vec!["127.0.0.1".to_owned()],
            weight: 1,
            workload: "db".to_owned(),
            transport: v1::endpoint::Transport::Mesh.into(),
            mesh_port: requests.into(),
            hbone_port: tunnels.into(),
            spiffe_id: id.as_str().to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    [Change::upsert("shop/db", "1", &service), Change::upsert("shop/db-1", "1", &slice)]
}

/// A policy attached to a service.
pub fn policy(name: &str, service: &str, spec: v1::policy::Spec) -> Change {
    let (namespace, name) = ("shop", name);
    let source = v1::Source {
        kind: "Policy".into(),
        name: name.into(),
        namespace: namespace.into(),
        ..Default::default()
    };
    let target = v1::policy::Target {
        kind: "Service".into(),
        name: format!("{namespace}/{service}"),
        section: String::new(),
    };
    let message = v1::Policy { source: Some(source), targets: vec![target], spec: Some(spec) };
    Change::upsert(&format!("{namespace}/{name}"), "1", &message)
}

/// `web` calls `reviews`, each with its proxy.
pub struct Pair {
    pub mesh: TestMesh,
    pub web: Arc<Identity>,
    pub reviews: Arc<Identity>,
    pub outbound: Harness,
    pub inbound: Harness,
    /// Where `web` sends what it calls.
    pub proxy: SocketAddr,
    /// Where `reviews` is called by the mesh.
    pub peer: SocketAddr,
}

impl Pair {
    pub async fn start(app: SocketAddr, protocol: AppProtocol) -> Self {
        Self::with(app, protocol, [Settings::default(), Settings::default()]).await
    }

    /// The same with settings of the caller's proxy, and of the application's.
    pub async fn with(app: SocketAddr, protocol: AppProtocol, [callers, apps]: [Settings; 2]) -> Self {
        let mesh = TestMesh::new();
        let (web, reviews) = (mesh.identity("web"), mesh.identity("reviews"));
        let mut inbound = mesh.proxy(&reviews, None, apps);
        inbound.change([mesh.bundle(1, &[]), serving(&reviews.id(), "reviews", app, protocol)]).await;
        let peer = inbound.engine.listen(Side::Inbound, "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut outbound = mesh.proxy(&web, None, callers);
        outbound
            .change([mesh.bundle(1, &[])].into_iter().chain(service_at("reviews", &reviews.id(), peer)))
            .await;
        let proxy = outbound.engine.listen(Side::Outbound, "127.0.0.1:0".parse().unwrap()).await.unwrap();
        Self { mesh, web, reviews, outbound, inbound, proxy, peer }
    }
}

/// So many answers of late are enough to know what cannot be done sooner.
const KNOWN: usize = 20;

/// An application that answers at once, and badly whoever says `x-fails`; but what another caller asks at the same time it answers
/// together, four seconds later by this clock.
pub async fn slow_to_others(clock: &Arc<OnceLock<ManualClock>>) -> H2Upstream {
    let (clock, together) = (Arc::clone(clock), Arc::new(Barrier::new(KNOWN)));
    h2_upstream(usize::MAX, move |_, request, mut respond| {
        let (clock, together) = (Arc::clone(&clock), Arc::clone(&together));
        async move {
            if request.headers().contains_key("x-other") {
                if together.wait().await.is_leader() {
                    clock.get().unwrap().advance(Duration::from_secs(4));
                }
                together.wait().await;
            }
            let fails = request.headers().contains_key("x-fails");
            let (status, code) = if fails { (500, "13") } else { (200, "0") };
            let answer = Response::builder().status(status).header("grpc-status", code).body(()).unwrap();
            respond.send_response(answer, true).unwrap();
        }
    })
    .await
}

impl Pair {
    /// The application is [`slow_to_others`], and its proxy has learnt it: what gives less than four seconds it refuses. Its caller's
    /// has heard nothing of that.
    pub async fn slow_to_another(protocol: AppProtocol) -> Self {
        let clock = Arc::default();
        let app = slow_to_others(&clock).await;
        let pair = Self::start(app.address, protocol).await;
        clock.set(pair.mesh.clock.clone()).unwrap();
        let (_other, proxy) = pair.mesh.another_caller(pair.peer).await;
        let mut client = h2_client(proxy).await;
        let mut calls = Vec::new();
        for _ in 0..KNOWN {
            let call = Request::get("http://reviews/").header("x-other", "1").body(()).unwrap();
            calls.push(client.send_request(call, true).unwrap().0);
        }
        for call in calls {
            assert_eq!(call.await.unwrap().status(), 200);
        }
        pair
    }
}

/// `web` calls one of two instances of `reviews`.
pub struct Two {
    pub outbound: Harness,
    pub instances: [Harness; 2],
    pub proxy: SocketAddr,
}

pub async fn two(apps: [SocketAddr; 2], more: impl IntoIterator<Item = Change>) -> Two {
    let mesh = TestMesh::new();
    let (web, reviews) = (mesh.identity("web"), mesh.identity("reviews"));
    let any = || "127.0.0.1:0".parse().unwrap();
    let more: Vec<_> = more.into_iter().collect();
    let (mut instances, mut endpoints) = (Vec::new(), Vec::new());
    for app in apps {
        let mut instance = mesh.proxy(&reviews, None, Settings::default());
        let told = [mesh.bundle(1, &[]), serving(&reviews.id(), "reviews", app, AppProtocol::Http1)];
        instance.change(told.into_iter().chain(more.clone())).await;
        let at = instance.engine.listen(Side::Inbound, any()).await.unwrap();
        endpoints.push(v1::Endpoint {
            addresses: vec![at.ip().to_string()],
            weight: 1,
            instance: format!("reviews-{at}"),
            workload: "reviews".to_owned(),
            transport: v1::endpoint::Transport::Mesh.into(),
            mesh_port: at.port().into(),
            spiffe_id: reviews.id().as_str().to_owned(),
            ..Default::default()
        });
        instances.push(instance);
    }
    let slice = v1::EndpointSlice {
        service: "shop/reviews".into(),
        ports: vec![v1::EndpointPort { name: "http".into(), port: 80 }],
        endpoints,
        ..Default::default()
    };
    let [service, _] = service_at("reviews", &reviews.id(), any());
    let slice = Change::upsert("shop/reviews-1", "1", &slice);
    let mut outbound = mesh.proxy(&web, None, Settings::default());
    outbound.change([mesh.bundle(1, &[]), service, slice, in_turn()]).await;
    let proxy = outbound.engine.listen(Side::Outbound, any()).await.unwrap();
    Two { outbound, instances: instances.try_into().ok().unwrap(), proxy }
}

/// Who has much to do is called as well.
fn in_turn() -> Change {
    let algorithm = v1::traffic_policy::Algorithm::RoundRobin.into();
    let traffic = v1::TrafficPolicy { algorithm, ..Default::default() };
    policy("turns", "reviews", v1::policy::Spec::Traffic(traffic))
}
