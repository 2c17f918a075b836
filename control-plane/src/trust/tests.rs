//! A control plane and its proxies over real TLS on loopback: who gets in, who does not and why, and what stays.

mod ahead;
mod lapsed;
mod refusals;
mod root;
mod staying;
mod unkept;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use meshwork_api::identity::{Token, TokenRequest};
use meshwork_api::{Client, ClientError, IdentityClient};
use meshwork_base::{Clock, Namespace, ObjectName, SeededRng, SystemClock};
use meshwork_identity::Identity;
use meshwork_messages::{type_url, v1};
use meshwork_telemetry::{Format, MetricsRegistry};
use meshwork_xds::ResourceKey;
use meshwork_xds::client::{self, Batch, Change, Handle, Updates};
use meshwork_xds::join::{JoinError, Joining, Tokens};
use meshwork_xds::transport::Connector;
use prost::Message as _;
use serde_json::{Value, json};

use crate::pipeline::tests::shop;
use crate::{ControlPlane, Secure, Settings};

const PATIENCE: Duration = Duration::from_secs(30);

/// Everything on one disk: resources, the control plane's data, and a folder for each proxy.
struct Mesh {
    disk: tempfile::TempDir,
    clock: Arc<dyn Clock>,
    plane: ControlPlane,
}

impl Mesh {
    async fn new() -> Self {
        Self::at(Arc::new(SystemClock::new())).await
    }

    async fn at(clock: Arc<dyn Clock>) -> Self {
        let disk = tempfile::tempdir().unwrap();
        std::fs::create_dir(disk.path().join("resources")).unwrap();
        shop(&disk.path().join("resources"));
        let plane = start(disk.path(), SocketAddr::from(([127, 0, 0, 1], 0)), &clock).await;
        Self { disk, clock, plane }
    }

    /// The same again, as after a crash of the process: same disk, same port.
    async fn restart(self) -> Self {
        let Self { disk, clock, plane } = self;
        let address = plane.trust().unwrap().address();
        drop(plane);
        let plane = tokio::time::timeout(PATIENCE, start(disk.path(), address, &clock)).await.unwrap();
        Self { disk, clock, plane }
    }

    /// A copy of the disk, as a backup makes it.
    fn copy(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            std::fs::create_dir_all(copy.path().join(&folder)).unwrap();
            for entry in std::fs::read_dir(self.disk.path().join(&folder)).unwrap() {
                let entry = entry.unwrap();
                let place = folder.join(entry.file_name());
                if entry.file_type().unwrap().is_dir() {
                    folders.push(place);
                } else {
                    std::fs::copy(entry.path(), copy.path().join(place)).unwrap();
                }
            }
        }
        copy
    }

    /// A control plane that begins with such a copy.
    async fn restored(disk: tempfile::TempDir, clock: Arc<dyn Clock>) -> Self {
        let plane = start(disk.path(), SocketAddr::from(([127, 0, 0, 1], 0)), &clock).await;
        Self { disk, clock, plane }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.disk.path().join(name)
    }

    fn api(&self) -> Client {
        Client::in_memory("the API", self.plane.router())
    }

    async fn post(&self, path: &str, body: Value) -> Result<Value, ClientError> {
        self.api().json(Method::POST, path, &[], Bytes::from(body.to_string())).await
    }

    async fn get(&self, path: &str) -> Value {
        self.api().json(Method::GET, path, &[], Bytes::new()).await.unwrap()
    }

    async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.api().send(Method::DELETE, path, &[], Bytes::new()).await.map(drop)
    }

    async fn token(&self, workload: &str, uses: u32) -> Token {
        let workload = workload.to_owned();
        let request = TokenRequest { namespace: "shop".into(), workload, uses, ttl_seconds: 3600 };
        IdentityClient(self.api()).create_token(&request).await.unwrap()
    }

    /// How an instance with this folder joins; a token is put into a file.
    fn joining(&self, folder: &str, token: Option<&str>) -> Joining {
        let tokens = token.map(|token| {
            let path = self.path(&format!("{folder}.token"));
            std::fs::write(&path, token).unwrap();
            Tokens::File(path)
        });
        let control_plane = self.plane.trust().unwrap().address().to_string();
        let tokens = tokens.unwrap_or_default();
        Joining { control_plane, data_dir: self.path(folder), tokens, expected: None }
    }

    /// How one joins that may ask the API, which runs on its machine.
    fn asking(&self, workload: &str) -> Joining {
        let api = self.api();
        let tokens = Tokens::made(("shop", workload), move || Ok(api.clone()));
        Joining { tokens, ..self.joining(workload, None) }
    }

    /// Keeps an SVID until it is another one.
    async fn until_renewed(&self, joining: Joining, identity: &Arc<Identity>) {
        let serial = |identity: &Identity| identity.svid().as_peer().serial.clone();
        let first = serial(identity);
        let keep = joining.keep(Arc::clone(identity), Arc::clone(&self.clock), SeededRng::new(1), |_| {});
        let renewed = async {
            while serial(identity) == first {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = keep => unreachable!("it keeps the SVID for as long as it is polled"),
            done = tokio::time::timeout(PATIENCE, renewed) => done.expect("it is renewed"),
        }
    }

    async fn join_with(&self, folder: &str, token: Option<&str>) -> Result<Arc<Identity>, JoinError> {
        let joining = self.joining(folder, token);
        let mut rng = SeededRng::new(1);
        let joined = joining.identity(Arc::clone(&self.clock), &mut rng);
        tokio::time::timeout(PATIENCE, joined).await.expect("a join ends")
    }

    /// A workload of namespace `shop` that has joined.
    async fn join(&self, workload: &str) -> Arc<Identity> {
        let token = self.token(workload, 1).await.token;
        self.join_with(workload, Some(&token)).await.unwrap()
    }

    fn connector(&self, identity: &Arc<Identity>) -> Connector {
        self.joining("nowhere", None).connector(identity, Arc::clone(&self.clock))
    }

    /// The causes of the connections that were refused, once there are so many.
    async fn refused(&self, count: usize) -> Vec<String> {
        let look = async {
            loop {
                let refused = self.get("/v1/identity/refused").await;
                let causes = refused.as_array().unwrap().iter().map(|one| one["cause"].as_str().unwrap());
                let causes: Vec<String> = causes.map(str::to_owned).collect();
                if causes.len() >= count {
                    return causes;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, look).await.expect("a refusal is noted")
    }

    /// Waits until a proxy is connected, or is not any more.
    async fn until_connected(&self, id: &str, wanted: bool) {
        let mut activity = self.plane.hub().activity();
        let is = || {
            let proxies = self.plane.hub().proxies();
            proxies.iter().any(|proxy| proxy.node.id == id && proxy.connected) == wanted
        };
        while !is() {
            tokio::time::timeout(PATIENCE, activity.changed()).await.unwrap().unwrap();
        }
    }
}

async fn start(disk: &Path, listen: SocketAddr, clock: &Arc<dyn Clock>) -> ControlPlane {
    start_with(disk, |secure| Secure { listen, ..secure }, clock).await
}

async fn start_with(disk: &Path, set: impl FnOnce(Secure) -> Secure, clock: &Arc<dyn Clock>) -> ControlPlane {
    let settings = Settings::folder(disk.join("resources"));
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let secure = set(Secure { listen, ..Secure::new(disk.join("control-plane")) });
    loop {
        let settings = Settings {
            access: Arc::clone(&settings.access),
            folders: settings.folders.clone(),
            feeds: Vec::new(),
            compile: settings.compile.clone(),
            metrics: settings.metrics.clone(),
            kept: None,
            start_anyway: false,
        };
        match ControlPlane::start_secure(settings, secure.clone(), Arc::clone(clock)).await {
            Ok(plane) => {
                plane.synced().await;
                return plane;
            }
            // The one before lets go of port and store when its tasks have seen that it is gone.
            Err(error) if error.to_string().contains("in use") => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A proxy on the stream that takes whatever it is told.
struct Proxy {
    handle: Handle,
    updates: Updates,
}

fn node(id: &str) -> v1::Node {
    let role = if id.starts_with("gateway/") { "gateway" } else { "sidecar" };
    v1::Node { id: id.into(), role: role.into(), ..v1::Node::default() }
}

impl Proxy {
    fn open(id: &str, connector: Connector) -> Self {
        let types = [
            type_url::<v1::Listener>(),
            type_url::<v1::Route>(),
            type_url::<v1::Service>(),
            type_url::<v1::EndpointSlice>(),
            type_url::<v1::Bundle>(),
        ];
        let settings = client::Settings::new(node(id)).all_of(types);
        let clock = Arc::new(SystemClock::new());
        let (handle, updates, driver) = client::start(settings, None, connector, clock, SeededRng::new(1));
        tokio::spawn(driver);
        Self { handle, updates }
    }

    async fn next(&mut self) -> Batch {
        let next = tokio::time::timeout(PATIENCE, self.updates.next()).await;
        let batch = next.expect("a change arrives").expect("the driver lives");
        self.handle.settle(batch.id, Vec::new()).await.unwrap();
        batch
    }

    /// The names of what arrives up to the next commit.
    async fn names(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        loop {
            let batch = self.next().await;
            names.extend(batch.changes.iter().map(|change| change.key().to_string()));
            if batch.revision.is_some() {
                names.sort();
                return names;
            }
        }
    }

    /// The next bundle.
    async fn bundle(&mut self) -> v1::Bundle {
        let wanted = ResourceKey::of::<v1::Bundle>("mesh.local");
        loop {
            for change in self.next().await.changes {
                if let Change::Upsert(key, resource) = change
                    && key == wanted
                {
                    return v1::Bundle::decode(resource.body.clone()).unwrap();
                }
            }
        }
    }
}

/// Status, code and cause of a refusal by HTTP.
fn told(error: &ClientError) -> (u16, String, String) {
    let ClientError::Refused { status, problem, .. } = error else { panic!("{error}") };
    let cause = problem.more.get("cause").and_then(Value::as_str).unwrap_or_default();
    (status.as_u16(), problem.code.clone().unwrap_or_default(), cause.to_owned())
}

fn told_join(result: Result<Arc<Identity>, JoinError>) -> (u16, String, String) {
    match result {
        Err(JoinError::Client(error)) => told(&error),
        Err(error) => panic!("{error}"),
        Ok(identity) => panic!("{identity:?} has joined"),
    }
}

#[tokio::test]
async fn a_token_becomes_an_svid_and_the_svid_a_stream() {
    let mesh = Mesh::new().await;
    let token = mesh.token("web", 1).await;
    assert_eq!(token.spiffe_id, "spiffe://mesh.local/ns/shop/sa/web");
    let identity = mesh.join_with("web", Some(&token.token)).await.unwrap();
    assert_eq!(identity.id().to_string(), token.spiffe_id);
    assert!(
        identity.remaining() > Duration::from_hours(71) && identity.remaining() <= Duration::from_hours(72)
    );
    let mut proxy = Proxy::open("shop/web-1", mesh.connector(&identity));
    let expected = [
        "Bundle mesh.local",
        "EndpointSlice shop/web-1",
        "Route HTTPRoute/shop/a",
        "Route HTTPRoute/shop/b",
        "Service shop/web",
    ];
    let mut names = proxy.names().await;
    while names.len() < expected.len() {
        // Endpoints come beside the commit.
        names.extend(proxy.next().await.changes.iter().map(|change| change.key().to_string()));
        names.sort();
    }
    assert_eq!(names, expected, "all of the mesh, and no listener of a gateway that is another's");
    let proxies = mesh.get("/v1/proxies").await;
    assert_eq!(proxies[0]["identity"], token.spiffe_id.as_str());
    let tokens = mesh.get("/v1/tokens").await;
    assert_eq!((&tokens[0]["state"], &tokens[0]["usesLeft"]), (&json!("usedUp"), &json!(0)));
    assert!(!tokens.to_string().contains(token.token.split('.').nth(1).unwrap()), "no secret is listed");
    let metrics = MetricsRegistry::default();
    mesh.plane.trust().unwrap().export(&metrics);
    let told = metrics.render(Format::OpenMetrics);
    assert!(told.contains("\nmeshwork_control_plane_svids_issued_total 1\n"), "{told}");
}

#[tokio::test]
async fn a_gateway_named_like_its_gateway_sees_its_listeners() {
    let mesh = Mesh::new().await;
    let identity = mesh.join("edge").await;
    let mut proxy = Proxy::open("gateway/shop/edge/1", mesh.connector(&identity));
    assert!(proxy.names().await.contains(&"Listener shop/edge/http".to_owned()));
}

#[tokio::test]
async fn a_token_is_used_as_often_as_it_may_be_however_many_ask_at_once() {
    let mesh = Mesh::new().await;
    let token = mesh.token("web", 3).await.token;
    let folders: Vec<String> = (0..8).map(|nth| format!("web-{nth}")).collect();
    let joins = folders.iter().map(|folder| mesh.join_with(folder, Some(&token)));
    let (joined, refused): (Vec<_>, Vec<_>) =
        futures_util::future::join_all(joins).await.into_iter().partition(Result::is_ok);
    assert_eq!((joined.len(), refused.len()), (3, 5));
    for one in refused {
        assert_eq!(told_join(one), (403, "MW6043".into(), "token_used_up".into()));
    }
}

#[tokio::test]
async fn an_answer_that_was_lost_is_given_again_to_the_same_request_alone() {
    let mesh = Mesh::new().await;
    let tokens = &mesh.plane.trust().unwrap().inner.issuer.tokens;
    let text = mesh.token("web", 1).await.token;
    let token = meshwork_identity::JoinToken::parse(&text).unwrap();
    let id = tokens.redeem(&token, b"request").await.unwrap();
    assert_eq!(tokens.redeem(&token, b"request").await.unwrap(), id);
    assert!(tokens.redeem(&token, b"another").await.is_err());
}

#[tokio::test]
async fn an_instance_takes_no_identity_but_its_own() {
    let mesh = Mesh::new().await;
    let token = mesh.token("web", 1).await.token;
    let expected = Some((Namespace::new("shop").unwrap(), ObjectName::new("api").unwrap()));
    let joining = Joining { expected, ..mesh.joining("api", Some(&token)) };
    let error = joining.identity(Arc::clone(&mesh.clock), &mut SeededRng::new(1)).await.unwrap_err();
    assert!(matches!(error, JoinError::Other { .. }), "{error}");
    assert!(!mesh.path("api").join("svid.pem").exists(), "and keeps nothing of it");
    // Nor that of another one that is kept.
    mesh.join("web").await;
    let kept = Joining { expected: joining.expected, ..mesh.joining("web", None) };
    let error = kept.identity(Arc::clone(&mesh.clock), &mut SeededRng::new(1)).await.unwrap_err();
    assert!(matches!(&error, JoinError::Other { what, .. } if what.contains("kept in")), "{error}");
}
