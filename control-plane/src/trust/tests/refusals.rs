//! Who is refused, and with which cause.

use meshwork_api::identity::{Der, RenewRequest};
use meshwork_base::{ManualClock, TrustDomain};
use meshwork_identity::{Expected, JoinToken, PendingSvid, Svid, pinned_client_config, provider};
use meshwork_xds::transport::StreamError;
use rustls::ClientConfig;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;

use super::*;

pub(super) fn h2() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec()]
}

#[tokio::test]
async fn a_token_that_is_no_more_or_never_was_admits_nobody() {
    let clock = ManualClock::new();
    clock.advance(Duration::from_secs(1_800_000_000));
    let mesh = Mesh::at(Arc::new(clock.clone())).await;
    let removed = mesh.token("web", 1).await.token;
    let id = JoinToken::parse(&removed).unwrap().id();
    mesh.delete(&format!("/v1/tokens/{id}")).await.unwrap();
    assert_eq!(told(&mesh.delete(&format!("/v1/tokens/{id}")).await.unwrap_err()).1, "MW4121");
    let unknown = (403, "MW6041".to_owned(), "token_unknown".to_owned());
    assert_eq!(told_join(mesh.join_with("a", Some(&removed)).await), unknown);
    let (good, other) = (mesh.token("web", 1).await.token, mesh.token("web", 1).await.token);
    let (good, other) = (good.split('.').collect::<Vec<_>>(), other.split('.').collect::<Vec<_>>());
    let wrong_secret = format!("{}.{}.{}", good[0], other[1], good[2]);
    assert_eq!(told_join(mesh.join_with("b", Some(&wrong_secret)).await), unknown, "and not told apart");
    assert!(matches!(mesh.join_with("c", Some("nonsense")).await, Err(JoinError::Token(_))));
    clock.advance(Duration::from_secs(3600));
    let expired = mesh.join_with("d", Some(&good.join("."))).await;
    assert_eq!(told_join(expired), (403, "MW6042".into(), "token_expired".into()));
    assert_eq!(mesh.get("/v1/tokens").await[0]["state"], "expired");
}

#[tokio::test]
async fn a_token_of_another_mesh_is_not_even_sent() {
    let (mesh, other) = (Mesh::new().await, Mesh::new().await);
    let token = other.token("web", 1).await.token;
    let error = mesh.join_with("web", Some(&token)).await.unwrap_err();
    assert!(error.to_string().contains("not the one that the join token names"), "{error}");
    assert_eq!(mesh.refused(1).await, ["refused_by_peer"]);
}

#[tokio::test]
async fn without_a_certificate_one_may_join_and_nothing_else() {
    let mesh = Mesh::new().await;
    let identity = mesh.join("web").await;
    let token = JoinToken::parse(&mesh.token("web", 1).await.token).unwrap();
    let control_plane = (Namespace::new("meshwork").unwrap(), ObjectName::new("control-plane").unwrap());
    let config = pinned_client_config(token.pin(), control_plane, h2(), Arc::clone(&mesh.clock));
    let base = format!("https://{}", mesh.plane.trust().unwrap().address());
    let client = Client::tls(&base, config).unwrap();
    let csr = Der(PendingSvid::generate().unwrap().csr().to_vec());
    let error = IdentityClient(client.clone()).renew(&RenewRequest { csr: csr.clone() }).await.unwrap_err();
    assert_eq!(told(&error), (401, "MW6001".into(), "no_certificate".into()));
    let headers = [("content-type", "application/grpc"), ("te", "trailers")];
    let path = "/meshwork.v1.Discovery/Stream";
    let stream = client.send(Method::POST, path, &headers, Bytes::new()).await.unwrap();
    assert_eq!(stream.headers["grpc-status"], "16", "UNAUTHENTICATED: {:?}", stream.headers);
    assert!(mesh.plane.hub().proxies().is_empty());
    let error = client.send(Method::GET, "/v1/tokens", &[], Bytes::new()).await.unwrap_err();
    assert_ne!(error.status().map(|status| status.as_u16()), Some(200), "tokens are made elsewhere: {error}");
    // With a certificate the same call is answered.
    let config = identity.client_config(h2(), Expected::one(mesh.plane.trust().unwrap().id()));
    let renewed = IdentityClient(Client::tls(&base, config).unwrap()).renew(&RenewRequest { csr }).await;
    assert_eq!(renewed.unwrap().chain.len(), 2);
}

/// A client that believes every server and shows this SVID.
fn careless(svid: &Svid) -> Arc<ClientConfig> {
    let pem = svid.to_pem();
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Careless))
        .with_client_auth_cert(svid.chain().to_vec(), key);
    let mut config = config.unwrap();
    config.alpn_protocols = h2();
    Arc::new(config)
}

#[derive(Debug)]
pub(super) struct Careless;

impl rustls::client::danger::ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// An SVID of an authority that is not the mesh's.
fn foreign(domain: &str, clock: &Arc<dyn Clock>) -> Svid {
    let folder = tempfile::tempdir().unwrap();
    let domain = TrustDomain::new(domain).unwrap();
    let authority =
        meshwork_identity::Authority::open_or_create(folder.path(), &domain, Arc::clone(clock)).unwrap();
    let pending = PendingSvid::generate().unwrap();
    let id = meshwork_base::SpiffeId::parse(&format!("spiffe://{domain}/ns/shop/sa/web")).unwrap();
    let issued = authority.issue(pending.csr(), &id, Duration::from_hours(1)).unwrap();
    pending.complete(issued.chain).unwrap()
}

#[tokio::test]
async fn svids_of_other_meshes_and_other_roots_are_refused_with_their_cause() {
    let mesh = Mesh::new().await;
    let base = format!("https://{}", mesh.plane.trust().unwrap().address());
    let csr = Der(PendingSvid::generate().unwrap().csr().to_vec());
    let cases = [("other.mesh", "wrong_trust_domain"), ("mesh.local", "untrusted_issuer")];
    for (nth, (domain, cause)) in cases.into_iter().enumerate() {
        let client = Client::tls(&base, careless(&foreign(domain, &mesh.clock))).unwrap();
        let error = IdentityClient(client).renew(&RenewRequest { csr: csr.clone() }).await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
        assert_eq!(mesh.refused(nth + 1).await.last().unwrap(), cause);
    }
    // The client is no less careful.
    let other = Mesh::new().await;
    let stranger = other.join("web").await;
    let opened = mesh.connector(&stranger)().await;
    assert!(matches!(opened, Err(StreamError::Refused(_))), "{opened:?}");
}

#[tokio::test]
async fn a_workload_speaks_for_its_own_namespace_only() {
    let mesh = Mesh::new().await;
    let identity = mesh.join("web").await;
    let foreign = v1::Node { service: "bank/vault".into(), ..node("shop/web-1") };
    let no_role = v1::Node { role: "database".into(), ..node("shop/web-1") };
    let cases = [
        (node("bank/vault-1"), "another namespace"),
        (foreign, "another namespace"),
        (node("gateway/bank/web/1"), "another namespace"),
        (node("gateway/shop/edge/1"), "gateway/NAMESPACE/WORKLOAD"),
        (node("web-1"), "NAMESPACE/INSTANCE"),
        (no_role, "no role that takes configuration"),
    ];
    for (node, why) in cases {
        let mut transport = mesh.connector(&identity)().await.unwrap();
        let request = v1::DiscoveryRequest { node: Some(node), ..v1::DiscoveryRequest::default() };
        transport.tx.send(request).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, transport.rx.recv()).await.unwrap().unwrap();
        let Err(StreamError::Refused(told)) = answer else { panic!("{answer:?}") };
        assert!(told.contains(why), "{told}");
    }
}

#[tokio::test]
async fn requests_that_would_break_the_mesh_are_refused() {
    let mesh = Mesh::new().await;
    let token = |namespace: &str, workload: &str, uses: u32, ttl: u64| json!({"namespace": namespace, "workload": workload, "uses": uses, "ttlSeconds": ttl});
    let own = "spiffe://mesh.local/ns/meshwork/sa/control-plane";
    let cases = [
        ("/v1/tokens", token("meshwork", "control-plane", 1, 60), "MW4125"),
        ("/v1/tokens", token("Shop", "web", 1, 60), "MW4104"),
        ("/v1/tokens", token("shop", "web", 0, 60), "MW4104"),
        ("/v1/tokens", token("shop", "web", 1, 0), "MW4104"),
        ("/v1/tokens", json!({"namespace": "shop"}), "MW4120"),
        ("/v1/identity/deny", json!({"spiffeId": own}), "MW4125"),
        ("/v1/identity/deny", json!({"spiffeId": "spiffe://other/ns/shop/sa/web"}), "MW4104"),
        ("/v1/identity/deny", json!({"spiffeId": "web"}), "MW4104"),
        ("/v1/identity/deny", json!({"serial": "0x1"}), "MW4104"),
        ("/v1/identity/deny", json!({"serial": "01", "issuedBefore": "2026-01-31T12:00:00Z"}), "MW4104"),
        ("/v1/identity/deny", json!({}), "MW4104"),
        ("/v1/identity/deny", json!({"spiffeId": own, "until": "tomorrow"}), "MW4120"),
        (
            "/v1/identity/deny",
            json!({"spiffeId": "spiffe://mesh.local/ns/shop/sa/web", "issuedBefore": "soon"}),
            "MW4104",
        ),
    ];
    for (path, body, code) in cases {
        let error = mesh.post(path, body.clone()).await.unwrap_err();
        assert_eq!(told(&error).1, code, "{body}: {error}");
    }
    assert_eq!((mesh.get("/v1/tokens").await, mesh.get("/v1/identity/deny").await), (json!([]), json!([])));
}

#[tokio::test]
async fn whose_clock_is_behind_waits_until_the_control_plane_s_time_has_come() {
    let clock = ManualClock::new();
    clock.advance(Duration::from_secs(1_800_000_000));
    let mesh = Mesh::at(Arc::new(clock)).await;
    let own = ManualClock::new();
    own.advance(Duration::from_secs(1_800_000_000 - 90));
    let token = mesh.token("web", 1).await.token;
    let joining = mesh.joining("web", Some(&token));
    let joined = tokio::spawn({
        let own = own.clone();
        async move { joining.identity(Arc::new(own), &mut SeededRng::new(1)).await }
    });
    assert_eq!(mesh.refused(1).await, ["refused_by_peer"]);
    assert!(!joined.is_finished(), "time mends that");
    own.advance(Duration::from_secs(60));
    let identity = tokio::time::timeout(PATIENCE, joined).await.expect("it joins").unwrap().unwrap();
    assert_eq!(identity.id().workload(), "web");
}
