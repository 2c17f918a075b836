//! Whether a certificate chain and a private key can serve a listener.

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("`tls.crt` is no PEM ({0}); it must hold the certificate chain, the server's own first")]
    ChainPem(&'static str),
    #[error("`tls.crt` holds no certificate; it must hold the chain in PEM, the server's own first")]
    NoCertificate,
    #[error("`tls.key` holds no private key in PEM ({0}); PKCS #8, PKCS #1 and SEC 1 are read, unencrypted")]
    KeyPem(&'static str),
    #[error("`tls.key` is not the key of the first certificate in `tls.crt`")]
    Mismatch,
    #[error("certificate and key cannot be used: {0}")]
    Unusable(rustls::Error),
}

/// Checks that there is a chain, that there is a key, and that the key is the chain's. Dates and names are not looked
/// at: an expired certificate is served, and clients say so.
pub(crate) fn check(chain_pem: &[u8], key_pem: &[u8]) -> Result<(), CertificateError> {
    let chain = CertificateDer::pem_slice_iter(chain_pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| CertificateError::ChainPem(fault(&error)))?;
    if chain.is_empty() {
        return Err(CertificateError::NoCertificate);
    }
    let key =
        PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| CertificateError::KeyPem(fault(&error)))?;
    match CertifiedKey::from_der(chain, key, &default_provider()) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => Err(CertificateError::Mismatch),
        Err(error) => Err(CertificateError::Unusable(error)),
    }
}

/// What is wrong with a PEM. The error's own text repeats the line at fault, in which the key may stand.
const fn fault(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no line that ends it",
        pem::Error::IllegalSectionStart { .. } => "the line that begins a section goes on behind its name",
        pem::Error::Base64Decode(_) => "a section is not base64",
        pem::Error::NoItemsFound => "there is no section of that kind",
        pem::Error::SectionTooLarge => "a section is too large",
        _ => "it cannot be read",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["a.example.com".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_chain_with_its_key_is_usable() {
        let (chain, key) = pair();
        check(chain.as_bytes(), key.as_bytes()).unwrap();
    }

    #[test]
    fn says_what_is_wrong() {
        let (chain, key) = pair();
        let (_, other_key) = pair();
        let told = |chain: &str, key: &str| check(chain.as_bytes(), key.as_bytes()).unwrap_err().to_string();
        assert!(told("Hello world", &key).contains("holds no certificate"));
        assert!(told(&chain, "Hello world").contains("holds no private key"));
        assert!(told(&chain, &other_key).contains("not the key of the first certificate"));
        let torn = chain.replace("-----END CERTIFICATE-----", "");
        assert!(told(&torn, &key).contains("is no PEM"), "{}", told(&torn, &key));
        // Its line ends are lost: what is told must not repeat it.
        let flat = key.replacen("-----\n", "-----", 1);
        let words = told(&chain, &flat);
        assert!(words.contains("goes on behind its name") && !words.contains("45, 45"), "{words}");
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(told(garbage, &key).contains("cannot be used"));
    }
}
