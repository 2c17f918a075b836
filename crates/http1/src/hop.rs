//! What belongs to one connection and must not be passed on (RFC 9110 section 7.6.1).

use crate::chars::list;
use crate::fields::Fields;
use crate::name::KnownName;

/// What the removed fields said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HopByHop {
    /// The value of Upgrade, when Connection nominated it.
    pub upgrade: Option<Box<[u8]>>,
    /// Whether TE held `trailers`: the sender can take trailers.
    pub te_trailers: bool,
    /// Whether Connection held `close`.
    pub close: bool,
}

/// Removes the fields that belong to the connection: Connection itself, what it nominates, Keep-Alive,
/// Proxy-Connection, TE, Transfer-Encoding and Upgrade. Serves requests and responses.
///
/// Host and Content-Length stay even when nominated: a sender cannot make us forget where a message goes or ends.
pub fn strip_hop_by_hop(fields: &mut Fields) -> HopByHop {
    strip(fields, |_| false)
}

/// The same of a request, of which fields also go that an application may take for one that only proxies write
/// ([`KnownName::is_mistaken_for_proxies_word`]).
pub fn strip_request(fields: &mut Fields) -> HopByHop {
    strip(fields, KnownName::is_mistaken_for_proxies_word)
}

#[inline]
fn strip(fields: &mut Fields, is_unwanted: impl Fn(&[u8]) -> bool) -> HopByHop {
    let mut found = HopByHop::default();
    let mut upgrade_nominated = false;
    // Names beyond the usual ones are rare; only they cost memory.
    let mut nominated: Vec<Box<[u8]>> = Vec::new();
    for option in fields.known_all(KnownName::Connection).flat_map(list) {
        if option.eq_ignore_ascii_case(b"close") {
            found.close = true;
        } else if option.eq_ignore_ascii_case(b"upgrade") {
            upgrade_nominated = true;
        } else if !is_always_removed(KnownName::find(option)) {
            nominated.push(option.into());
        }
    }
    fields.retain(|known, name, value| {
        match known {
            Some(KnownName::Te) => {
                found.te_trailers |= list(value).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
            }
            Some(KnownName::Upgrade) if upgrade_nominated && found.upgrade.is_none() => {
                found.upgrade = Some(value.into());
            }
            Some(KnownName::Host | KnownName::ContentLength) => return true,
            None if is_unwanted(name) => return false,
            _ => {}
        }
        !is_always_removed(known) && !nominated.iter().any(|other| other.eq_ignore_ascii_case(name))
    });
    found
}

const fn is_always_removed(name: Option<KnownName>) -> bool {
    matches!(
        name,
        Some(
            KnownName::Connection
                | KnownName::KeepAlive
                | KnownName::ProxyConnection
                | KnownName::Te
                | KnownName::TransferEncoding
                | KnownName::Upgrade
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        for (name, value) in list {
            fields.push(name, value).unwrap();
        }
        fields
    }

    #[test]
    fn removes_what_belongs_to_the_connection_and_what_it_nominates() {
        let mut given = fields(&[
            ("Host", "a"),
            ("connection", "close, X-Trace , keep-alive"),
            ("Keep-Alive", "timeout=5"),
            ("x-trace", "1"),
            ("X-TRACE", "2"),
            ("TE", "gzip;q=0.5, trailers"),
            ("Transfer-Encoding", "chunked"),
            ("Proxy-Connection", "keep-alive"),
            ("Trailer", "grpc-status"),
            ("x-kept", "1"),
        ]);
        let found = strip_hop_by_hop(&mut given);
        assert_eq!(given, fields(&[("Host", "a"), ("Trailer", "grpc-status"), ("x-kept", "1")]));
        assert_eq!(found, HopByHop { upgrade: None, te_trailers: true, close: true });
    }

    #[test]
    fn what_an_application_may_take_for_a_proxy_s_word_goes_from_requests() {
        let names = [
            "X_Forwarded_Client_Cert",
            "x_forwarded-client_cert",
            "X-FORWARDED_FOR",
            "x_forwarded_proto",
            "x_envoy_attempt_count",
            "X_Envoy-Expected-Rq-Timeout-Ms",
            "x_meshwork_mirror",
            "X.Forwarded.Client.Cert",
            "x.forwarded+for",
            "X-Forwarded~Proto",
            "x!forwarded#client$cert",
        ];
        let mut given = Fields::new();
        for name in names {
            given.push(name, "forged").unwrap();
        }
        // What looks alike but is nothing that we write, and how proxies write it themselves.
        let kept = fields(&[
            ("x_forwarded", "1"),
            ("x_forwarded_for_", "1"),
            ("y_forwarded_for", "1"),
            ("x_user", "1"),
            ("x.forwarded.for.", "1"),
            ("x.forwardedfor", "1"),
            ("x1forwarded1for", "1"),
            ("x-forwarded-for", "1"),
            ("x_request_id", "1"),
            ("content_type", "1"),
        ]);
        given.append(&kept).unwrap();
        let all = given.clone();
        strip_hop_by_hop(&mut given);
        assert_eq!(given, all, "a response's are nobody's word");
        strip_request(&mut given);
        assert_eq!(given, kept);
    }

    #[test]
    fn an_upgrade_is_reported_only_when_nominated() {
        let mut asked = fields(&[("Upgrade", "websocket"), ("Connection", "Upgrade")]);
        assert_eq!(strip_hop_by_hop(&mut asked).upgrade.as_deref(), Some(&b"websocket"[..]));
        assert!(asked.is_empty());
        let mut silent = fields(&[("Upgrade", "websocket")]);
        assert_eq!(strip_hop_by_hop(&mut silent).upgrade, None);
        assert!(silent.is_empty());
    }

    #[test]
    fn host_and_length_cannot_be_nominated_away() {
        let mut given =
            fields(&[("Host", "a"), ("Content-Length", "5"), ("Connection", "host, content-length")]);
        strip_hop_by_hop(&mut given);
        assert_eq!(given, fields(&[("Host", "a"), ("Content-Length", "5")]));
    }
}
