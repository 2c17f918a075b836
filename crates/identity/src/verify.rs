//! Reading and checking a peer's certificate (X.509-SVID standard, sections 3 to 5).

use std::time::Duration;

use meshwork_base::SpiffeId;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{GeneralName, X509Certificate};

use crate::authority::{SERIAL, SERIAL_MARK, SERIAL_NOISE};
use crate::bundle::Bundle;
use crate::refusal::Refusal;
use crate::tls::provider;

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its identity.
    pub id: SpiffeId,
    /// When its SVID became valid, since the Unix epoch.
    pub not_before: Duration,
    /// When its SVID expires: the connection lives no longer.
    pub not_after: Duration,
    /// The certificate's serial number, without leading zeros.
    pub serial: Vec<u8>,
}

/// What a client has shown of itself in a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// No certificate.
    Nothing,
    /// An SVID in force.
    InForce(Peer),
    /// An SVID whose time is over, with its key: it gives no right but to ask the authority for the next one
    /// ([`crate::ServerOptions::lapsed`]).
    Lapsed(Peer),
    /// An SVID whose time has not come, since the clock of who issued it was ahead of ours: the same.
    Early(Peer),
}

impl Shown {
    /// Who it is, where that counts: an SVID that has expired, or begins only later, is refused.
    ///
    /// # Errors
    /// [`Refusal::SvidExpired`], [`Refusal::SvidNotYetValid`].
    pub fn in_force(self) -> Result<Option<Peer>, Refusal> {
        match self {
            Self::Nothing => Ok(None),
            Self::InForce(peer) => Ok(Some(peer)),
            Self::Lapsed(Peer { id, not_after, .. }) => Err(Refusal::SvidExpired { id, not_after }),
            Self::Early(Peer { id, not_before, .. }) => Err(Refusal::SvidNotYetValid { id, not_before }),
        }
    }
}

/// On which side of a connection the peer is: its certificate must be for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Refusal> {
    match x509_parser::parse_x509_certificate(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(Refusal::BadCertificate { why: "bytes follow the certificate".to_owned() }),
        Err(error) => Err(Refusal::BadCertificate { why: error.to_string() }),
    }
}

pub(crate) fn unix(time: i64) -> Duration {
    Duration::from_secs(u64::try_from(time).unwrap_or(0))
}

impl Peer {
    /// Reads a leaf certificate. Its signature is not checked here.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] or [`Refusal::NotAnSvid`].
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, Refusal> {
        let certificate = parse(der)?;
        let broken =
            |error: x509_parser::error::X509Error| Refusal::BadCertificate { why: error.to_string() };
        let names = certificate.subject_alternative_name().map_err(broken)?;
        let mut uris =
            names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            });
        let (Some(uri), None) = (uris.next(), uris.next()) else {
            return Err(Refusal::NotAnSvid { why: "it has not exactly one URI as alternative name" });
        };
        let id = SpiffeId::parse(uri).map_err(|_| Refusal::NotAnSvid {
            why: "its URI is not spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/WORKLOAD",
        })?;
        if certificate.is_ca() {
            return Err(Refusal::NotAnSvid { why: "it is a certificate authority" });
        }
        let usage = certificate.key_usage().map_err(broken)?;
        let leaf_usage = |usage: &x509_parser::extensions::KeyUsage| {
            usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign()
        };
        if !usage.is_some_and(|usage| leaf_usage(usage.value)) {
            return Err(Refusal::NotAnSvid { why: "its key usage is not that of a leaf" });
        }
        let validity = certificate.validity();
        let serial = certificate.raw_serial();
        let zeros = serial.iter().take_while(|&&byte| byte == 0).count();
        Ok(Self {
            id,
            not_before: unix(validity.not_before.timestamp()),
            not_after: unix(validity.not_after.timestamp()),
            serial: serial[zeros..].to_vec(),
        })
    }

    /// The sequence of the bundle that was in force where its SVID was issued, which no clock has a say in; zero where that is
    /// not known, since an older version issued it.
    pub(crate) fn issued_under(&self) -> u64 {
        match *self.serial {
            [first, a, b, c, d, e, f, g, h, ..]
                if self.serial.len() == SERIAL && first & !SERIAL_NOISE == SERIAL_MARK =>
            {
                u64::from_be_bytes([a, b, c, d, e, f, g, h])
            }
            _ => 0,
        }
    }
}

/// Checks a chain against a bundle: trust domain, signatures, time, deny entries; in this order, so that the cause
/// names what a person would call the reason.
pub(crate) fn verify(
    bundle: &Bundle,
    role: Role,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<Peer, Refusal> {
    let peer = Peer::read(leaf)?;
    if peer.id.trust_domain() != bundle.trust_domain().as_str() {
        return Err(Refusal::WrongTrustDomain { expected: bundle.trust_domain().clone(), got: peer.id });
    }
    let chain = match role {
        Role::Client => bundle.client_chains().verify_client_cert(leaf, intermediates, now).map(drop),
        Role::Server => signed_by(bundle.anchors(), leaf, intermediates, now),
    };
    chain.map_err(|error| chain_refusal(error, &peer))?;
    bundle.check_denied(&peer)?;
    Ok(peer)
}

/// Checks a client whose SVID has expired as it would have been checked in its last second, with whom is trusted and
/// denied today; who signed it must be in force today.
pub(crate) fn verify_lapsed(
    bundle: &Bundle,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<Peer, Refusal> {
    let last = Peer::read(leaf)?.not_after.min(Duration::from_secs(now.as_secs()));
    let peer = verify(bundle, Role::Client, leaf, intermediates, UnixTime::since_unix_epoch(last))?;
    for certificate in intermediates {
        if unix(parse(certificate)?.validity().not_after.timestamp()).as_secs() < now.as_secs() {
            return Err(Refusal::UntrustedIssuer { id: peer.id });
        }
    }
    Ok(peer)
}

/// Checks a client whose SVID begins only later as it would be checked in its first second, with whom is trusted and denied
/// today. That second is later than now; so nobody passes who has signed it and has expired.
pub(crate) fn verify_early(
    bundle: &Bundle,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<Peer, Refusal> {
    let first = Peer::read(leaf)?.not_before.max(Duration::from_secs(now.as_secs()));
    let peer = verify(bundle, Role::Client, leaf, intermediates, UnixTime::since_unix_epoch(first))?;
    bundle.check_denied_early(&peer)?;
    Ok(peer)
}

pub(crate) fn signed_by(
    anchors: &rustls::RootCertStore,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), Error> {
    let algorithms = provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(leaf)?,
        anchors,
        intermediates,
        now,
        algorithms,
    )
}

pub(crate) fn chain_refusal(error: Error, peer: &Peer) -> Refusal {
    let id = peer.id.clone();
    match error {
        Error::InvalidCertificate(CertificateError::Expired) => {
            Refusal::SvidExpired { id, not_after: peer.not_after }
        }
        // The time at fault may be an intermediate's; then it is the issuer that cannot be trusted.
        Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => {
            if not_after.as_secs() == peer.not_after.as_secs() {
                Refusal::SvidExpired { id, not_after: peer.not_after }
            } else {
                Refusal::UntrustedIssuer { id }
            }
        }
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => Refusal::SvidNotYetValid { id, not_before: peer.not_before },
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            Refusal::UntrustedIssuer { id }
        }
        other => Refusal::BadCertificate { why: other.to_string() },
    }
}
