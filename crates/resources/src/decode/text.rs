//! Texts of a certain form, each its own type.

use std::fmt;

use meshwork_base::{Namespace, ObjectName, SpiffeId};

use super::fields::shorten;
use super::node::{Node, Value};
use super::scalars::no_text;
use super::{Cx, Decode};
use crate::codes;

macro_rules! text_types {
    ($($(#[$meta:meta])* $name:ident = $check:expr;)*) => {$(
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Checks a text.
            ///
            /// # Errors
            /// Says which form the text should have.
            pub fn new(text: &str) -> Result<Self, String> {
                let check: fn(&str) -> Result<(), &'static str> = $check;
                check(text).map(|()| Self(text.into())).map_err(str::to_owned)
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::ops::Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                &*self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                &*self.0 == *other
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl $crate::decode::Decode for $name {
            fn decode(node: &$crate::decode::Node, cx: &mut $crate::decode::Cx) -> Option<Self> {
                $crate::decode::text::parsed(node, cx, Self::new)
            }
        }
    )*};
}
pub(crate) use text_types;

text_types! {
    /// A host name, its first label perhaps `*`: `shop.example.com`, `*.example.com`. In lower case.
    Hostname = |text| check_hostname(text, true);
    /// A host name without a wildcard, in lower case.
    PreciseHostname = |text| check_hostname(text, false);
    /// The name of a listener, a rule or a port.
    SectionName = |text| {
        let ok = (1..=253).contains(&text.len()) && is_subdomain(text);
        check(ok, "a section name has 1 to 253 lower-case letters, digits, `-` and `.`, and begins and ends with a letter or digit")
    };
    /// An API group; empty for Kubernetes' core.
    Group = |text| {
        check(text.is_empty() || (text.len() <= 253 && is_subdomain(text)), "an API group is a DNS name in lower case, or empty (`\"\"`) for the core group")
    };
    /// A kind that a reference names; it need not be one that Meshwork knows.
    KindRef = |text| {
        let mut bytes = text.bytes();
        let ok = (1..=63).contains(&text.len())
            && bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !text.ends_with('-');
        check(ok, "a kind has 1 to 63 letters, digits and `-`, and begins with a letter")
    };
    /// The name of a header field or query parameter: 1 to 256 token characters (RFC 9110, section 5.6.2).
    HeaderName = |text| {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        check((1..=256).contains(&text.len()) && text.bytes().all(token), "a name here has 1 to 256 letters, digits and ``!#$%&'*+-.^_`|~``, no spaces and no colon")
    };
    /// The value of a header field: 1 to 4096 characters without line breaks or other control characters.
    HeaderValue = |text| {
        let ok = (1..=4096).contains(&text.chars().count()) && !text.chars().any(|c| c.is_control() && c != '\t');
        check(ok, "a header's value has 1 to 4096 characters, none of them a control character")
    };
    /// A range of addresses (CIDR), or one address: `10.0.0.0/8`, `2001:db8::/32`, `127.0.0.1`.
    AddressRange = |text| {
        let ok = text.parse::<std::net::IpAddr>().is_ok()
            || text.parse::<ipnet::IpNet>().is_ok_and(|range| range.addr() == range.network());
        check(ok, "a range of addresses is an address, or ADDRESS/LENGTH without bits beyond LENGTH, as `10.0.0.0/8`")
    };
    /// Which controller runs a class of gateways: `DOMAIN/PATH`.
    ControllerName = |text| {
        let ok = text.len() <= 253 && text.split_once('/').is_some_and(|(domain, path)| {
            is_subdomain(domain)
                && !path.is_empty()
                && path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b))
        });
        check(ok, "a controller's name is DOMAIN/PATH, for example `meshwork.dev/gateway`")
    };
}

fn check(ok: bool, otherwise: &'static str) -> Result<(), &'static str> {
    if ok { Ok(()) } else { Err(otherwise) }
}

/// One RFC 1123 label in lower case.
pub(crate) fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    !text.is_empty()
        && text.bytes().all(|b| inner(b) || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Labels with dots between.
pub(crate) fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn check_hostname(text: &str, wildcard: bool) -> Result<(), &'static str> {
    if text == "*" {
        return Err("to mean every host, leave it out");
    }
    if text.parse::<std::net::IpAddr>().is_ok() || text.contains(':') {
        return Err("a host name is neither an IP address nor has a port");
    }
    let name = text.strip_prefix("*.").filter(|_| wildcard).unwrap_or(text);
    if (1..=253).contains(&text.len()) && is_subdomain(name) {
        return Ok(());
    }
    Err(if wildcard {
        "a host name is in lower case, as `shop.example.com`; only its first label may be `*`"
    } else {
        "a host name here is in lower case, as `shop.example.com`, without `*`"
    })
}

/// Reads a text by a function that says what is wrong with it.
pub(crate) fn parsed<T, E: fmt::Display>(
    node: &Node,
    cx: &mut Cx,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Option<T> {
    let Value::Text(text) = &node.value else {
        // Quotes alone would not make a duration of `10`.
        let written = node.to_json().to_string();
        let advice =
            parse(&written).err().map_or_else(|| "put it in quotes".to_owned(), |error| error.to_string());
        return no_text(node, cx, &advice);
    };
    match parse(text) {
        Ok(value) => Some(value),
        Err(error) => {
            let message = format!("`{}` cannot be `{}`", cx.path(), shorten(text));
            cx.error(node.span, codes::INVALID_VALUE, message).help = Some(error.to_string());
            None
        }
    }
}

impl Decode for ObjectName {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, Self::new)
    }
}

impl Decode for Namespace {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, Self::new)
    }
}

impl Decode for SpiffeId {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, Self::parse)
    }
}
