//! Kubernetes' `Secret` and `ConfigMap`.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::certificate;
use crate::codes;
use crate::decode::node::Node;
use crate::decode::{Cx, Decode, Fields, record};
use crate::kinds::{Body, at_top};
use crate::object::ObjectMeta;

/// The type of secrets that hold a certificate and its key.
const TLS: &str = "kubernetes.io/tls";
/// Where a certificate chain stands in a secret.
const CHAIN: &str = "tls.crt";
/// Where its private key stands.
const KEY: &str = "tls.key";

/// What must not be seen: it prints and serialises as `<redacted>`.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// The bytes themselves.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

impl serde::Serialize for SecretBytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("<redacted>")
    }
}

impl Decode for SecretBytes {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        base64(node, cx).map(Self)
    }
}

fn base64(node: &Node, cx: &mut Cx) -> Option<Vec<u8>> {
    let text: String = String::decode(node, cx)?.split_whitespace().collect();
    let bytes = STANDARD.decode(text).ok();
    if bytes.is_none() {
        let message = format!("`{}` is not base64", cx.path());
        cx.error(node.span, codes::INVALID_VALUE, message).help =
            Some("encode it, or write it as it is under `stringData`".to_owned());
    }
    bytes
}

/// A certificate with its key, or other bytes that must not be seen.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Secret {
    /// What it holds: `kubernetes.io/tls` for a certificate with its key.
    #[serde(rename = "type")]
    pub secret_type: String,
    /// The bytes by name; `stringData` is merged in and wins, as in Kubernetes.
    pub data: BTreeMap<String, SecretBytes>,
    /// Whether Kubernetes lets it be changed; for output.
    pub immutable: Option<bool>,
}

impl Secret {
    /// The certificate chain and its private key, both PEM; a secret of any type may hold them. In an object that was
    /// loaded they fit each other.
    #[must_use]
    pub fn certificate_and_key(&self) -> Option<(&[u8], &[u8])> {
        Some((self.part(CHAIN)?, self.part(KEY)?))
    }

    fn part(&self, name: &str) -> Option<&[u8]> {
        self.data.get(name).map(SecretBytes::expose).filter(|bytes| !bytes.is_empty())
    }
}

impl Body for Secret {
    fn read(fields: &mut Fields<'_>, cx: &mut Cx) -> Option<Self> {
        cx.confidential = true;
        let secret_type = fields.field_or(cx, "type", || "Opaque".to_owned());
        let data: Option<BTreeMap<String, SecretBytes>> = fields.field(cx, "data");
        let plain: Option<BTreeMap<String, String>> = fields.field(cx, "stringData");
        let immutable = fields.field(cx, "immutable");
        let mut data = data?;
        data.extend(plain?.into_iter().map(|(name, text)| (name, SecretBytes(text.into_bytes()))));
        Some(Self { secret_type: secret_type?, data, immutable: immutable? })
    }

    fn validate(&self, _: &ObjectMeta, cx: &mut Cx) {
        let needed: &[&str] = if self.secret_type == TLS { &[CHAIN, KEY] } else { &[] };
        for name in needed.iter().filter(|name| self.part(name).is_none()) {
            let message = format!("a secret of type `{TLS}` needs `{name}`");
            cx.error(cx.start(), codes::MISSING_FIELD, message).help =
                Some("put it under `data` (base64) or `stringData` (as it is)".to_owned());
        }
        // Judged here, where the last good version can stay, and not by the listener, which would be closed. The place is
        // the object's: who prints the lines around it prints no key.
        let Some((chain, key)) = self.certificate_and_key() else { return };
        if let Err(error) = certificate::check(chain, key) {
            cx.error(cx.start(), codes::INVALID_CERTIFICATE, error.to_string()).help = Some(
                "`tls.crt`: the chain, the server's own first; `tls.key`: the key of that one".to_owned(),
            );
        }
    }

    fn to_json(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut json = crate::json::top(self);
        // Certificates are public, and the first thing one looks for.
        let data = json.get_mut("data").and_then(serde_json::Value::as_object_mut);
        for (name, shown) in data.into_iter().flatten() {
            if let ("tls.crt" | "ca.crt", Some(bytes)) = (name.as_str(), self.data.get(name)) {
                *shown = STANDARD.encode(bytes.expose()).into();
            }
        }
        json
    }
}

/// Bytes written as base64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base64Bytes(pub Vec<u8>);

impl serde::Serialize for Base64Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl Decode for Base64Bytes {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        base64(node, cx).map(Self)
    }
}

record! {
    /// Text and bytes that others refer to.
    pub struct ConfigMap {
        /// Texts by name.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        pub data: BTreeMap<String, String>,
        /// Bytes by name.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        pub binary_data: BTreeMap<String, Base64Bytes> as "binaryData",
        /// Whether Kubernetes lets it be changed; for output.
        pub immutable: Option<bool>,
    }
}

impl Body for ConfigMap {
    at_top!();

    fn validate(&self, _: &ObjectMeta, cx: &mut Cx) {
        for name in self.data.keys().filter(|name| self.binary_data.contains_key(*name)) {
            let message = format!("`{name}` stands in both `data` and `binaryData`");
            cx.error(cx.start(), codes::DUPLICATE_ENTRY, message);
        }
    }
}
