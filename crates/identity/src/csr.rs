//! Signing requests (PKCS #10). A key is made where it is used; only its request travels.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use meshwork_base::Code;
use rcgen::{CertificateParams, KeyPair, PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::svid::{Svid, SvidError};

/// Why a signing request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// It does not parse.
    #[error("the signing request is no PKCS #10 request in DER: {0}")]
    Malformed(String),
    /// The key is of another kind.
    #[error("the signing request is for another key than ECDSA P-256 with SHA-256; make one of that kind")]
    Algorithm,
    /// The sender does not have the private key.
    #[error("the signature of the signing request does not match its public key")]
    Signature,
    /// No key could be made.
    #[error("no key pair could be made: {0}")]
    Generate(String),
}

impl CsrError {
    /// Its page.
    #[must_use]
    pub const fn code(&self) -> Code {
        Code::new(6021)
    }
}

/// A key that waits for its certificate.
pub struct PendingSvid {
    key: PrivatePkcs8KeyDer<'static>,
    csr: Vec<u8>,
}

impl PendingSvid {
    /// Makes a P-256 key and the request for it. The request names nobody: who gets which identity is the
    /// authority's decision.
    ///
    /// # Errors
    /// [`CsrError::Generate`] when the system has no randomness to give.
    pub fn generate() -> Result<Self, CsrError> {
        let failed = |error: rcgen::Error| CsrError::Generate(error.to_string());
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let csr = params.serialize_request(&key).map_err(failed)?.der().to_vec();
        Ok(Self { key: PrivatePkcs8KeyDer::from(key.serialize_der()), csr })
    }

    /// The request, in DER.
    #[must_use]
    pub fn csr(&self) -> &[u8] {
        &self.csr
    }

    /// Joins the key with the chain that the authority answered.
    ///
    /// # Errors
    /// [`SvidError`] when the chain is not for this key or no SVID.
    pub fn complete(self, chain: Vec<CertificateDer<'static>>) -> Result<Svid, SvidError> {
        Svid::new(chain, PrivateKeyDer::Pkcs8(self.key))
    }
}

/// Checks a request and takes its public key, and nothing else, from it.
pub(crate) fn public_key(csr: &[u8]) -> Result<SubjectPublicKeyInfo, CsrError> {
    let (rest, request) =
        X509CertificationRequest::from_der(csr).map_err(|error| CsrError::Malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(CsrError::Malformed("bytes follow the request".to_owned()));
    }
    let info = &request.certification_request_info;
    let spki = SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_| CsrError::Algorithm)?;
    if *spki.algorithm() != rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err(CsrError::Algorithm);
    }
    // ecdsa-with-SHA256, RFC 5758 section 3.2.
    if request.signature_algorithm.algorithm.to_id_string() != "1.2.840.10045.4.3.2" {
        return Err(CsrError::Algorithm);
    }
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &info.subject_pki.subject_public_key.data)
        .verify(info.raw, &request.signature_value.data)
        .map_err(|_| CsrError::Signature)?;
    Ok(spki)
}
