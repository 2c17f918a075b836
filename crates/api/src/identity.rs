//! How a process gets and keeps its SVID, and how tokens for that are made.
//!
//! | where | path | who may call | answer |
//! |---|---|---|---|
//! | 15012, TLS | `POST /v1/identity/join` [`JoinRequest`] | whoever has a token; no client certificate | [`Issued`] |
//! | 15012, mTLS | `POST /v1/identity/renew` [`RenewRequest`] | who shows an SVID, for the same identity; it may have expired, not too long ago | [`Issued`] |
//! | 15014 | `POST /v1/tokens` [`TokenRequest`] | an operator: loopback, or a token | [`Token`] |
//!
//! 15012 speaks HTTP/2 (ALPN `h2`) and serves the discovery stream on the same port. It asks for a client certificate
//! without requiring one ([`ClientAuth::Optional`]) and sends its roots behind its chain, because who joins has only the
//! token's pin to recognise it by. Its SVID is that of [`CONTROL_PLANE`], so that no other workload can take tokens.
//!
//! [`ClientAuth::Optional`]: https://docs.rs/rustls/latest/rustls/server/struct.WebPkiClientVerifier.html

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::client::{Client, ClientError, body};

/// Namespace and workload of the control plane's own SPIFFE ID.
pub const CONTROL_PLANE: (&str, &str) = ("meshwork", "control-plane");

/// Namespace and workload of the registry's own SPIFFE ID.
pub const REGISTRY: (&str, &str) = ("meshwork", "registry");

/// Namespace and workload of the platform's gateway, which may serve every `Gateway`. Another gateway has the namespace
/// and the name of the one `Gateway` that it serves.
pub const GATEWAY: (&str, &str) = ("meshwork", "gateway");

/// Bytes in DER, base64 in JSON.
#[derive(Clone, PartialEq, Eq)]
pub struct Der(pub Vec<u8>);

impl std::fmt::Debug for Der {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Der({} bytes)", self.0.len())
    }
}

impl Serialize for Der {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Der {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A process that has only a token asks for its first SVID.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinRequest {
    /// `id.secret.pin`, as `meshwork token create` printed it.
    pub token: String,
    /// PKCS #10; who it is for is the token's matter.
    pub csr: Der,
}

impl std::fmt::Debug for JoinRequest {
    /// The token stays out of every log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest").field("csr", &self.csr).finish_non_exhaustive()
    }
}

/// A process that shows its SVID, which may have expired, asks for the next one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RenewRequest {
    /// PKCS #10 of a new key.
    pub csr: Der,
}

/// An SVID, and whom to trust.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Issued {
    /// Leaf and intermediate.
    pub chain: Vec<Der>,
    /// The trust bundle as `meshwork_identity::Bundle::to_json` writes it.
    pub bundle: serde_json::Value,
}

/// What a token is to allow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenRequest {
    /// The namespace of who joins with it.
    pub namespace: String,
    /// The workload of who joins with it: the service's name, unless it is told apart.
    pub workload: String,
    /// How many instances may join with it.
    pub uses: u32,
    /// How long it may be used.
    pub ttl_seconds: u64,
}

/// A new token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Token {
    /// The token itself; it is shown this once.
    pub token: String,
    /// Whose identity it gives.
    pub spiffe_id: String,
    /// Until when it may be used (RFC 3339).
    pub expires: String,
}

impl std::fmt::Debug for Token {
    /// The token stays out of every log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

/// A client of the certificate authority.
#[derive(Clone, Debug)]
pub struct IdentityClient(pub Client);

impl IdentityClient {
    /// Joins with a token. The client's TLS must have checked the token's pin.
    ///
    /// # Errors
    /// [`ClientError`]; status 403 with the cause of the token's refusal.
    pub async fn join(&self, request: &JoinRequest) -> Result<Issued, ClientError> {
        self.0.json(Method::POST, "/v1/identity/join", &[], body(request)).await
    }

    /// Renews over the SVID that the client's TLS shows.
    ///
    /// # Errors
    /// [`ClientError`]; status 403 for who is revoked, or whose SVID expired too long ago.
    pub async fn renew(&self, request: &RenewRequest) -> Result<Issued, ClientError> {
        self.0.json(Method::POST, "/v1/identity/renew", &[], body(request)).await
    }

    /// Makes a token.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_token(&self, request: &TokenRequest) -> Result<Token, ClientError> {
        self.0.json(Method::POST, "/v1/tokens", &[], body(request)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_travel_as_base64_and_secrets_stay_out_of_logs() {
        let request = JoinRequest { token: "id.secret.pin".to_owned(), csr: Der(vec![1, 2, 255]) };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"token":"id.secret.pin","csr":"AQL/"}"#);
        assert_eq!(serde_json::from_str::<JoinRequest>(&text).unwrap(), request);
        assert!(serde_json::from_str::<JoinRequest>(r#"{"token":"t","csr":"*"}"#).is_err());
        assert!(!format!("{request:?}").contains("secret"));
    }
}
