//! The codes of this crate's diagnostics and problems. Each has a page, `docs/errors/MW<number>.md`.

use meshwork_base::Code;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        $($(#[$doc])* pub const $name: Code = Code::new($number);)*

        /// Every code of this crate, for listings and for the test that each has its page.
        pub const ALL: &[Code] = &[$($name),*];
    };
}

codes! {
    /// A file or folder of resources cannot be read.
    SOURCE_UNREADABLE = 4101;
    /// No such kind of resource.
    NO_SUCH_KIND = 4102;
    /// No such object.
    NO_SUCH_OBJECT = 4103;
    /// A parameter of a request is wrong.
    BAD_PARAMETER = 4104;
    /// A revision is not in effect everywhere in time.
    NOT_EFFECTIVE = 4105;
    /// A proxy refused a resource.
    REFUSED_BY_PROXY = 4106;
    /// There is no config service to write into.
    NO_CONFIG_SERVICE = 4107;
    /// The config service cannot be reached.
    CONFIG_UNREACHABLE = 4108;
    /// Documents that would not work are not stored.
    DOCUMENTS_REFUSED = 4109;
    /// Not all sources have been read once.
    NOT_SYNCED = 4110;
    /// No such proxy is connected.
    NO_SUCH_PROXY = 4111;
    /// No request that matches came in time.
    NO_REQUEST_IN_TIME = 4112;
    /// As many probes as may be are armed.
    TOO_MANY_PROBES = 4113;
    /// No flight recorder has kept the request.
    NOT_RECORDED = 4114;
    /// The body of a request cannot be read.
    BAD_BODY = 4120;
    /// No such join token.
    NO_SUCH_TOKEN = 4121;
    /// No such deny entry.
    NO_SUCH_DENY_ENTRY = 4122;
    /// The API wants a token.
    UNAUTHORIZED = 4123;
    /// The API would listen for others than this machine without a token.
    OPEN_API = 4124;
    /// The control plane's own identity is neither given away nor denied.
    OWN_IDENTITY = 4125;
    /// The trust anchor cannot start, or cannot keep what it was told.
    TRUST_ANCHOR = 4126;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_page() {
        let pages = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors");
        for code in ALL {
            let page = std::fs::read_to_string(pages.join(format!("{code}.md"))).unwrap();
            assert!(page.starts_with(&format!("# {code}: ")), "{code}");
        }
    }
}
