//! TLS that ends here: the certificate that SNI chooses, parsed once per secret. All workers share what resumes a session:
//! a client comes back to whichever the system gives it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use meshwork_decision::{Listener, Secret};
use parking_lot::Mutex;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why a secret cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// A part of it is no PEM of the right kind.
    #[error("secret {name}: {part}: {why}")]
    Pem {
        /// `NAMESPACE/NAME`.
        name: Arc<str>,
        /// `tls.crt` or `tls.key`.
        part: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Key and certificate do not belong together, or the key's kind is unknown.
    #[error("secret {name}: {source}; tls.key must be the private key of the first certificate in tls.crt")]
    Key {
        /// `NAMESPACE/NAME`.
        name: Arc<str>,
        /// What rustls said.
        #[source]
        source: rustls::Error,
    },
}

/// Parses a secret and checks that its halves belong together.
///
/// # Errors
/// [`SecretError`] names the secret and the part.
pub fn certified_key(secret: &Secret) -> Result<CertifiedKey, SecretError> {
    let pem = |part, why: String| SecretError::Pem { name: Arc::clone(&secret.name), part, why };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&secret.certificate_chain_pem)
        .collect::<Result<_, _>>()
        .map_err(|error| pem("tls.crt", error.to_string()))?;
    if chain.is_empty() {
        return Err(pem("tls.crt", "holds no certificate".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_slice(&secret.private_key_pem)
        .map_err(|error| pem("tls.key", error.to_string()))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, key, &provider)
        .map_err(|source| SecretError::Key { name: Arc::clone(&secret.name), source })
}

/// A process's TLS configurations, by the listener's secrets.
#[derive(Default)]
pub struct TlsConfigs {
    /// HTTP is spoken inside, or anything.
    by_secrets: Mutex<HashMap<(Vec<usize>, bool), Parsed>>,
}

struct Parsed {
    /// Keeps the secrets' addresses, which are the key, from being used again, and nothing of the secrets, which others hold.
    secrets: Box<[Weak<Secret>]>,
    config: Arc<ServerConfig>,
}

impl TlsConfigs {
    /// The configuration for a listener; one without a usable certificate refuses every handshake.
    pub(crate) fn of(&self, listener: &Listener) -> Arc<ServerConfig> {
        self.config(&listener.secrets, true)
    }

    /// The same for a listener in whose TLS anything may be spoken: no protocol is agreed on.
    pub(crate) fn for_any_protocol(&self, listener: &Listener) -> Arc<ServerConfig> {
        self.config(&listener.secrets, false)
    }

    fn config(&self, secrets: &[Arc<Secret>], http: bool) -> Arc<ServerConfig> {
        let key: Vec<usize> = secrets.iter().map(|secret| Arc::as_ptr(secret).addr()).collect();
        let mut known = self.by_secrets.lock();
        let parsed = known.entry((key, http)).or_insert_with(|| {
            let mut config = server_config(secrets);
            if http {
                config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            }
            Parsed { secrets: secrets.iter().map(Arc::downgrade).collect(), config: Arc::new(config) }
        });
        Arc::clone(&parsed.config)
    }

    /// Forgets the certificates that no snapshot has any more.
    pub(crate) fn sweep(&self) {
        self.by_secrets.lock().retain(|_, parsed| parsed.secrets.iter().all(|s| s.strong_count() > 0));
    }
}

fn server_config(secrets: &[Arc<Secret>]) -> ServerConfig {
    let parse = |secret: &Arc<Secret>| match certified_key(secret) {
        Ok(key) => Some(Arc::new(key)),
        // The control plane has refused it with a condition; here it is only left out.
        Err(error) => {
            tracing::warn!(%error, "certificate is left out");
            None
        }
    };
    let keys = Certificates(secrets.iter().filter_map(parse).collect());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("the provider knows TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(keys));
    match Ticketer::new() {
        Ok(ticketer) => config.ticketer = ticketer,
        // A few sessions are remembered without it.
        Err(error) => tracing::warn!(%error, "TLS sessions cannot be resumed by tickets"),
    }
    config
}

/// Certificates in the order of preference; the first that the client can verify is offered.
struct Certificates(Vec<Arc<CertifiedKey>>);

impl fmt::Debug for Certificates {
    /// Never shows a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificates({})", self.0.len())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes: &[SignatureScheme] = hello.signature_schemes();
        // One that the client cannot verify is told as what it is: that nothing fits, and not that access is denied.
        let fits = self.0.iter().find(|key| key.key.choose_scheme(schemes).is_some());
        fits.or(self.0.first()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str) -> Arc<Secret> {
        // What is no certificate is left out.
        let pem = bytes::Bytes::from_static(b"none");
        Arc::new(Secret { name: name.into(), certificate_chain_pem: pem.clone(), private_key_pem: pem })
    }

    #[test]
    fn certificates_are_forgotten_with_their_secrets_however_many_listeners_use_them() {
        let configs = TlsConfigs::default();
        let (old, other) = (secret("default/old"), secret("default/other"));
        let kept = configs.config(&[Arc::clone(&other)], true);
        for secrets in [vec![&old], vec![&old, &old], vec![&old, &other], vec![&other, &old]] {
            let secrets: Vec<_> = secrets.into_iter().map(Arc::clone).collect();
            for http in [true, false] {
                configs.config(&secrets, http);
            }
        }
        configs.sweep();
        assert_eq!(configs.by_secrets.lock().len(), 9, "all are in use");
        drop(old);
        configs.sweep();
        assert_eq!(configs.by_secrets.lock().len(), 1);
        assert!(Arc::ptr_eq(&kept, &configs.config(&[other], true)), "it is parsed once");
    }
}
