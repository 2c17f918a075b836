//! What becomes of SVIDs that were issued while a clock ran ahead, once it is corrected: they are renewed at once, and are good for
//! nothing else.

use std::sync::atomic::Ordering;

use meshwork_base::ManualClock;
use meshwork_identity::{INTERMEDIATE_LIFETIME, PendingSvid};

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
async fn nothing_is_signed_under_an_intermediate_whose_time_has_not_come_and_the_next_one_is_used_at_once() {
    let (mesh, clock) = mesh().await;
    clock.advance(INTERMEDIATE_LIFETIME);
    let mesh = mesh.restart().await;
    clock.set_back(INTERMEDIATE_LIFETIME);
    // A volume that is away.
    let (path, aside) = (mesh.path("control-plane/ca/intermediate.pem"), mesh.path("aside"));
    std::fs::rename(&path, &aside).unwrap();
    std::os::unix::fs::symlink("nowhere", &path).unwrap();
    let issuer = &mesh.plane.trust().unwrap().inner.issuer;
    let upkeep = super::super::upkeep(Arc::downgrade(issuer), SeededRng::new(1));
    let mut upkeep = std::pin::pin!(upkeep);
    let tried = tokio::time::timeout(Duration::from_millis(500), &mut upkeep).await;
    assert!(tried.is_err() && !issuer.identity.is_in_force());
    let asked = PendingSvid::generate().unwrap();
    let error = issuer.authority.issue(asked.csr(), &issuer.identity.id(), issuer.svid_ttl).unwrap_err();
    assert!(error.code().to_string() == "MW6033" && error.to_string().contains("begins only"), "{error}");

    std::fs::remove_file(&path).unwrap();
    std::fs::rename(&aside, &path).unwrap();
    let renewed = async {
        while !issuer.identity.is_in_force() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = &mut upkeep => unreachable!("it goes on"),
        done = tokio::time::timeout(PATIENCE, renewed) => done.expect("though the last try was a moment ago"),
    }
    let identity = mesh.join("web").await;
    Proxy::open("shop/web-1", mesh.connector(&identity)).bundle().await;
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

#[tokio::test]
async fn who_was_revoked_joins_anew_with_a_token_though_its_svid_begins_only_later() {
    let (mesh, _, identity) = corrected().await;
    let now = meshwork_base::clock::rfc3339_millis(mesh.clock.wall());
    let deny = json!({ "spiffeId": identity.id().to_string(), "issuedBefore": now });
    mesh.post("/v1/identity/deny", deny).await.unwrap();
    let token = mesh.token("web", 1).await.token;
    let started = mesh.join_with("web", Some(&token)).await.unwrap();
    assert!(!started.is_in_force(), "it starts with what it has");
    mesh.until_renewed(mesh.joining("web", Some(&token)), &started).await;
    assert!(started.is_in_force());
    Proxy::open("shop/web-1", mesh.connector(&started)).bundle().await;
}

/// By this clock, which is behind the mesh's, nothing that is issued has begun.
#[tokio::test]
async fn an_svid_in_force_is_given_up_for_one_that_begins_later_only_when_that_begins() {
    let (mesh, clock) = mesh().await;
    let identity = mesh.join("web").await;
    let before = identity.svid().as_peer().serial.clone();
    clock.advance(Duration::from_hours(30));
    let behind = ManualClock::new();
    let difference = Duration::from_secs(61);
    behind.advance(clock.wall() - difference);
    let ours =
        Identity::new(copy(&identity), (*identity.bundle()).clone(), Arc::new(behind.clone())).unwrap();
    let mesh = Mesh { clock: Arc::new(behind.clone()), ..mesh };
    let joining = mesh.joining("web", None);
    let is_held = || ours.svid().as_peer().serial == before;
    let mut looks = 0;
    let told = told_until(&mesh, joining, &ours, |standing| {
        assert!(standing.in_force);
        let Some(trouble) = &standing.trouble else { return !is_held() };
        assert!((looks >= 2 || is_held()) && trouble.contains("compare the clocks"), "{trouble}");
        looks += 1;
        // A second is left until it begins, in which it is not looked at, nor asked for.
        if looks == 2 {
            behind.advance(difference);
        }
        false
    });
    assert_eq!(told.await.last().unwrap().trouble, None);
    assert_eq!(issued(&mesh), 2, "it was asked for once");
}

/// A workload whose SVID is due by its clock, while the mesh's runs ahead of that.
async fn due_while_the_other_clock_runs_ahead() -> (Mesh, ManualClock, ManualClock, Arc<Identity>) {
    let (mesh, clock) = mesh().await;
    let identity = mesh.join("web").await;
    clock.advance(Duration::from_hours(30));
    let right = ManualClock::new();
    right.advance(clock.wall());
    clock.advance(AHEAD);
    let ours = Identity::new(copy(&identity), (*identity.bundle()).clone(), Arc::new(right.clone())).unwrap();
    (Mesh { clock: Arc::new(right.clone()), ..mesh }, clock, right, ours)
}

#[tokio::test]
async fn one_that_begins_in_a_day_is_not_waited_for_where_the_other_clock_is_corrected_after_minutes() {
    let (mesh, clock, right, ours) = due_while_the_other_clock_runs_ahead().await;
    let mut is_corrected = false;
    let told = told_until(&mesh, mesh.joining("web", None), &ours, |standing| {
        assert!(standing.in_force);
        if standing.trouble.is_none() {
            return is_corrected;
        }
        if !std::mem::replace(&mut is_corrected, true) {
            clock.set_back(AHEAD);
        }
        for time in [&clock, &right] {
            time.advance(Duration::from_secs(1));
        }
        false
    });
    let told = told.await;
    let trouble = told.iter().find_map(|standing| standing.trouble.as_ref()).unwrap();
    assert!(trouble.contains("compare the clocks"), "{trouble}");
    assert!(ours.svid().not_before() <= right.wall() && ours.remaining() > Duration::from_hours(71));
    assert_eq!(issued(&mesh), 3);
}

#[tokio::test]
async fn of_several_that_begin_later_the_first_one_is_taken_when_that_begins() {
    let (mesh, clock, right, ours) = due_while_the_other_clock_runs_ahead().await;
    let first = clock.wall() - Duration::from_mins(1);
    let told = told_until(&mesh, mesh.joining("web", None), &ours, |standing| {
        assert!(standing.in_force);
        if standing.trouble.is_none() {
            return ours.svid().not_before() >= first;
        }
        // Until there are two a second goes by with each look; then as much as the first one is away.
        let by = if issued(&mesh) < 3 { Duration::from_secs(1) } else { first.saturating_sub(right.wall()) };
        for time in [&clock, &right] {
            time.advance(by);
        }
        false
    });
    told.await;
    assert_eq!(ours.svid().not_before(), first);
}

fn issued(mesh: &Mesh) -> u64 {
    mesh.plane.trust().unwrap().inner.issuer.issued.load(Ordering::Relaxed)
}

fn copy(identity: &Identity) -> meshwork_identity::Svid {
    meshwork_identity::Svid::from_pem(&identity.svid().to_pem()).unwrap()
}
