//! Names, each its own type: a namespace is not a service, an instance is not a workload.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was written.
    #[error("{what} is empty; write 1 to {max} characters")]
    Empty {
        /// Which name.
        what: &'static str,
        /// The longest it may be.
        max: usize,
    },
    /// More than the standard allows.
    #[error("{what} `{text}` has {} characters; at most {max} are allowed", text.len())]
    TooLong {
        /// Which name.
        what: &'static str,
        /// As written.
        text: String,
        /// The longest it may be.
        max: usize,
    },
    /// A character outside the allowed set, or a separator at an end.
    #[error(
        "{what} `{text}` must consist of lower-case letters, digits{extra}, and begin and end with a letter or digit"
    )]
    Characters {
        /// Which name.
        what: &'static str,
        /// As written.
        text: String,
        /// Which separators are allowed.
        extra: &'static str,
    },
}

/// RFC 1123 label (`dots` false) or subdomain (`dots` true).
fn check(what: &'static str, text: &str, max: usize, dots: bool) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty { what, max });
    }
    if text.len() > max {
        return Err(NameError::TooLong { what, text: text.to_owned(), max });
    }
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let label = |l: &str| {
        let b = l.as_bytes();
        !b.is_empty() && alnum(b[0]) && alnum(b[b.len() - 1]) && b.iter().all(|&c| alnum(c) || c == b'-')
    };
    let ok = if dots { text.split('.').all(label) } else { label(text) };
    if ok {
        return Ok(());
    }
    let extra = if dots { ", `-` and `.`" } else { " and `-`" };
    Err(NameError::Characters { what, text: text.to_owned(), extra })
}

macro_rules! name {
    ($(#[$doc:meta])* $ty:ident, $what:literal, $max:literal, dots: $dots:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $ty(Arc<str>);

        impl $ty {
            /// Checks the text.
            ///
            /// # Errors
            /// [`NameError`] says what is wrong with it.
            pub fn new(text: &str) -> Result<Self, NameError> {
                check($what, text, $max, $dots)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $ty {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(&text)
            }
        }

        impl From<$ty> for String {
            fn from(name: $ty) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A namespace: an RFC 1123 label, at most 63 characters.
    Namespace, "namespace", 63, dots: false
);
name!(
    /// The name of a user's object: an RFC 1123 subdomain, at most 253 characters.
    ObjectName, "name", 253, dots: true
);
name!(
    /// One running copy of a workload: unique in its namespace, at most 253 characters.
    InstanceId, "instance id", 253, dots: true
);

impl Default for Namespace {
    /// `default`, where Consul's flat names live too.
    fn default() -> Self {
        Self("default".into())
    }
}

/// `namespace/name`: how services, routes and every other namespaced object are told apart.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QualifiedName {
    /// The namespace.
    pub namespace: Namespace,
    /// The name in it.
    pub name: ObjectName,
}

impl QualifiedName {
    /// Checks both parts.
    ///
    /// # Errors
    /// [`NameError`] of the part that is wrong.
    pub fn new(namespace: &str, name: &str) -> Result<Self, NameError> {
        Ok(Self { namespace: Namespace::new(namespace)?, name: ObjectName::new(name)? })
    }

    /// Reads `namespace/name`; without a slash the namespace is `default`.
    ///
    /// # Errors
    /// [`NameError`] of the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((namespace, name)) => Self::new(namespace, name),
            None => Ok(Self { namespace: Namespace::default(), name: ObjectName::new(text)? }),
        }
    }
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_kubernetes_accepts() {
        for good in ["a", "a-b", "0", "reviews-v2"] {
            assert!(Namespace::new(good).is_ok(), "{good}");
        }
        assert!(ObjectName::new("api.example.com").is_ok());
    }

    #[test]
    fn refuses_and_says_why() {
        for bad in ["", "-a", "a-", "A", "a_b", "a b", "ä"] {
            assert!(Namespace::new(bad).is_err(), "{bad}");
            assert!(ObjectName::new(bad).is_err(), "{bad}");
        }
        assert!(Namespace::new("a.b").is_err(), "a label has no dots");
        assert!(ObjectName::new("a..b").is_err());
        assert!(Namespace::new(&"a".repeat(64)).is_err());
        let error = ObjectName::new("Reviews").unwrap_err().to_string();
        assert!(error.contains("`Reviews`") && error.contains("lower-case"), "{error}");
    }

    #[test]
    fn a_flat_name_is_in_the_default_namespace() {
        assert_eq!(QualifiedName::parse("web").unwrap().to_string(), "default/web");
        assert_eq!(QualifiedName::parse("shop/web").unwrap().to_string(), "shop/web");
    }
}
