//! The two sides of a handshake.

use std::sync::{Arc, LazyLock};

use meshwork_base::{Clock, Namespace, ObjectName};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::Acceptor;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, TlsAcceptor, TlsConnector};

use crate::identity::{ClientAuth, Expected, Identity};
use crate::refusal::Refusal;
use crate::time::ClockTime;
use crate::token::Pin;
use crate::verify::{Peer, Role, Shown, chain_refusal, signed_by, verify, verify_early, verify_lapsed};

/// The one provider of cryptography: `aws-lc-rs`, hybrid post-quantum key exchange first.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

/// The signature half of a verifier: TLS 1.3 only.
macro_rules! verify_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2 is not spoken in the mesh".to_owned()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(
                message,
                certificate,
                signed,
                &provider().signature_verification_algorithms,
            )
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

/// Checks clients, with the bundle of the moment.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    pub(crate) identity: Arc<Identity>,
    pub(crate) auth: ClientAuth,
    pub(crate) lapsed: bool,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.auth == ClientAuth::Required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A workload has one SVID to show; hints would only make the handshake longer.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let bundle = self.identity.bundle();
        let verified = match verify(&bundle, Role::Client, leaf, intermediates, now) {
            Err(Refusal::SvidExpired { .. }) if self.lapsed => {
                verify_lapsed(&bundle, leaf, intermediates, now)
            }
            Err(Refusal::SvidNotYetValid { .. }) if self.lapsed => {
                verify_early(&bundle, leaf, intermediates, now)
            }
            verified => verified,
        };
        verified.map_err(Refusal::into_rustls)?;
        Ok(ClientCertVerified::assertion())
    }

    verify_signatures!();
}

/// Checks a server, with the bundle of the moment. The name in SNI says where to, not who: it is not checked.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    pub(crate) identity: Arc<Identity>,
    pub(crate) expected: Expected,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify(&self.identity.bundle(), Role::Server, leaf, intermediates, now)
            .and_then(|peer| self.expected.check(&peer.id))
            .map_err(Refusal::into_rustls)?;
        Ok(ServerCertVerified::assertion())
    }

    verify_signatures!();
}

/// Checks the server at first contact: its chain must end in the root whose hash the token carries, and it must be
/// the control plane, so that no other workload of the mesh can take the token.
#[derive(Debug)]
struct PinnedVerifier {
    pin: Pin,
    namespace: Namespace,
    workload: ObjectName,
}

impl PinnedVerifier {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let peer = Peer::read(leaf)?;
        let is_pinned =
            |certificate: &&CertificateDer<'_>| Pin::of(certificate).is_ok_and(|pin| pin == self.pin);
        let root = intermediates.iter().find(is_pinned).ok_or(Refusal::PinMismatch)?;
        let mut anchors = RootCertStore::empty();
        anchors
            .add(root.clone().into_owned())
            .map_err(|error| Refusal::BadCertificate { why: error.to_string() })?;
        signed_by(&anchors, leaf, intermediates, now).map_err(|error| chain_refusal(error, &peer))?;
        if (peer.id.namespace(), peer.id.workload()) == (self.namespace.as_str(), self.workload.as_str()) {
            return Ok(());
        }
        let expected = format!("/ns/{}/sa/{}", self.namespace, self.workload);
        Err(Refusal::UnexpectedIdentity { expected, got: peer.id })
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(leaf, intermediates, now).map_err(Refusal::into_rustls)?;
        Ok(ServerCertVerified::assertion())
    }

    verify_signatures!();
}

/// TLS 1.3 for first contact: no SVID of our own yet, the server proven by the token's pin before anything is sent.
/// The server must send its roots ([`crate::ServerOptions::send_roots`]).
#[must_use]
pub fn pinned_client_config(
    pin: Pin,
    (namespace, workload): (Namespace, ObjectName),
    alpn: Vec<Vec<u8>>,
    clock: Arc<dyn Clock>,
) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(ClockTime(clock)))
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3 suites")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedVerifier { pin, namespace, workload }))
        .with_no_client_auth();
    config.alpn_protocols = alpn;
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

fn peer_of(certificates: Option<&[CertificateDer<'_>]>) -> Result<Option<Peer>, Refusal> {
    certificates.and_then(<[_]>::first).map(Peer::read).transpose()
}

/// Waits for the first word of a handshake, which has to be answered: see [`answer`]. Nothing is computed until then.
///
/// # Errors
/// [`Refusal`] names the reason.
pub async fn hello<IO: AsyncRead + AsyncWrite + Unpin>(io: IO) -> Result<StartHandshake<IO>, Refusal> {
    let hello = LazyConfigAcceptor::new(Acceptor::default(), io);
    hello.await.map_err(|error| Refusal::of_io(&error))
}

/// Answers a handshake that has begun; says what the client has shown, where the configuration lets it show less than
/// an SVID in force.
///
/// # Errors
/// [`Refusal`] names the reason.
pub async fn answer<IO: AsyncRead + AsyncWrite + Unpin>(
    identity: &Identity,
    acceptor: &TlsAcceptor,
    hello: StartHandshake<IO>,
) -> Result<(tokio_rustls::server::TlsStream<IO>, Shown), Refusal> {
    identity.check_own()?;
    let stream = hello.into_stream(Arc::clone(acceptor.config())).await;
    let stream = stream.map_err(|error| Refusal::of_io(&error))?;
    let shown = shown(identity, &stream)?;
    Ok((stream, shown))
}

/// Both.
///
/// # Errors
/// [`Refusal`] names the reason.
pub async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(
    identity: &Identity,
    acceptor: &TlsAcceptor,
    io: IO,
) -> Result<(tokio_rustls::server::TlsStream<IO>, Shown), Refusal> {
    identity.check_own()?;
    let stream = acceptor.accept(io).await.map_err(|error| Refusal::of_io(&error))?;
    let shown = shown(identity, &stream)?;
    Ok((stream, shown))
}

fn shown<IO>(identity: &Identity, stream: &tokio_rustls::server::TlsStream<IO>) -> Result<Shown, Refusal> {
    let peer = peer_of(stream.get_ref().1.peer_certificates())?;
    Ok(peer.map_or(Shown::Nothing, |peer| identity.shown(peer)))
}

/// Begins a handshake. In TLS 1.3 the server judges our SVID afterwards: that it refused comes with the first read,
/// see [`Refusal::of_io`].
///
/// # Errors
/// [`Refusal`] names the reason.
pub async fn connect<IO: AsyncRead + AsyncWrite + Unpin>(
    identity: &Identity,
    connector: &TlsConnector,
    name: ServerName<'static>,
    io: IO,
) -> Result<(tokio_rustls::client::TlsStream<IO>, Peer), Refusal> {
    identity.check_own()?;
    let stream = connector.connect(name, io).await.map_err(|error| Refusal::of_io(&error))?;
    let peer = peer_of(stream.get_ref().1.peer_certificates())?.ok_or(Refusal::NoCertificate)?;
    Ok((stream, peer))
}
