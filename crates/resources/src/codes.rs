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
    /// The file is not UTF-8 text.
    NOT_TEXT = 1001;
    /// A file or document exceeds a limit of [`crate::limits`].
    LIMIT_EXCEEDED = 1002;
    /// The text is neither YAML nor JSON.
    SYNTAX = 1003;
    /// A mapping has the same key twice.
    DUPLICATE_KEY = 1004;
    /// An alias names no anchor, or an anchor contains itself.
    BAD_ALIAS = 1005;
    /// A document is no object: not a mapping with `apiVersion`, `kind` and `metadata`.
    NOT_AN_OBJECT = 1006;
    /// No such kind, or not in this `apiVersion`.
    UNKNOWN_KIND = 1007;
    /// No such field.
    UNKNOWN_FIELD = 1008;
    /// A required field is absent.
    MISSING_FIELD = 1009;
    /// A value of another type than the field's.
    WRONG_TYPE = 1010;
    /// Not one of the words that the field allows.
    UNKNOWN_VALUE = 1011;
    /// A text that does not have the form the field needs.
    INVALID_VALUE = 1012;
    /// A number, a length or a count of items outside its bounds.
    OUT_OF_RANGE = 1013;
    /// The standard knows it, Meshwork does not build it yet.
    NOT_IMPLEMENTED = 1014;
    /// Two objects of the same kind, namespace and name.
    DUPLICATE_OBJECT = 1015;
    /// Fields that exclude or require each other.
    CONFLICTING_FIELDS = 1016;
    /// Entries of a list that must differ do not.
    DUPLICATE_ENTRY = 1017;
    /// A regular expression that does not compile.
    INVALID_REGEX = 1018;
    /// A secret's certificate chain and private key cannot be used, or not together.
    INVALID_CERTIFICATE = 1019;
}
