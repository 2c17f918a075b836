//! SPIFFE IDs, as the SPIFFE-ID standard writes them (section 2).

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::name::{Namespace, ObjectName};

/// Why a text is no SPIFFE ID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no SPIFFE ID: {why}; write spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/WORKLOAD")]
pub struct SpiffeIdError {
    text: String,
    why: &'static str,
}

/// A trust domain: lower-case letters, digits, `.`, `-`, `_`; at most 255 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Checks the text.
    ///
    /// # Errors
    /// [`SpiffeIdError`] says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, SpiffeIdError> {
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > 255 || !text.bytes().all(ok) {
            let why = "a trust domain has 1 to 255 lower-case letters, digits, `.`, `-`, `_`";
            return Err(SpiffeIdError { text: text.to_owned(), why });
        }
        Ok(Self(text.into()))
    }

    /// The trust domain as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = SpiffeIdError;
    fn try_from(text: String) -> Result<Self, SpiffeIdError> {
        Self::new(&text)
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0.as_ref().to_owned()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/WORKLOAD`: who a workload is.
///
/// Other path layouts are valid SPIFFE, but no identity of a mesh of ours; they do not parse.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    text: Arc<str>,
    domain_end: u16,
    namespace_end: u16,
}

const SCHEME: &str = "spiffe://";

impl SpiffeId {
    /// Puts an ID together.
    #[must_use]
    pub fn new(domain: &TrustDomain, namespace: &Namespace, workload: &ObjectName) -> Self {
        Self::parse(&format!("{SCHEME}{domain}/ns/{namespace}/sa/{workload}"))
            .expect("checked parts make a SPIFFE ID below 2048 bytes")
    }

    /// Reads an ID.
    ///
    /// # Errors
    /// [`SpiffeIdError`] when it is not of the mesh's form.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        let error = |why| SpiffeIdError { text: text.to_owned(), why };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| error("it does not begin with spiffe://"))?;
        let (domain, path) = rest.split_once('/').ok_or_else(|| error("it has no path"))?;
        TrustDomain::new(domain).map_err(|e| error(e.why))?;
        let mut parts = path.split('/');
        let (Some("ns"), Some(namespace), Some("sa"), Some(workload), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(error("its path is not /ns/NAMESPACE/sa/WORKLOAD"));
        };
        Namespace::new(namespace).map_err(|_| error("its namespace is no RFC 1123 label"))?;
        ObjectName::new(workload).map_err(|_| error("its workload is no RFC 1123 name"))?;
        let domain_end = SCHEME.len() + domain.len();
        let namespace_end = domain_end + "/ns/".len() + namespace.len();
        let end = |at: usize| u16::try_from(at).expect("parts are bounded to 255, 63 and 253 bytes");
        Ok(Self { text: text.into(), domain_end: end(domain_end), namespace_end: end(namespace_end) })
    }

    /// The whole ID.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The whole ID, shared: keeping it costs no copy.
    #[must_use]
    pub const fn shared(&self) -> &Arc<str> {
        &self.text
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..self.domain_end.into()]
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.text[usize::from(self.domain_end) + "/ns/".len()..self.namespace_end.into()]
    }

    /// The workload.
    #[must_use]
    pub fn workload(&self) -> &str {
        &self.text[usize::from(self.namespace_end) + "/sa/".len()..]
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = SpiffeIdError;
    fn try_from(text: String) -> Result<Self, SpiffeIdError> {
        Self::parse(&text)
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.text.as_ref().to_owned()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_an_id_apart_and_puts_it_together() {
        let id = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/web").unwrap();
        assert_eq!((id.trust_domain(), id.namespace(), id.workload()), ("mesh.local", "shop", "web"));
        let again = SpiffeId::new(
            &TrustDomain::new("mesh.local").unwrap(),
            &Namespace::new("shop").unwrap(),
            &ObjectName::new("web").unwrap(),
        );
        assert_eq!(id, again);
    }

    #[test]
    fn refuses_other_shapes() {
        for bad in [
            "http://mesh/ns/a/sa/b",
            "spiffe://mesh",
            "spiffe:///ns/a/sa/b",
            "spiffe://Mesh/ns/a/sa/b",
            "spiffe://mesh/ns/a/sa/b/",
            "spiffe://mesh/ns//sa/b",
            "spiffe://mesh/ns/a/sa/b?x",
            "spiffe://mesh:1/ns/a/sa/b",
        ] {
            assert!(SpiffeId::parse(bad).is_err(), "{bad}");
        }
    }
}
