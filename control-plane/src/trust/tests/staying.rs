//! Revocation, renewal and restarts: what ends at once, and what goes on.

use std::sync::atomic::{AtomicUsize, Ordering};

use meshwork_base::ManualClock;
use meshwork_identity::{Pin, Refusal};
use meshwork_messages::v1::breaker_force::State;

use super::root::try_start;
use super::*;
use crate::RootFiles;

const WEB: &str = "spiffe://mesh.local/ns/shop/sa/web";

/// The same connector, and how often it was called.
fn counted(mut connector: Connector) -> (Connector, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let connector: Connector = Box::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
        connector()
    });
    (connector, calls)
}

#[tokio::test]
async fn a_deny_entry_closes_the_live_stream_and_reaches_all_others() {
    let mesh = Mesh::new().await;
    let (web, api) = (mesh.join("web").await, mesh.join("api").await);
    let mut web_proxy = Proxy::open("shop/web-1", mesh.connector(&web));
    let (connector, api_calls) = counted(mesh.connector(&api));
    let mut api_proxy = Proxy::open("shop/api-1", connector);
    let first = api_proxy.bundle().await;
    assert_eq!((first.sequence, first.denied.len(), first.roots_der.len()), (1, 0, 1));
    web_proxy.bundle().await;
    mesh.until_connected("shop/web-1", true).await;

    let entry = mesh.post("/v1/identity/deny", json!({"spiffeId": WEB})).await.unwrap();
    mesh.until_connected("shop/web-1", false).await;
    assert_eq!(mesh.refused(1).await[0], "revoked", "it may not come again");
    let told_others = api_proxy.bundle().await;
    assert!(told_others.sequence > first.sequence);
    assert_eq!(told_others.denied[0].spiffe_id, WEB);
    assert_eq!(api_calls.load(Ordering::SeqCst), 1, "nobody else is disturbed");
    let token = mesh.token("web", 1).await.token;
    let (status, _, cause) = told_join(mesh.join_with("web-2", Some(&token)).await);
    assert_eq!((status, &*cause), (403, "revoked"), "nor under a new certificate");

    assert_eq!(mesh.get("/v1/identity/deny").await, json!([entry]));
    mesh.delete(&format!("/v1/identity/deny/{}", entry["id"])).await.unwrap();
    assert!(api_proxy.bundle().await.sequence > told_others.sequence);
    mesh.until_connected("shop/web-1", true).await;
    assert!(mesh.join_with("web-2", Some(&token)).await.is_ok(), "the refused join took no use of the token");
}

#[tokio::test]
async fn entries_by_serial_and_by_time_concern_what_was_issued_and_no_more() {
    let mesh = Mesh::new().await;
    let token = mesh.token("web", 3).await.token;
    let stolen = mesh.join_with("web-1", Some(&token)).await.unwrap();
    let kept = mesh.join_with("web-2", Some(&token)).await.unwrap();
    let serial = super::super::deny::hex(&stolen.svid().as_peer().serial);
    mesh.post("/v1/identity/deny", json!({"serial": serial})).await.unwrap();
    let again = mesh.post("/v1/identity/deny", json!({"serial": serial.to_uppercase()})).await.unwrap();
    assert_eq!(again["id"], 1, "the same entry once");
    let bundle = mesh.plane.trust().unwrap().bundle();
    assert!(matches!(bundle.check_denied(stolen.svid().as_peer()), Err(Refusal::Revoked { .. })));
    assert!(bundle.check_denied(kept.svid().as_peer()).is_ok());
    let later = meshwork_base::clock::rfc3339_millis(mesh.clock.wall() + Duration::from_secs(1));
    mesh.post("/v1/identity/deny", json!({"spiffeId": WEB, "issuedBefore": later})).await.unwrap();
    let bundle = mesh.plane.trust().unwrap().bundle();
    assert!(bundle.check_denied(kept.svid().as_peer()).is_err());
}

#[tokio::test]
async fn a_restart_keeps_the_authority_tokens_deny_entries_and_svids() {
    let mesh = Mesh::new().await;
    let identity = mesh.join("web").await;
    let (used, open) = (mesh.token("api", 1).await.token, mesh.token("api", 2).await.token);
    mesh.join_with("api-1", Some(&used)).await.unwrap();
    mesh.join_with("api-2", Some(&open)).await.unwrap();
    mesh.post("/v1/identity/deny", json!({"spiffeId": "spiffe://mesh.local/ns/shop/sa/bad"})).await.unwrap();
    let before = mesh.plane.trust().unwrap().bundle();
    let mut proxy = Proxy::open("shop/web-1", mesh.connector(&identity));
    proxy.bundle().await;

    let mesh = mesh.restart().await;
    let after = mesh.plane.trust().unwrap().bundle();
    assert_eq!((after.sequence(), after.roots()), (before.sequence(), before.roots()));
    assert_eq!(after.denied().count(), 1);
    mesh.until_connected("shop/web-1", true).await;
    let kept = mesh.join_with("web", None).await.unwrap();
    assert_eq!(kept.svid().as_peer().serial, identity.svid().as_peer().serial, "no token, no new SVID");
    assert_eq!(told_join(mesh.join_with("api-3", Some(&used)).await).2, "token_used_up");
    assert!(mesh.join_with("api-4", Some(&open)).await.is_ok());
    assert_eq!(told_join(mesh.join_with("api-5", Some(&open)).await).2, "token_used_up");
}

#[tokio::test]
async fn what_is_published_after_a_restart_has_greater_revisions() {
    let mesh = Mesh::new().await;
    let first = mesh.plane.model().revision;
    let mesh = mesh.restart().await;
    let second = mesh.plane.model().revision;
    assert!(second > first, "{second} after {first}");
    assert!(mesh.restart().await.plane.model().revision > second);
}

#[tokio::test]
async fn a_restored_older_copy_takes_no_trust_back_and_its_next_change_is_taken_by_all() {
    let mesh = Mesh::new().await;
    let deny = async |mesh: &Mesh, who: &str| {
        let id = format!("spiffe://mesh.local/ns/shop/sa/{who}");
        mesh.post("/v1/identity/deny", json!({"spiffeId": id})).await.unwrap();
        mesh.plane.trust().unwrap().bundle().sequence()
    };
    deny(&mesh, "first").await;
    let copy = mesh.copy();
    let mut newest = 0;
    for who in ["second", "third", "fourth"] {
        let sequence = deny(&mesh, who).await;
        assert!(sequence > newest);
        newest = sequence;
    }
    let identity = mesh.join("web").await;
    assert_eq!(identity.bundle().sequence(), newest, "a join gives the one that snapshots carry");

    let mesh = Mesh::restored(copy, Arc::clone(&mesh.clock)).await;
    let restored = mesh.plane.trust().unwrap().bundle();
    assert_eq!(restored.denied().count(), 1);
    let refused = identity.trust(meshwork_identity::Bundle::clone(&restored)).unwrap_err();
    assert!(
        matches!(refused, meshwork_identity::IdentityError::Stale { .. }),
        "what was revoked stays revoked"
    );
    assert!(deny(&mesh, "fifth").await > newest);
    identity.trust(meshwork_identity::Bundle::clone(&mesh.plane.trust().unwrap().bundle())).unwrap();
    assert_eq!(identity.bundle().denied().count(), 2, "what the control plane says now");
}

#[tokio::test]
async fn an_svid_is_renewed_under_the_running_stream() {
    let clock = ManualClock::new();
    clock.advance(Duration::from_secs(1_800_000_000));
    let mesh = Mesh::at(Arc::new(clock.clone())).await;
    let identity = mesh.join("web").await;
    let (connector, calls) = counted(mesh.connector(&identity));
    let mut proxy = Proxy::open("shop/web-1", connector);
    proxy.bundle().await;
    clock.advance(Duration::from_hours(25));
    mesh.until_renewed(mesh.joining("web", None), &identity).await;
    assert!(identity.remaining() > Duration::from_hours(71));
    // The stream of before carries on: what changes arrives, and nobody has connected again.
    mesh.post("/v1/identity/deny", json!({"spiffeId": "spiffe://mesh.local/ns/shop/sa/bad"})).await.unwrap();
    assert_eq!(proxy.bundle().await.denied.len(), 1);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    let kept = mesh.join_with("web", None).await.unwrap();
    assert_eq!(kept.svid().as_peer().serial, identity.svid().as_peer().serial, "and the new one is on disk");
}

#[tokio::test]
async fn who_may_ask_the_api_gets_a_fresh_token_after_however_long_an_outage() {
    let clock = ManualClock::new();
    clock.advance(Duration::from_secs(1_800_000_000));
    let mesh = Mesh::at(Arc::new(clock.clone())).await;
    let identity =
        mesh.asking("web").identity(Arc::clone(&mesh.clock), &mut SeededRng::new(1)).await.unwrap();
    assert_eq!(mesh.get("/v1/tokens").await[0]["state"], "usedUp");
    clock.advance(Duration::from_hours(100 * 24));
    let mesh = mesh.restart().await;
    assert!(mesh.connector(&identity)().await.is_err(), "it has expired");
    mesh.until_renewed(mesh.asking("web"), &identity).await;
    assert!(identity.remaining() > Duration::from_hours(71));
    let mut proxy = Proxy::open("shop/web-1", mesh.connector(&identity));
    proxy.bundle().await;
}

#[tokio::test]
async fn a_platform_teams_root_signs_and_another_ones_does_not_replace_it() {
    let disk = tempfile::tempdir().unwrap();
    let root = |name: &str| {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let path = |end: &str| disk.path().join(format!("{name}.{end}"));
        std::fs::write(path("crt"), certificate.pem()).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        (RootFiles { certificate: path("crt"), key: path("key") }, Pin::of(certificate.der()).unwrap())
    };
    let ((ours, pin), (other, _)) = (root("ours"), root("other"));
    let plane = try_start(disk.path(), Some(ours.clone())).await.unwrap();
    assert_eq!(Pin::of(&plane.trust().unwrap().bundle().roots()[0]).unwrap(), pin);
    drop(plane);
    let error = try_start(disk.path(), Some(other)).await.unwrap_err();
    assert!(error.to_string().contains("another root"), "{error}");
    let nothing = RootFiles { certificate: disk.path().join("none"), ..ours };
    let error = try_start(disk.path(), Some(nothing)).await.unwrap_err();
    assert!(matches!(error, crate::TrustError::RootFile { .. }), "{error}");
}

#[tokio::test]
async fn a_restart_keeps_what_operators_have_forced_until_its_time_is_over() {
    let mesh = Mesh::new().await;
    let path = "/v1/breakers/shop/web";
    let forced = mesh.post(path, json!({"state": "open", "for": "5m"})).await.unwrap();
    let until = forced["untilUnixMs"].as_u64().unwrap();
    let mesh = mesh.restart().await;
    let stands = |mesh: &Mesh| {
        let all = mesh.plane.hub().forces();
        all.into_iter()
            .map(|force| (force.service.clone(), force.port, force.state(), force.until_unix_ms))
            .collect::<Vec<_>>()
    };
    assert_eq!(stands(&mesh), [("shop/web".to_owned(), 0, State::Open, until)]);
    mesh.post(path, json!({"state": "none"})).await.unwrap();
    let mesh = mesh.restart().await;
    let told = [("shop/web".to_owned(), 0, State::None, until)];
    assert_eq!(stands(&mesh), told, "who was away hears that it is taken back");
}
