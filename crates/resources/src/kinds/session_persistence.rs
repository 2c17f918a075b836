//! Session persistence of a rule (Gateway API, GEP-1619).

use super::traffic_policy::TOKEN;
use crate::codes;
use crate::decode::duration::LongDuration;
use crate::decode::{Cx, choice, record};
use crate::span::{Span, Spanned};

/// Header fields that say how a message is sent, or to whom (RFC 9110 sections 7.2, 7.6.1 and 8.6): each hop writes its
/// own, and a session in them would reach nobody.
const OF_A_HOP: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

record! {
    /// Callers stay with the endpoint that answered them.
    pub struct SessionPersistence {
        /// The name of the cookie or header; one that is the rule's own when absent.
        pub session_name: Option<Spanned<String>> as "sessionName" [1..=128],
        /// How long a session lasts at most; as long as the caller brings it when absent.
        pub absolute_timeout: Option<Spanned<LongDuration>> as "absoluteTimeout",
        /// How long it lasts while the caller does not use it; as long when absent.
        pub idle_timeout: Option<Spanned<LongDuration>> as "idleTimeout",
        /// How callers carry it.
        pub persistence_type: SessionPersistenceType as "type" = SessionPersistenceType::Cookie,
        /// What kind of cookie it is.
        pub cookie_config: Option<Spanned<CookieConfig>> as "cookieConfig",
    }
}

choice! {
    /// How callers carry a session.
    pub enum SessionPersistenceType {
        /// In a cookie.
        Cookie = "Cookie",
        /// In a header that they send as it was answered.
        Header = "Header",
    }
}

record! {
    /// What kind of cookie it is.
    pub struct CookieConfig {
        /// How long it lives.
        pub lifetime_type: CookieLifetimeType as "lifetimeType" = CookieLifetimeType::Session,
    }
}

choice! {
    /// How long a cookie lives.
    pub enum CookieLifetimeType {
        /// As long as `absoluteTimeout` says.
        Permanent = "Permanent",
        /// Until the browser ends.
        Session = "Session",
    }
}

impl SessionPersistence {
    /// Whether its cookie lives as long as the session.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        let lifetime = self.cookie_config.as_ref().map(|config| config.lifetime_type);
        lifetime == Some(CookieLifetimeType::Permanent)
    }

    pub(super) fn validate(&self, span: Span, cx: &mut Cx) {
        if let Some(config) = &self.cookie_config {
            if self.persistence_type != SessionPersistenceType::Cookie {
                let message = "`sessionPersistence.cookieConfig` can only be set with `type: Cookie`";
                cx.error(config.span, codes::CONFLICTING_FIELDS, message).help =
                    Some("remove it, or write `type: Cookie`".to_owned());
            }
            if self.is_permanent() && self.absolute_timeout.is_none() {
                let message = "`sessionPersistence.absoluteTimeout` must be set when the cookie's `lifetimeType` is Permanent";
                cx.error(span, codes::CONFLICTING_FIELDS, message).help =
                    Some("add `absoluteTimeout: 24h`, or write `lifetimeType: Session`".to_owned());
            }
        }
        for (name, timeout) in
            [("absoluteTimeout", &self.absolute_timeout), ("idleTimeout", &self.idle_timeout)]
        {
            let Some(timeout) = timeout.as_ref().filter(|timeout| timeout.is_zero()) else { continue };
            let message = format!("`sessionPersistence.{name}` of none ends every session at once");
            cx.error(timeout.span, codes::OUT_OF_RANGE, message).help =
                Some("leave it out for sessions without an end".to_owned());
        }
        if let Some(name) =
            self.session_name.as_ref().filter(|_| self.persistence_type == SessionPersistenceType::Header)
            && OF_A_HOP.iter().any(|of_a_hop| name.eq_ignore_ascii_case(of_a_hop))
        {
            let message = format!(
                "`sessionPersistence.sessionName` cannot be `{}`: that header says something else of a message",
                name.inner
            );
            cx.error(name.span, codes::INVALID_VALUE, message).help =
                Some("choose a name of your own, as `x-session`".to_owned());
        }
        // What a cookie is called, and a header: RFC 9110 section 5.6.2.
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if let Some(name) = self.session_name.as_ref().filter(|name| !name.bytes().all(fits)) {
            let message = "`sessionPersistence.sessionName` cannot be the name of a cookie or header";
            cx.error(name.span, codes::INVALID_VALUE, message).help = Some(TOKEN.to_owned());
        }
    }
}
