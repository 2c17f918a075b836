//! Real TLS handshakes over streams in memory.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::sync::Arc;

use common::{HOUR, Mesh};
use meshwork_base::{Clock, Namespace, ObjectName};
use meshwork_identity::{
    Bundle, ClientAuth, Denied, Expected, Identity, JoinToken, Made, Peer, Refusal, ServerOptions, Shown,
    Svid, accept, connect, pinned_client_config,
};
use rustls::{ClientConfig, NamedGroup, ProtocolVersion, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

type Accepted = Result<(server::TlsStream<DuplexStream>, Shown), Refusal>;
type Connected = Result<(client::TlsStream<DuplexStream>, Peer), Refusal>;

fn options() -> ServerOptions {
    ServerOptions { alpn: vec![b"h2".to_vec()], ..ServerOptions::default() }
}

fn name() -> ServerName<'static> {
    ServerName::try_from("8080.reviews.shop.mesh").unwrap()
}

async fn shake(
    server: &Identity,
    config: Arc<ServerConfig>,
    client: &Identity,
    calls: Arc<ClientConfig>,
) -> (Accepted, Connected) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let (acceptor, connector) = (TlsAcceptor::from(config), TlsConnector::from(calls));
    tokio::join!(accept(server, &acceptor, far), connect(client, &connector, name(), near))
}

/// A client's call to a server of the same mesh, each with its default options.
async fn call(client: &Arc<Identity>, server: &Arc<Identity>, expected: Expected) -> (Accepted, Connected) {
    let calls = client.client_config(vec![b"h2".to_vec()], expected);
    shake(server, server.server_config(options()), client, calls).await
}

fn cause<T>(result: Result<T, Refusal>) -> &'static str {
    match result {
        Ok(_) => "accepted",
        Err(refusal) => refusal.cause(),
    }
}

#[tokio::test]
async fn two_workloads_prove_themselves_to_each_other() {
    let mesh = Mesh::new("mesh.local");
    let (web, reviews) = (mesh.identity("web"), mesh.identity("reviews"));
    let (accepted, connected) = call(&web, &reviews, Expected::one(reviews.id())).await;
    let ((mut theirs, shown), (mut ours, answered)) = (accepted.unwrap(), connected.unwrap());
    assert_eq!(shown, Shown::InForce(web.svid().as_peer().clone()));
    assert_eq!(answered, *reviews.svid().as_peer());
    let (session, other) = (ours.get_ref().1, theirs.get_ref().1);
    assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(session.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert_eq!(other.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    ours.write_all(b"hello").await.unwrap();
    ours.flush().await.unwrap();
    let mut got = [0; 5];
    theirs.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"hello");
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let mesh = Mesh::new("mesh.local");
    let (web, reviews) = (mesh.identity("web"), mesh.identity("reviews"));
    let bare = rustls::ClientConfig::builder_with_provider(meshwork_identity::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(believer::new())
        .with_no_client_auth();
    let (accepted, connected) =
        shake(&reviews, reviews.server_config(ServerOptions::default()), &web, Arc::new(bare)).await;
    assert_eq!(cause(accepted), "no_certificate");
    // TLS 1.3: the client's side of the handshake was over; it learns of the refusal when it reads.
    let mut stream = connected.unwrap().0;
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(Refusal::of_io(&error).cause(), "refused_by_peer");
}

#[tokio::test]
async fn another_trust_domain_is_refused_on_both_sides() {
    let mesh = Mesh::new("mesh.local");
    let other = Mesh::at("other.local", mesh.clock.clone());
    let (web, stranger) = (mesh.identity("web"), other.identity("web"));
    let (_, connected) = call(&web, &stranger, Expected::TrustDomain).await;
    assert_eq!(cause(connected), "wrong_trust_domain");
    let calls = believer::config(&stranger);
    let (accepted, _) = shake(&web, web.server_config(ServerOptions::default()), &stranger, calls).await;
    assert_eq!(cause(accepted), "wrong_trust_domain");
}

#[tokio::test]
async fn an_issuer_outside_the_bundle_is_refused_even_for_our_trust_domain() {
    let mesh = Mesh::new("mesh.local");
    let forger = Mesh::at("mesh.local", mesh.clock.clone());
    let (web, forged) = (mesh.identity("web"), forger.identity("reviews"));
    let (_, connected) = call(&web, &forged, Expected::TrustDomain).await;
    assert_eq!(cause(connected), "untrusted_issuer");
    let calls = believer::config(&forged);
    let (accepted, _) = shake(&web, web.server_config(ServerOptions::default()), &forged, calls).await;
    assert_eq!(cause(accepted), "untrusted_issuer");
}

#[tokio::test]
async fn a_deny_entry_refuses_and_names_live_connections() {
    let mesh = Mesh::new("mesh.local");
    let (web, reviews) = (mesh.identity("web"), mesh.identity("reviews"));
    let (accepted, _) = call(&web, &reviews, Expected::TrustDomain).await;
    let live = accepted.unwrap().1.in_force().unwrap().unwrap();
    assert_eq!(reviews.bundle().check_denied(&live), Ok(()));

    let serial = Denied::Serial { serial: [&[0], &live.serial[..]].concat() };
    let id = Denied::Identity { id: web.id(), issued_before: None, made: None };
    for entry in [serial, id] {
        let reviews = mesh.identity("reviews");
        reviews.trust(mesh.bundle(2, [entry])).unwrap();
        assert_eq!(
            cause(reviews.bundle().check_denied(&live)),
            "revoked",
            "a live connection is to be closed"
        );
        assert_eq!(cause(call(&web, &reviews, Expected::TrustDomain).await.0), "revoked");
        // The caller trusts no revoked server either.
        let shown = mesh.identity("reviews");
        shown
            .trust(mesh.bundle(2, [Denied::Identity { id: web.id(), issued_before: None, made: None }]))
            .unwrap();
        assert_eq!(cause(call(&shown, &web, Expected::TrustDomain).await.1), "revoked");
    }
}

#[tokio::test]
async fn a_dated_deny_entry_lets_a_new_svid_pass() {
    let mesh = Mesh::new("mesh.local");
    let (web, reviews) = (mesh.identity("web"), mesh.identity("reviews"));
    mesh.clock.advance(HOUR);
    let stolen = Denied::Identity { id: web.id(), issued_before: Some(mesh.clock.wall()), made: None };
    reviews.trust(mesh.bundle(2, [stolen])).unwrap();
    assert_eq!(cause(call(&web, &reviews, Expected::TrustDomain).await.0), "revoked");
    web.renew(mesh.svid("web")).unwrap();
    assert_eq!(cause(call(&web, &reviews, Expected::TrustDomain).await.0), "accepted");
}

#[tokio::test]
async fn a_dated_deny_entry_holds_for_what_was_issued_before_by_a_clock_that_ran_ahead() {
    let mesh = Mesh::new("mesh.local");
    mesh.clock.advance(HOUR * 25);
    let stolen = mesh.identity("web");
    mesh.clock.set_back(HOUR * 25);
    let at = mesh.clock.wall();
    let made = Some(Made { at, sequence: 7 });
    let denied = Denied::Identity { id: stolen.id(), issued_before: Some(at), made };
    let bundle = Bundle::from_json(&mesh.bundle(7, [denied]).to_json()).unwrap();
    let reviews = mesh.identity("reviews");
    reviews.trust(bundle).unwrap();
    mesh.authority.issues_under(7);
    let honest = mesh.identity("web");
    for _ in 0..3 {
        mesh.clock.advance(HOUR * 10);
        assert_eq!(cause(call(&honest, &reviews, Expected::TrustDomain).await.0), "accepted");
        assert_eq!(cause(call(&mesh.identity("web"), &reviews, Expected::TrustDomain).await.0), "accepted");
        let refused = cause(call(&stolen, &reviews, Expected::TrustDomain).await.0);
        let wanted = if stolen.is_in_force() { "revoked" } else { "svid_not_yet_valid" };
        assert_eq!(refused, wanted);
    }
    assert!(stolen.is_in_force());
}

#[tokio::test]
async fn an_expired_svid_is_refused_by_others_and_by_its_owner() {
    let mesh = Mesh::new("mesh.local");
    let web = mesh.identity("web");
    mesh.clock.advance(HOUR * 71);
    let reviews = mesh.identity("reviews");
    assert_eq!(cause(call(&web, &reviews, Expected::TrustDomain).await.0), "accepted");
    mesh.clock.advance(HOUR * 2);
    assert_eq!(web.remaining(), std::time::Duration::ZERO);

    let (accepted, connected) = call(&web, &reviews, Expected::TrustDomain).await;
    assert_eq!(cause(connected), "own_svid_expired", "the owner does not even call");
    assert_eq!(cause(accepted), "tls_handshake_failed", "nothing arrived");
    assert_eq!(cause(call(&reviews, &web, Expected::TrustDomain).await.0), "own_svid_expired");

    // A caller that shows it all the same, and a server that does: their clocks stand still.
    let frozen = |id: &Arc<Identity>| {
        let clock = meshwork_base::ManualClock::new();
        clock.advance(web.svid().not_after() - HOUR);
        let pem = id.svid().to_pem();
        Identity::new(meshwork_identity::Svid::from_pem(&pem).unwrap(), mesh.bundle(1, []), Arc::new(clock))
            .unwrap()
    };
    let late = frozen(&web);
    let (accepted, _) = call(&late, &reviews, Expected::TrustDomain).await;
    assert_eq!(cause(accepted), "svid_expired");
    let (_, connected) = call(&reviews, &late, Expected::TrustDomain).await;
    assert_eq!(cause(connected), "svid_expired");
}

#[tokio::test]
async fn an_svid_from_the_future_is_refused() {
    let mesh = Mesh::new("mesh.local");
    let early = mesh.identity("early");
    let ahead = meshwork_base::ManualClock::new();
    ahead.advance(mesh.clock.wall() + HOUR);
    let domain = mesh.authority.trust_domain();
    let authority =
        meshwork_identity::Authority::open_or_create(mesh.folder.path(), domain, Arc::new(ahead.clone()))
            .unwrap();
    let pending = meshwork_identity::PendingSvid::generate().unwrap();
    let issued = authority.issue(pending.csr(), &mesh.id("late"), HOUR).unwrap();
    let svid = pending.complete(issued.chain).unwrap();
    let late = Identity::new(svid, mesh.bundle(1, []), Arc::new(ahead)).unwrap();
    let (_, connected) = call(&early, &late, Expected::TrustDomain).await;
    assert_eq!(cause(connected), "svid_not_yet_valid");
}

#[tokio::test]
async fn a_mesh_that_was_begun_while_the_clock_ran_ahead_starts_again_once_that_is_corrected() {
    let mesh = Mesh::new("mesh.local");
    mesh.clock.set_back(HOUR * 24);
    let (domain, clock) = (mesh.authority.trust_domain(), Arc::new(mesh.clock.clone()));
    let again = meshwork_identity::Authority::open_or_create(mesh.folder.path(), domain, clock).unwrap();
    assert_eq!(again.pin(), mesh.authority.pin(), "another root would cut off every workload");
    let mesh = Mesh { authority: again, ..mesh };
    let (web, reviews) = (mesh.identity("web"), mesh.identity("reviews"));
    let (accepted, connected) = call(&web, &reviews, Expected::TrustDomain).await;
    assert_eq!((cause(accepted), cause(connected)), ("accepted", "accepted"));
}

#[tokio::test]
async fn a_server_of_another_workload_is_refused() {
    let mesh = Mesh::new("mesh.local");
    let (web, reviews) = (mesh.identity("web"), mesh.identity("reviews"));
    let expected = Expected::AnyOf([mesh.id("ratings"), mesh.id("ratings-v2")].into());
    let (accepted, connected) = call(&web, &reviews, expected).await;
    let refusal = connected.unwrap_err();
    assert_eq!(refusal.cause(), "unexpected_identity");
    let text = refusal.to_string();
    assert!(text.contains("/sa/ratings or ") && text.contains("/sa/reviews"), "{text}");
    assert_eq!(cause(accepted), "refused_by_peer");
}

#[tokio::test]
async fn a_renewed_svid_serves_new_connections_and_the_old_ones_go_on() {
    let mesh = Mesh::new("mesh.local");
    let (web, reviews) = (mesh.identity("web"), mesh.identity("reviews"));
    // The configurations are made once: renewal happens under them.
    let (serves, calls) =
        (reviews.server_config(options()), web.client_config(vec![], Expected::one(reviews.id())));
    let (accepted, connected) = shake(&reviews, serves.clone(), &web, calls.clone()).await;
    let ((mut theirs, before), (mut ours, _)) = (accepted.unwrap(), connected.unwrap());
    mesh.clock.advance(HOUR * 24);
    web.renew(mesh.svid("web")).unwrap();
    reviews.renew(mesh.svid("reviews")).unwrap();
    mesh.clock.advance(HOUR * 60);

    ours.write_all(b"still here").await.unwrap();
    ours.flush().await.unwrap();
    let mut got = [0; 10];
    theirs.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"still here");

    let (accepted, connected) = shake(&reviews, serves, &web, calls).await;
    assert_eq!(connected.unwrap().1, *reviews.svid().as_peer());
    let after = accepted.unwrap().1.in_force().unwrap().unwrap();
    assert_eq!(after, *web.svid().as_peer());
    assert_ne!(Some(after.serial), before.in_force().unwrap().map(|peer| peer.serial));
}

#[tokio::test]
async fn nothing_is_resumed_so_a_revocation_holds() {
    let mesh = Mesh::new("mesh.local");
    let (web, reviews) = (mesh.identity("web"), mesh.identity("reviews"));
    let (serves, calls) =
        (reviews.server_config(options()), web.client_config(vec![], Expected::TrustDomain));
    for _ in 0..2 {
        let (accepted, connected) = shake(&reviews, serves.clone(), &web, calls.clone()).await;
        let (mut theirs, mut ours) = (accepted.unwrap().0, connected.unwrap().0);
        theirs.write_all(b"x").await.unwrap();
        theirs.flush().await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap(), b'x', "tickets, if there were any, have arrived");
        assert_eq!(ours.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
    reviews
        .trust(mesh.bundle(2, [Denied::Identity { id: web.id(), issued_before: None, made: None }]))
        .unwrap();
    assert_eq!(cause(shake(&reviews, serves, &web, calls).await.0), "revoked");
}

#[test]
fn trust_never_goes_back_and_identity_never_changes() {
    let mesh = Mesh::new("mesh.local");
    let web = mesh.identity("web");
    web.trust(mesh.bundle(5, [])).unwrap();
    let error = web.trust(mesh.bundle(4, [])).unwrap_err().to_string();
    assert!(error.contains('4') && error.contains('5'), "{error}");
    assert_eq!(web.bundle().sequence(), 5);
    assert!(web.renew(mesh.svid("reviews")).is_err());
    assert_eq!(web.id(), mesh.id("web"));
    let other = Mesh::at("other.local", mesh.clock.clone());
    assert!(web.trust(other.bundle(9, [])).is_err());
}

mod first_contact {
    use super::*;

    fn joining(token: &JoinToken, mesh: &Mesh, workload: &str) -> Arc<ClientConfig> {
        let expected = (Namespace::new("shop").unwrap(), ObjectName::new(workload).unwrap());
        pinned_client_config(token.pin(), expected, vec![b"h2".to_vec()], Arc::new(mesh.clock.clone()))
    }

    fn token(mesh: &Mesh) -> JoinToken {
        JoinToken::create(mesh.id("web"), 1, HOUR, mesh.authority.pin(), mesh.clock.wall()).unwrap().0
    }

    async fn join(
        server: &Arc<Identity>,
        options: ServerOptions,
        config: Arc<ClientConfig>,
    ) -> (Accepted, Result<(), Refusal>) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let (acceptor, connector) =
            (TlsAcceptor::from(server.server_config(options)), TlsConnector::from(config));
        let (accepted, connected) =
            tokio::join!(accept(server, &acceptor, far), connector.connect(name(), near));
        (accepted, connected.map(drop).map_err(|error| Refusal::of_io(&error)))
    }

    fn open() -> ServerOptions {
        ServerOptions { client_auth: ClientAuth::Optional, send_roots: true, ..options() }
    }

    #[tokio::test]
    async fn the_pin_proves_the_control_plane_before_anything_is_sent() {
        let mesh = Mesh::new("mesh.local");
        let plane = mesh.identity("control-plane");
        let (accepted, connected) =
            join(&plane, open(), joining(&token(&mesh), &mesh, "control-plane")).await;
        assert_eq!(connected, Ok(()));
        assert_eq!(accepted.unwrap().1, Shown::Nothing, "a joining instance has no identity yet");
    }

    #[tokio::test]
    async fn an_open_server_still_checks_a_certificate_that_is_shown() {
        let mesh = Mesh::new("mesh.local");
        let (plane, web) = (mesh.identity("control-plane"), mesh.identity("web"));
        plane
            .trust(mesh.bundle(2, [Denied::Identity { id: web.id(), issued_before: None, made: None }]))
            .unwrap();
        let calls = web.client_config(vec![b"h2".to_vec()], Expected::TrustDomain);
        let (accepted, _) = shake(&plane, plane.server_config(open()), &web, calls).await;
        assert_eq!(cause(accepted), "revoked");
    }

    fn renewing() -> ServerOptions {
        ServerOptions { lapsed: true, ..open() }
    }

    async fn asked(plane: &Arc<Identity>, options: ServerOptions, web: &Arc<Identity>) -> Accepted {
        let calls = web.renewal_config(vec![b"h2".to_vec()], Expected::TrustDomain);
        let (near, far) = tokio::io::duplex(1 << 16);
        let (acceptor, connector) =
            (TlsAcceptor::from(plane.server_config(options)), TlsConnector::from(calls));
        tokio::join!(accept(plane, &acceptor, far), connector.connect(name(), near)).0
    }

    #[tokio::test]
    async fn an_expired_svid_is_shown_as_such_where_it_is_renewed_and_taken_nowhere_else() {
        let mesh = Mesh::new("mesh.local");
        let web = mesh.identity("web");
        mesh.clock.advance(HOUR * 24 * 20);
        let plane = mesh.identity("control-plane");
        let (_, shown) = asked(&plane, renewing(), &web).await.unwrap();
        assert_eq!(shown, Shown::Lapsed(web.svid().as_peer().clone()));
        assert_eq!(cause(shown.in_force()), "svid_expired", "who asks for one in force gets none");
        assert_eq!(cause(asked(&plane, open(), &web).await), "svid_expired");
        assert_eq!(cause(asked(&plane, options(), &web).await), "svid_expired");
        let calls = web.client_config(vec![b"h2".to_vec()], Expected::TrustDomain);
        let (accepted, connected) = shake(&plane, plane.server_config(renewing()), &web, calls).await;
        assert_eq!(
            (accepted.is_ok(), cause(connected)),
            (false, "own_svid_expired"),
            "nor do we call with it"
        );
    }

    #[tokio::test]
    async fn an_expired_svid_must_be_right_in_all_but_its_time() {
        let mesh = Mesh::new("mesh.local");
        let forger = Mesh::at("mesh.local", mesh.clock.clone());
        let web = mesh.identity("web");
        // It believes the mesh, which does not believe it.
        let forged = Svid::from_pem(&forger.identity("web").svid().to_pem()).unwrap();
        let forged = Identity::new(forged, mesh.bundle(1, []), Arc::new(mesh.clock.clone())).unwrap();
        mesh.clock.advance(HOUR * 100);
        let plane = mesh.identity("control-plane");
        assert_eq!(cause(asked(&plane, renewing(), &forged).await), "untrusted_issuer");
        let denied = Denied::Identity { id: web.id(), issued_before: Some(mesh.clock.wall()), made: None };
        plane.trust(mesh.bundle(2, [denied])).unwrap();
        assert_eq!(cause(asked(&plane, renewing(), &web).await), "revoked");
    }

    #[tokio::test]
    async fn an_expired_svid_whose_issuer_has_expired_too_is_not_taken() {
        let mesh = Mesh::new("mesh.local");
        let web = mesh.identity("web");
        mesh.clock.advance(meshwork_identity::INTERMEDIATE_LIFETIME + HOUR);
        mesh.authority.maintain().unwrap();
        let plane = mesh.identity("control-plane");
        assert_eq!(cause(asked(&plane, renewing(), &web).await), "untrusted_issuer");
    }

    #[tokio::test]
    async fn an_svid_whose_time_has_not_come_is_shown_as_such_where_it_is_renewed_and_taken_nowhere_else() {
        let mesh = Mesh::new("mesh.local");
        mesh.clock.advance(HOUR * 25);
        let web = mesh.identity("web");
        assert!(web.is_in_force());
        mesh.clock.set_back(HOUR * 25);
        assert!(!web.is_in_force());
        let plane = mesh.identity("control-plane");
        let (_, shown) = asked(&plane, renewing(), &web).await.unwrap();
        assert_eq!(shown, Shown::Early(web.svid().as_peer().clone()));
        assert_eq!(cause(shown.in_force()), "svid_not_yet_valid", "who asks for one in force gets none");
        assert_eq!(cause(asked(&plane, open(), &web).await), "svid_not_yet_valid");
        assert_eq!(cause(asked(&plane, options(), &web).await), "svid_not_yet_valid");
        web.renew(mesh.svid("web")).unwrap();
        assert!(web.is_in_force());
        let (_, shown) = asked(&plane, renewing(), &web).await.unwrap();
        assert_eq!(shown, Shown::InForce(web.svid().as_peer().clone()));
    }

    #[tokio::test]
    async fn an_svid_whose_time_has_not_come_must_be_right_in_all_but_that() {
        let mesh = Mesh::new("mesh.local");
        let forger = Mesh::at("mesh.local", mesh.clock.clone());
        mesh.clock.advance(HOUR * 25);
        let web = mesh.identity("web");
        let forged = Svid::from_pem(&forger.identity("web").svid().to_pem()).unwrap();
        let forged = Identity::new(forged, mesh.bundle(1, []), Arc::new(mesh.clock.clone())).unwrap();
        mesh.clock.set_back(HOUR * 25);
        let plane = mesh.identity("control-plane");
        assert_eq!(cause(asked(&plane, renewing(), &forged).await), "untrusted_issuer");
        // Its date is later than what is revoked, but it cannot have been issued later.
        let denied = Denied::Identity { id: web.id(), issued_before: Some(mesh.clock.wall()), made: None };
        plane.trust(mesh.bundle(2, [denied])).unwrap();
        assert_eq!(cause(asked(&plane, renewing(), &web).await), "revoked");
    }

    #[tokio::test]
    async fn another_root_a_hidden_root_or_another_workload_is_refused() {
        let mesh = Mesh::new("mesh.local");
        let forger = Mesh::at("mesh.local", mesh.clock.clone());
        let token = token(&mesh);
        let refused = |server: Arc<Identity>, options: ServerOptions| {
            let config = joining(&token, &mesh, "control-plane");
            async move { join(&server, options, config).await.1.unwrap_err().cause() }
        };
        assert_eq!(refused(forger.identity("control-plane"), open()).await, "pin_mismatch");
        let hidden = ServerOptions { send_roots: false, ..open() };
        assert_eq!(refused(mesh.identity("control-plane"), hidden).await, "pin_mismatch");
        assert_eq!(refused(mesh.identity("reviews"), open()).await, "unexpected_identity");
    }

    /// The forger shows the true root beside its own chain.
    #[tokio::test]
    async fn a_root_that_is_shown_but_did_not_sign_is_refused() {
        let mesh = Mesh::new("mesh.local");
        let forger = Mesh::at("mesh.local", mesh.clock.clone());
        let bundle =
            Bundle::new(forger.authority.trust_domain().clone(), 1, vec![mesh.authority.root().clone()], [])
                .unwrap();
        let server =
            Identity::new(forger.svid("control-plane"), bundle, Arc::new(mesh.clock.clone())).unwrap();
        let (_, connected) = join(&server, open(), joining(&token(&mesh), &mesh, "control-plane")).await;
        assert_eq!(cause(connected), "untrusted_issuer");
    }
}

/// A client that believes every server, to test what servers do.
mod believer {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};

    use super::*;

    #[derive(Debug)]
    struct Believer;

    pub(crate) fn new() -> Arc<dyn ServerCertVerifier> {
        Arc::new(Believer)
    }

    pub(crate) fn config(identity: &Identity) -> Arc<ClientConfig> {
        let key = PrivateKeyDer::from_pem_slice(identity.svid().to_pem().as_bytes()).unwrap();
        let config = ClientConfig::builder_with_provider(meshwork_identity::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(new())
            .with_client_auth_cert(identity.svid().chain().to_vec(), key)
            .unwrap();
        Arc::new(config)
    }

    impl ServerCertVerifier for Believer {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            meshwork_identity::provider().signature_verification_algorithms.supported_schemes()
        }
    }
}
