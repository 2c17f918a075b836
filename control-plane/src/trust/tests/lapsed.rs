//! What becomes of an SVID that has expired while the control plane was away: it is renewed for who has its key, up to a
//! bound, and is good for nothing else.

use meshwork_api::identity::{Der, RenewRequest};
use meshwork_base::{ManualClock, SpiffeId, Tick};
use meshwork_identity::{Bundle, Loaded, Peer, PendingSvid, Svid, SvidStore, provider};
use meshwork_xds::join::{Standing, role_client};
use rustls::ClientConfig;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::refusals::{Careless, h2};
use super::*;

const DAY: Duration = Duration::from_hours(24);
const TTL: Duration = Duration::from_hours(72);

pub(super) async fn mesh() -> (Mesh, ManualClock) {
    let clock = ManualClock::new();
    clock.advance(Duration::from_secs(1_800_000_000));
    (Mesh::at(Arc::new(clock.clone())).await, clock)
}

/// Time passes while the control plane is away.
async fn away(mesh: Mesh, clock: &ManualClock, time: Duration) -> Mesh {
    clock.advance(time);
    mesh.restart().await
}

/// Shows a chain with whatever key.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A client that shows the chain of one SVID and has the key of another one, which may be the same.
pub(super) fn client(mesh: &Mesh, chain: &Svid, key: &Svid) -> IdentityClient {
    let pem = key.to_pem();
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    let key = provider().key_provider.load_private_key(key).unwrap();
    let shows = Shows(Arc::new(CertifiedKey::new(chain.chain().to_vec(), key)));
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Careless))
        .with_client_cert_resolver(Arc::new(shows));
    config.alpn_protocols = h2();
    let base = format!("https://{}", mesh.plane.trust().unwrap().address());
    IdentityClient(Client::tls(&base, Arc::new(config)).unwrap())
}

pub(super) fn request() -> RenewRequest {
    RenewRequest { csr: Der(PendingSvid::generate().unwrap().csr().to_vec()) }
}

#[tokio::test]
async fn a_running_process_comes_back_by_itself_after_an_outage_that_outlived_its_svid() {
    let (mesh, clock) = mesh().await;
    let identity = mesh.join("web").await;
    let mesh = away(mesh, &clock, TTL + DAY * 29).await;
    let opened = mesh.connector(&identity)().await.unwrap_err().to_string();
    assert!(opened.contains("our own SVID expired"), "it fails closed until then: {opened}");
    mesh.until_renewed(mesh.joining("web", None), &identity).await;
    assert!(identity.remaining() > Duration::from_hours(71));
    assert_eq!(identity.id().as_str(), "spiffe://mesh.local/ns/shop/sa/web");
    Proxy::open("shop/web-1", mesh.connector(&identity)).bundle().await;
    let kept = SvidStore::new(&mesh.path("web")).load(mesh.clock.wall()).unwrap();
    assert!(matches!(kept, Loaded::Valid(svid, _) if svid.not_after() == identity.svid().not_after()));
}

#[tokio::test]
async fn an_instance_that_was_stopped_for_longer_than_its_svid_lived_needs_no_token_to_start() {
    let (mesh, clock) = mesh().await;
    let before = mesh.join("web").await.id();
    let mesh = away(mesh, &clock, TTL + DAY).await;
    let identity = mesh.join_with("web", None).await.unwrap();
    assert_eq!(identity.id(), before);
    assert!(identity.remaining() > Duration::from_hours(71));
    let expected = Some((Namespace::new("shop").unwrap(), ObjectName::new("api").unwrap()));
    let mesh = away(mesh, &clock, TTL + DAY).await;
    let joining = Joining { expected, ..mesh.joining("web", None) };
    let error = joining.identity(Arc::clone(&mesh.clock), &mut SeededRng::new(1)).await.unwrap_err();
    assert!(matches!(error, JoinError::NoToken { .. }), "another workload takes nothing from it: {error}");
}

#[test]
fn a_token_whose_file_is_gone_is_no_reason_to_give_up_while_the_control_plane_is_away() {
    let lapsed = |renewal: ClientError, join: JoinError| {
        let renewal = Box::new(JoinError::Client(renewal));
        JoinError::Lapsed {
            not_before: Duration::ZERO,
            not_after: Duration::ZERO,
            renewal,
            join: Box::new(join),
        }
    };
    let away = || ClientError::Unreachable { server: "it".to_owned(), cause: "it is away".to_owned() };
    let answers = || ClientError::Unexpected { server: "it".to_owned(), why: "it is another".to_owned() };
    let gone = || JoinError::TokenFile { path: "token".into(), error: std::io::ErrorKind::NotFound.into() };
    let none = || JoinError::NoToken { data_dir: "web".into() };
    assert!(lapsed(away(), none()).is_temporary() && lapsed(away(), gone()).is_temporary());
    assert!(!lapsed(answers(), none()).is_temporary() && !lapsed(answers(), gone()).is_temporary());
    assert!(!gone().is_temporary(), "at the first start somebody has to put it there");
    let refused = JoinError::Token(meshwork_identity::TokenError::Malformed);
    assert!(!lapsed(away(), refused).is_temporary());
}

#[tokio::test]
async fn one_that_expired_too_long_ago_is_refused_until_a_token_helps() {
    let (mesh, clock) = mesh().await;
    let identity = mesh.join("web").await;
    let mesh = away(mesh, &clock, TTL + DAY * 30).await;
    client(&mesh, &identity.svid(), &identity.svid()).renew(&request()).await.expect("just so long");
    clock.advance(Duration::from_secs(1));
    let refused = client(&mesh, &identity.svid(), &identity.svid()).renew(&request()).await.unwrap_err();
    assert_eq!(told(&refused), (403, "MW6006".into(), "svid_expired".into()));
    let error = mesh.join_with("web", None).await.unwrap_err();
    assert!(matches!(error, JoinError::Lapsed { .. }), "{error}");
    let said = error.to_string();
    assert!(said.contains("longer ago than one is renewed here (720h)"), "{said}");
    assert!(said.contains("make one with `meshwork token create`"), "{said}");
    // Whose the token is, that it is now: nobody else is expected.
    let token = mesh.token("api", 1).await.token;
    let joined = mesh.join_with("web", Some(&token)).await.unwrap();
    assert_eq!(joined.id().as_str(), "spiffe://mesh.local/ns/shop/sa/api");
    assert!(joined.remaining() > Duration::from_hours(71));
}

#[tokio::test]
async fn one_that_is_damaged_on_the_disk_is_replaced_with_a_token_and_without_one_the_file_is_named() {
    let (mesh, _) = mesh().await;
    let before = mesh.join("web").await.id();
    let whole = std::fs::read(mesh.path("web/svid.pem")).unwrap();
    let half = &whole[..whole.len() / 2];
    for (file, damaged) in
        [("svid.pem", half), ("svid.pem", b""), ("svid.pem", b"\xff\xfe"), ("bundle.json", b"{")]
    {
        let path = mesh.path(&format!("web/{file}"));
        std::fs::write(&path, damaged).unwrap();
        let error = mesh.join_with("web", None).await.unwrap_err();
        assert!(matches!(&error, JoinError::Damaged { .. }) && !error.is_temporary(), "{error}");
        let said = error.to_string();
        assert!(said.starts_with(&path.display().to_string()), "{said}");
        assert!(
            said.contains("nor could we join again: ") && said.contains("`meshwork token create`"),
            "{said}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), damaged, "it stays as it is until there is another one");

        let joined =
            mesh.asking("web").identity(Arc::clone(&mesh.clock), &mut SeededRng::new(1)).await.unwrap();
        assert_eq!(joined.id(), before);
        let kept = SvidStore::new(&mesh.path("web")).load(mesh.clock.wall()).unwrap();
        assert!(matches!(kept, Loaded::Valid(svid, _) if svid.chain() == joined.svid().chain()));
        assert_eq!(std::fs::read(mesh.path(&format!("web/{file}.damaged"))).unwrap(), damaged);
    }
    // A file that may be whole and cannot be read is nothing to replace.
    std::fs::remove_file(mesh.path("web/svid.pem")).unwrap();
    std::fs::create_dir(mesh.path("web/svid.pem")).unwrap();
    let refused = mesh.asking("web").identity(Arc::clone(&mesh.clock), &mut SeededRng::new(1)).await;
    assert!(matches!(refused, Err(JoinError::Store(_))));
}

#[tokio::test]
async fn a_token_is_not_used_up_while_what_it_gives_cannot_be_kept() {
    let (mesh, _) = mesh().await;
    let token = mesh.token("web", 1).await.token;
    block(&mesh.path("web"));
    let error = mesh.join_with("web", Some(&token)).await.unwrap_err();
    assert!(matches!(error, JoinError::Store(_)), "{error}");
    assert!(error.to_string().contains("writable and not full"), "{error}");
    assert_eq!(mesh.get("/v1/tokens").await[0]["usesLeft"], 1);
    std::fs::remove_file(mesh.path("web")).unwrap();
    // What another process, which begins at the same time, is about to put in its place.
    std::fs::create_dir(mesh.path("web")).unwrap();
    std::fs::write(mesh.path("web/svid.pem.new"), "of another one").unwrap();
    SvidStore::new(&mesh.path("web")).try_write().unwrap();
    assert_eq!(std::fs::read(mesh.path("web/svid.pem.new")).unwrap(), b"of another one");
    mesh.join_with("web", Some(&token)).await.unwrap();
    let mut files: Vec<_> =
        std::fs::read_dir(mesh.path("web")).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["bundle.json", "svid.pem"]);
}

/// Nothing can be written there any more, nor read.
fn block(folder: &Path) {
    drop(std::fs::remove_dir_all(folder));
    std::os::unix::fs::symlink("/nowhere/at/all", folder).unwrap();
}

#[tokio::test]
async fn a_token_is_not_used_up_where_the_disk_becomes_full_while_nobody_answers() {
    let (mesh, _) = mesh().await;
    let token = mesh.token("web", 1).await.token;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let away = listener.local_addr().unwrap().to_string();
    let joining = Joining { control_plane: away, ..mesh.joining("web", Some(&token)) };
    let (folder, there) = (mesh.path("web"), mesh.plane.trust().unwrap().address());
    let answers = async move {
        drop(listener.accept().await.unwrap());
        block(&folder);
        loop {
            let (mut here, _) = listener.accept().await.unwrap();
            let mut there = tokio::net::TcpStream::connect(there).await.unwrap();
            drop(tokio::io::copy_bidirectional(&mut here, &mut there).await);
        }
    };
    let mut rng = SeededRng::new(1);
    let joined = joining.identity(Arc::clone(&mesh.clock), &mut rng);
    let error = tokio::select! {
        joined = tokio::time::timeout(PATIENCE, joined) => joined.unwrap().unwrap_err(),
        () = answers => unreachable!("it goes on"),
    };
    assert!(matches!(error, JoinError::Store(_)), "{error}");
    assert_eq!(mesh.get("/v1/tokens").await[0]["usesLeft"], 1);
}

/// An address at which nobody is.
async fn nobody() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test]
async fn who_has_an_svid_in_force_takes_no_token_because_nobody_renews_it() {
    let (mesh, clock) = mesh().await;
    let token = mesh.token("web", 2).await.token;
    let identity = mesh.join_with("web", Some(&token)).await.unwrap();
    clock.advance(TTL / 2);
    let joining = Joining { control_plane: nobody().await, ..mesh.joining("web", Some(&token)) };
    let told = told_until(&mesh, joining, &identity, |standing| standing.trouble.is_some()).await;
    let last = told.last().unwrap();
    let trouble = last.trouble.as_deref().unwrap();
    assert!(last.in_force && trouble.contains("is not renewed"), "{trouble}");
    assert!(!trouble.contains("join again"), "{trouble}");
}

#[tokio::test]
async fn what_is_renewed_is_renewed_once_and_kept_with_the_bundle_of_the_day() {
    let (mesh, clock) = mesh().await;
    let identity = mesh.join("web").await;
    let id = mesh.join("other").await.id().to_string();
    mesh.post("/v1/identity/deny", json!({ "spiffeId": id })).await.unwrap();
    let mesh = away(mesh, &clock, TTL / 2).await;
    let before = identity.svid().not_after();
    let rng = SeededRng::new(1);
    let keep = mesh.joining("web", None).keep(Arc::clone(&identity), Arc::clone(&mesh.clock), rng, |_| {});
    let renewed = async {
        while identity.svid().not_after() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let serial = identity.svid().as_peer().serial.clone();
        // Whoever asked again at once would have been answered before these.
        for workload in ["a", "b"] {
            mesh.join(workload).await;
        }
        assert_eq!(identity.svid().as_peer().serial, serial);
    };
    tokio::select! {
        () = keep => unreachable!("it keeps the SVID for as long as it is polled"),
        done = tokio::time::timeout(PATIENCE, renewed) => done.expect("it is renewed"),
    }
    let Loaded::Valid(_, kept) = SvidStore::new(&mesh.path("web")).load(mesh.clock.wall()).unwrap() else {
        panic!("it is kept");
    };
    assert_eq!(kept.to_json(), identity.bundle().to_json());
    assert!(kept.to_json().contains(&id), "it was denied meanwhile: {}", kept.to_json());
}

#[tokio::test]
async fn one_token_is_tried_while_nobody_answers_and_another_one_when_it_is_refused() {
    let mesh = Mesh::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let (api, asked) = (mesh.api(), Arc::new(asked));
    let counted = Arc::clone(&asked);
    let tokens = Tokens::made(("shop", "web"), move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(api.clone())
    });
    let control_plane = listener.local_addr().unwrap().to_string();
    let joining = Joining { control_plane, tokens, ..mesh.joining("web", None) };
    let mut rng = SeededRng::new(1);
    let joins = joining.identity(Arc::clone(&mesh.clock), &mut rng);
    let answers = async {
        for _ in 0..3 {
            drop(listener.accept().await.unwrap());
        }
        assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 1, "its time may not have passed");
        // What it had is taken back before anybody answers.
        let first = mesh.get("/v1/tokens").await[0]["id"].as_str().unwrap().to_owned();
        mesh.delete(&format!("/v1/tokens/{first}")).await.unwrap();
        loop {
            let (mut from, _) = listener.accept().await.unwrap();
            let mut to = tokio::net::TcpStream::connect(mesh.plane.trust().unwrap().address()).await.unwrap();
            tokio::spawn(async move { drop(tokio::io::copy_bidirectional(&mut from, &mut to).await) });
        }
    };
    let identity = tokio::select! {
        joined = tokio::time::timeout(PATIENCE, joins) => joined.expect("it joins").unwrap(),
        () = answers => unreachable!("it goes on"),
    };
    assert_eq!(identity.id().workload(), "web");
    assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 2);
}

#[tokio::test]
async fn with_a_grace_of_none_an_expired_svid_is_never_renewed() {
    let (mesh, clock) = mesh().await;
    let identity = mesh.join("web").await;
    clock.advance(TTL + Duration::from_secs(1));
    let Mesh { disk, clock, plane } = mesh;
    drop(plane);
    let plane =
        start_with(disk.path(), |secure| Secure { svid_grace: Duration::ZERO, ..secure }, &clock).await;
    let mesh = Mesh { disk, clock, plane };
    let refused = client(&mesh, &identity.svid(), &identity.svid()).renew(&request()).await.unwrap_err();
    assert_eq!(told(&refused).2, "svid_expired");
}

#[tokio::test]
async fn who_is_revoked_is_not_renewed() {
    let (mesh, clock) = mesh().await;
    let identity = mesh.join("web").await;
    let id = identity.id().to_string();
    mesh.post("/v1/identity/deny", json!({ "spiffeId": id })).await.unwrap();
    let mesh = away(mesh, &clock, TTL + DAY).await;
    let error = client(&mesh, &identity.svid(), &identity.svid()).renew(&request()).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "an alert: {error}");
    assert_eq!(mesh.refused(1).await, ["revoked"]);
}

#[tokio::test]
async fn who_has_the_certificate_and_not_its_key_gets_nothing() {
    let (mesh, clock) = mesh().await;
    let (web, other) = (mesh.join("web").await, mesh.join("other").await);
    let mesh = away(mesh, &clock, TTL + DAY).await;
    let error = client(&mesh, &web.svid(), &other.svid()).renew(&request()).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert_eq!(mesh.refused(1).await, ["bad_certificate"]);
}

#[tokio::test]
async fn one_is_renewed_as_itself_and_as_nobody_else() {
    let (mesh, clock) = mesh().await;
    let web = mesh.join("web").await;
    let mesh = away(mesh, &clock, TTL + DAY).await;
    // A request names nobody; one that asks for another name gets its own all the same.
    let mut params = rcgen::CertificateParams::default();
    let other = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/api").unwrap();
    params.subject_alt_names = vec![rcgen::SanType::URI(other.as_str().try_into().unwrap())];
    let csr = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec();
    let client = client(&mesh, &web.svid(), &web.svid());
    let issued = client.renew(&RenewRequest { csr: Der(csr) }).await.unwrap();
    let leaf = Peer::read(&CertificateDer::from(issued.chain[0].0.clone())).unwrap();
    assert_eq!(leaf.id, web.id());
    // An instance takes no other name either.
    let api = mesh.join("api").await;
    assert!(matches!(
        web.renew(Svid::from_pem(&api.svid().to_pem()).unwrap()),
        Err(meshwork_identity::IdentityError::OtherIdentity { .. })
    ));
}

#[tokio::test]
async fn an_expired_svid_opens_no_stream_and_no_other_door() {
    let (mesh, clock) = mesh().await;
    let web = mesh.join("web").await;
    let mesh = away(mesh, &clock, TTL + DAY).await;
    let client = client(&mesh, &web.svid(), &web.svid()).0;
    let headers = [("content-type", "application/grpc"), ("te", "trailers")];
    let path = "/meshwork.v1.Discovery/Stream";
    let stream = client.send(Method::POST, path, &headers, Bytes::new()).await.unwrap();
    assert_eq!(stream.headers["grpc-status"], "16", "UNAUTHENTICATED: {:?}", stream.headers);
    assert!(mesh.plane.hub().proxies().is_empty());
    let address = mesh.plane.trust().unwrap().address().to_string();
    let role = role_client(&address, &web, meshwork_api::identity::CONTROL_PLANE).unwrap();
    let error = IdentityClient(role).renew(&request()).await.unwrap_err();
    assert_eq!(
        told(&error),
        (401, "MW6001".into(), "no_certificate".into()),
        "it is shown for renewal alone"
    );
}

#[tokio::test]
async fn a_newer_bundle_that_came_meanwhile_keeps_no_svid_from_being_renewed() {
    let (mesh, clock) = mesh().await;
    let identity = mesh.join("web").await;
    clock.advance(TTL / 2);
    let now = identity.bundle();
    let (domain, roots) = (now.trust_domain().clone(), now.roots().to_vec());
    let newer = Bundle::new(domain, now.sequence() + 100, roots, []).unwrap();
    identity.trust(newer).unwrap();
    mesh.until_renewed(mesh.joining("web", None), &identity).await;
    assert_eq!(identity.bundle().sequence(), now.sequence() + 100);
}

/// It goes a minute further with each look at it: nobody sleeps before the next attempt.
struct Hasty(ManualClock);

impl Clock for Hasty {
    fn now(&self) -> Tick {
        self.0.now()
    }

    fn wall(&self) -> Duration {
        self.0.advance(Duration::from_mins(1));
        self.0.wall()
    }
}

/// What is told until something that is looked for is told.
pub(super) async fn told_until(
    mesh: &Mesh,
    joining: Joining,
    identity: &Arc<Identity>,
    mut wanted: impl FnMut(&Standing) -> bool,
) -> Vec<Standing> {
    let (tell, mut told) = tokio::sync::mpsc::channel(64);
    let rng = SeededRng::new(1);
    let say = move |standing: &Standing| tell.try_send(standing.clone()).unwrap();
    let keep = joining.keep(Arc::clone(identity), Arc::clone(&mesh.clock), rng, say);
    let heard = async {
        let mut all = Vec::new();
        while !all.last().is_some_and(&mut wanted) {
            all.push(told.recv().await.unwrap());
        }
        all
    };
    tokio::select! {
        () = keep => unreachable!("it keeps the SVID for as long as it is polled"),
        heard = tokio::time::timeout(PATIENCE, heard) => heard.expect("it is told"),
    }
}

#[tokio::test]
async fn a_process_tells_that_its_svid_is_over_why_and_when_that_is_mended() {
    let (mesh, clock) = mesh().await;
    let used = mesh.token("web", 1).await.token;
    let identity = mesh.join_with("web", Some(&used)).await.unwrap();
    let well = Standing { in_force: true, trouble: None };
    let joining = mesh.joining("web", Some(&used));
    assert_eq!(told_until(&mesh, joining, &identity, |_| true).await, std::slice::from_ref(&well));
    let mesh = away(mesh, &clock, TTL + DAY * 31).await;
    let told = told_until(&mesh, mesh.joining("web", Some(&used)), &identity, |s| s.trouble.is_some()).await;
    assert!(told.iter().all(|standing| !standing.in_force), "{told:?}");
    let trouble = told.last().unwrap().trouble.as_deref().unwrap();
    assert!(trouble.contains("is not renewed") && trouble.contains("create a new one"), "{trouble}");
    // Who puts another token into the file mends it.
    let (fresh, file) = (mesh.token("web", 1).await.token, mesh.path("web.token"));
    let mends = |standing: &Standing| {
        if standing.trouble.is_some() && !standing.in_force {
            std::fs::write(&file, &fresh).unwrap();
        }
        standing.in_force
    };
    let mesh = Mesh { clock: Arc::new(Hasty(clock)), ..mesh };
    let told = told_until(&mesh, mesh.joining("web", Some(&used)), &identity, mends).await;
    assert_eq!(told.last(), Some(&well));
}
