//! What becomes of SVIDs that were issued while a clock ran ahead, once it is corrected: they are renewed at once, and are good for
//! nothing else.

use meshwork_base::ManualClock;

use super::lapsed::{client, mesh, request, told_until};
use super::*;

/// As far as a clock ran ahead.
const AHEAD: Duration = Duration::from_hours(25);

/// A workload that has joined by a clock that runs ahead, which is corrected then.
async fn corrected() -> (Mesh, ManualClock, Arc<Identity>) {
    let (mesh, clock) = mesh().await;
    clock.advance(AHEAD);
    let identity = mesh.join("web").await;
    clock.set_back(AHEAD);
    (mesh, clock, identity)
}

#[tokio::test]
async fn a_running_process_renews_an_svid_whose_time_has_not_come_and_is_not_ready_before() {
    let (mesh, _, identity) = corrected().await;
    assert!(!identity.is_in_force());
    let told = told_until(&mesh, mesh.joining("web", None), &identity, |standing| standing.in_force).await;
    assert!(!told.first().unwrap().in_force, "{told:?}");
    assert!(identity.remaining() <= Duration::from_hours(72));
    Proxy::open("shop/web-1", mesh.connector(&identity)).bundle().await;
}

#[tokio::test]
async fn a_process_that_starts_with_an_svid_whose_time_has_not_come_renews_it() {
    let (mesh, ..) = corrected().await;
    let identity = mesh.join_with("web", None).await.unwrap();
    mesh.until_renewed(mesh.joining("web", None), &identity).await;
    assert!(identity.is_in_force());
}

#[tokio::test]
async fn the_control_plane_renews_its_own_when_the_clock_is_corrected() {
    let (mesh, clock) = mesh().await;
    clock.advance(AHEAD);
    let mesh = mesh.restart().await;
    let issuer = &mesh.plane.trust().unwrap().inner.issuer;
    clock.set_back(AHEAD);
    assert!(!issuer.identity.is_in_force());
    let renewed = async {
        while !issuer.identity.is_in_force() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = super::super::upkeep(Arc::downgrade(issuer), SeededRng::new(1)) => unreachable!("it goes on"),
        done = tokio::time::timeout(PATIENCE, renewed) => done.expect("at its first look"),
    }
}

#[tokio::test]
async fn an_svid_whose_time_has_not_come_opens_no_stream() {
    let (mesh, _, identity) = corrected().await;
    let client = client(&mesh, &identity.svid(), &identity.svid()).0;
    let headers = [("content-type", "application/grpc"), ("te", "trailers")];
    let stream =
        client.send(Method::POST, "/meshwork.v1.Discovery/Stream", &headers, Bytes::new()).await.unwrap();
    assert_eq!(stream.headers["grpc-status"], "16", "UNAUTHENTICATED: {:?}", stream.headers);
    assert!(mesh.plane.hub().proxies().is_empty());
}

#[tokio::test]
async fn one_that_is_revoked_is_not_renewed_though_its_date_is_later() {
    let (mesh, _, identity) = corrected().await;
    let now = meshwork_base::clock::rfc3339_millis(mesh.clock.wall());
    let deny = json!({ "spiffeId": identity.id().to_string(), "issuedBefore": now });
    mesh.post("/v1/identity/deny", deny).await.unwrap();
    let client = client(&mesh, &identity.svid(), &identity.svid());
    assert!(client.renew(&request()).await.is_err());
    assert_eq!(mesh.refused(1).await, ["revoked"]);
}

#[tokio::test]
async fn what_was_revoked_stays_so_when_its_date_has_come_and_what_is_issued_afterwards_does_not() {
    let (mesh, clock, stolen) = corrected().await;
    let now = meshwork_base::clock::rfc3339_millis(mesh.clock.wall());
    let deny = json!({ "spiffeId": stolen.id().to_string(), "issuedBefore": now });
    mesh.post("/v1/identity/deny", deny).await.unwrap();
    clock.advance(Duration::from_mins(1));
    let token = mesh.token("web", 1).await.token;
    let honest = mesh.join_with("web-2", Some(&token)).await.unwrap();
    // Also the entry as it is kept, and as proxies are told.
    let mesh = mesh.restart().await;
    let mut proxy = Proxy::open("shop/web-2", mesh.connector(&honest));
    let told = proxy.bundle().await;
    let entry = told.denied.first().unwrap();
    assert!(entry.made_unix_ms > 0 && entry.made_sequence == told.sequence, "{entry:?}");

    clock.advance(AHEAD);
    assert!(stolen.is_in_force() && honest.is_in_force());
    let bundle = mesh.plane.trust().unwrap().bundle();
    assert!(bundle.check_denied(stolen.svid().as_peer()).is_err());
    assert!(bundle.check_denied(honest.svid().as_peer()).is_ok());
    assert!(client(&mesh, &stolen.svid(), &stolen.svid()).renew(&request()).await.is_err());
    client(&mesh, &honest.svid(), &honest.svid()).renew(&request()).await.unwrap();
    let token = mesh.token("web", 1).await.token;
    let later = mesh.join_with("web-3", Some(&token)).await.unwrap();
    assert!(bundle.check_denied(later.svid().as_peer()).is_ok(), "nor that which begins later still");
}

#[tokio::test]
async fn one_that_was_issued_after_its_identity_was_revoked_is_renewed_whatever_its_date_is() {
    let (mesh, clock) = mesh().await;
    let id = mesh.join("web").await.id();
    let now = meshwork_base::clock::rfc3339_millis(mesh.clock.wall());
    mesh.post("/v1/identity/deny", json!({ "spiffeId": id.to_string(), "issuedBefore": now })).await.unwrap();
    clock.advance(AHEAD);
    let token = mesh.token("web", 1).await.token;
    let joined = mesh.join_with("web-2", Some(&token)).await.unwrap();
    clock.set_back(AHEAD - Duration::from_mins(1));
    assert!(!joined.is_in_force());
    client(&mesh, &joined.svid(), &joined.svid()).renew(&request()).await.unwrap();
}

/// By this clock, which is behind the mesh's, nothing that is issued has begun.
#[tokio::test]
async fn an_svid_in_force_is_not_given_up_for_one_that_begins_later() {
    let (mesh, clock) = mesh().await;
    let identity = mesh.join("web").await;
    let before = identity.svid().as_peer().serial.clone();
    clock.advance(Duration::from_hours(30));
    let behind = ManualClock::new();
    behind.advance(clock.wall() - Duration::from_hours(2));
    let ours =
        Identity::new(copy(&identity), (*identity.bundle()).clone(), Arc::new(behind.clone())).unwrap();
    let mesh = Mesh { clock: Arc::new(behind), ..mesh };
    let joining = mesh.joining("web", None);
    let told = told_until(&mesh, joining, &ours, |standing| standing.trouble.is_some()).await;
    let last = told.last().unwrap();
    let trouble = last.trouble.as_deref().unwrap();
    assert!(last.in_force && trouble.contains("compare the clocks"), "{trouble}");
    assert_eq!(ours.svid().as_peer().serial, before);
}

fn copy(identity: &Identity) -> meshwork_identity::Svid {
    meshwork_identity::Svid::from_pem(&identity.svid().to_pem()).unwrap()
}
