//! What a role's client does on a connection whose packets go nowhere any more, while new ones would get through.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use http::Method;
use meshwork_api::Client;
use meshwork_base::{Clock, SpiffeId, SystemClock, TrustDomain};
use meshwork_identity::{Authority, Bundle, ClientAuth, DEFAULT_SVID_TTL, Identity, PendingSvid};
use meshwork_xds::join::role_client;
use meshwork_xds::transport::mtls::{Connections, Endpoints, serve};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::service::Routes;

const REGISTRY: (&str, &str) = ("meshwork", "registry");

/// A client of a role, and what makes the connections that there are lead nowhere.
struct Called {
    client: Client,
    forgets: watch::Sender<usize>,
    _folder: tempfile::TempDir,
}

impl Called {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let domain = TrustDomain::new("mesh.local").unwrap();
        let authority = Authority::open_or_create(folder.path(), &domain, clock.clone()).unwrap();
        let identity = |namespace: &str, workload: &str| {
            let id = SpiffeId::parse(&format!("spiffe://mesh.local/ns/{namespace}/sa/{workload}")).unwrap();
            let pending = PendingSvid::generate().unwrap();
            let issued = authority.issue(pending.csr(), &id, DEFAULT_SVID_TTL).unwrap();
            let bundle = Bundle::new(domain.clone(), 1, vec![authority.root().clone()], None).unwrap();
            Identity::new(pending.complete(issued.chain).unwrap(), bundle, clock.clone()).unwrap()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let role = listener.local_addr().unwrap();
        let endpoints = Endpoints {
            identity: identity(REGISTRY.0, REGISTRY.1),
            client_auth: ClientAuth::Required,
            routes: Routes::from(Router::new().fallback(async || "{}")),
            connections: Connections::default(),
            clock: clock.clone(),
        };
        tokio::spawn(async move { serve(listener, endpoints, pending()).await.unwrap() });

        let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = between.local_addr().unwrap().to_string();
        let forgets = watch::Sender::new(0);
        let forgotten = forgets.clone();
        tokio::spawn(async move {
            for number in 1.. {
                let (mut near, _) = between.accept().await.unwrap();
                let mut far = TcpStream::connect(role).await.unwrap();
                let mut forgotten = forgotten.subscribe();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                        _ = forgotten.wait_for(|forgotten| *forgotten >= number) => {}
                    }
                    // Neither end hears of the other's.
                    pending::<()>().await;
                });
            }
        });
        let client = role_client(&address, &identity("shop", "web"), REGISTRY).unwrap();
        Self { client, forgets, _folder: folder }
    }

    async fn calls(&self) -> bool {
        self.client.send(Method::GET, "/", &[], Bytes::new()).await.is_ok()
    }
}

#[tokio::test]
async fn a_call_that_had_no_answer_leaves_the_connection_for_a_new_one() {
    let called = Called::start().await;
    assert!(called.calls().await);
    called.forgets.send_replace(1);
    let given_up = tokio::time::timeout(Duration::from_millis(100), called.calls()).await;
    assert!(given_up.is_err(), "nothing can be answered");
    let next = tokio::time::timeout(Duration::from_secs(20), called.calls()).await;
    assert_eq!(next, Ok(true));
}

#[tokio::test]
async fn a_call_that_waits_as_long_as_it_takes_fails_on_a_connection_that_leads_nowhere() {
    let called = Called::start().await;
    assert!(called.calls().await);
    called.forgets.send_replace(1);
    // From here on time passes as nothing else happens.
    tokio::time::pause();
    assert_eq!(tokio::time::timeout(Duration::from_secs(60), called.calls()).await, Ok(false));
    tokio::time::resume();
    assert!(called.calls().await);
}
