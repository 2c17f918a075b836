//! The codes of this crate's diagnostics. Each has a page, `docs/errors/MW<number>.md`.

use meshwork_base::Code;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        $($(#[$doc])* pub const $name: Code = Code::new($number);)*

        /// Every code of this crate, for listings and for the test that each has its page.
        pub const ALL: &[Code] = &[$($name),*];
    };
}

codes! {
    /// A route's parent, or a section or port of it, is not there.
    PARENT_NOT_FOUND = 2001;
    /// No listener of the gateway admits the route's namespace or kind.
    NOT_ALLOWED_BY_LISTENERS = 2002;
    /// The route's hostnames and the listener's have none in common.
    NO_MATCHING_HOSTNAME = 2003;
    /// A backend, or its port, is not there.
    BACKEND_NOT_FOUND = 2004;
    /// A reference to a kind that cannot be meant there.
    INVALID_KIND = 2005;
    /// A reference into another namespace that no `ReferenceGrant` permits.
    REF_NOT_PERMITTED = 2006;
    /// A backend speaks a protocol that the route cannot send to.
    UNSUPPORTED_BACKEND_PROTOCOL = 2007;
    /// Two listeners that cannot be told apart.
    LISTENER_CONFLICT = 2008;
    /// A listener's certificate is absent or unusable.
    INVALID_CERTIFICATE = 2009;
    /// A listener names a kind of route that it cannot take.
    INVALID_ROUTE_KIND = 2010;
    /// A listener's protocol is not built.
    UNSUPPORTED_PROTOCOL = 2011;
    /// A gateway names a class that is not there.
    UNKNOWN_CLASS = 2012;
    /// A gateway asks for an address that cannot be had.
    UNSUPPORTED_ADDRESS = 2013;
    /// A match that no request can reach, because an older or earlier one takes them all.
    SHADOWED_MATCH = 2014;
    /// An `EndpointSlice` belongs to no service, or serves a port that its service does not have.
    UNBOUND_ENDPOINTS = 2015;
    /// A policy's target is not there.
    TARGET_NOT_FOUND = 2016;
    /// Two policies say the same thing of one target.
    POLICY_CONFLICT = 2017;
    /// The folder and the registry define the same service.
    SERVICE_DEFINED_TWICE = 2018;
    /// TLS listeners of one port whose hostnames overlap.
    OVERLAPPING_TLS = 2019;
    /// The mesh cannot attach a route to this service.
    SERVICE_NOT_ATTACHABLE = 2020;
    /// Another layer-4 route has the listener, or the server name of it.
    LISTENER_TAKEN = 2021;
    /// A service to which no PROXY header can be sent.
    PROXY_PROTOCOL_UNFIT = 2022;
    /// A part of a policy that does nothing at its target.
    PART_WITHOUT_EFFECT = 2023;
    /// Two policies that are each good do not fit together.
    POLICIES_DISAGREE = 2024;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_page_with_what_why_example_and_mend() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors");
        for code in ALL {
            let page = std::fs::read_to_string(folder.join(format!("{code}.md"))).unwrap_or_default();
            assert!(
                page.starts_with(&format!("# {code}: ")),
                "docs/errors/{code}.md is absent or has no title"
            );
            for part in ["## Why", "## Example", "## How to mend it"] {
                assert!(page.contains(part), "docs/errors/{code}.md lacks `{part}`");
            }
        }
    }
}
