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
