//! Why a message is refused.

use crate::limits::Limit;

/// A field that may not be added to a list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The name is no token.
    #[error("`{0}` is no field name: write letters, digits and !#$%&'*+-.^_`|~ only")]
    Name(String),
    /// The value holds a control character.
    #[error("the value of field `{0}` holds a control character (CR, LF, NUL, …); remove it")]
    Value(String),
    /// The list would exceed what its 32-bit offsets (16-bit for names) can address.
    #[error("field `{0}` does not fit: a name may have 64 KiB, a whole list 4 GiB")]
    TooLarge(String),
}

macro_rules! parse_errors {
    ($($(#[$doc:meta])* $variant:ident = $status:literal, $cause:literal, $text:literal;)*) => {
        /// Why a message is refused. After any of them the connection must close: where the message ends is unknown.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
        pub enum ParseError {
            $($(#[$doc])* #[error($text)] $variant,)*
            /// A bound of [`crate::Limits`] was exceeded.
            #[error("the {limit} is over the limit of {max} (setting {})", limit.setting())]
            OverLimit {
                /// Which bound.
                limit: Limit,
                /// Its value.
                max: u32,
            },
        }

        impl ParseError {
            /// Every refusal that is no limit, for tables and tests.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// A stable name for logs and metrics.
            #[must_use]
            pub const fn cause(self) -> &'static str {
                match self {
                    $(Self::$variant => $cause,)*
                    Self::OverLimit { limit, .. } => match limit {
                        Limit::RequestLine => "request_line_too_long",
                        Limit::HeaderLine => "header_line_too_long",
                        Limit::HeaderCount => "too_many_headers",
                        Limit::HeaderBytes => "headers_too_large",
                        Limit::ChunkExt => "chunk_extensions_too_large",
                        Limit::TrailerBytes => "trailers_too_large",
                    },
                }
            }

            /// The name, and what is to be done, as a record of a refused request has it.
            #[must_use]
            pub fn told(self) -> String {
                format!("{}: {self}", self.cause())
            }

            /// The status that a *request* with this fault is answered with; a *response* with it becomes a 502.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self {
                    $(Self::$variant => $status,)*
                    Self::OverLimit { limit, .. } => match limit {
                        Limit::RequestLine => 414,
                        Limit::HeaderLine | Limit::HeaderCount | Limit::HeaderBytes | Limit::TrailerBytes => 431,
                        Limit::ChunkExt => 400,
                    },
                }
            }
        }
    };
}

parse_errors! {
    /// LF without CR before it, at the end of a line (RFC 9112 section 2.2).
    BareLf = 400, "bare_lf", "a line ends with LF alone; end it with CR LF";
    /// CR without LF after it (RFC 9112 section 2.2).
    BareCr = 400, "bare_cr", "a CR is not followed by LF; remove it";
    /// A line that begins with a space or tab (RFC 9112 sections 2.2 and 5.2).
    ObsFold = 400, "obs_fold", "a field line is folded over two lines; write it on one";
    /// A space or tab between name and colon (RFC 9112 section 5.1).
    SpaceBeforeColon = 400, "space_before_colon", "there is white space between a field name and its colon; remove it";
    /// A field line without a colon.
    MissingColon = 400, "missing_colon", "a field line has no colon";
    /// A field name that is no token.
    BadFieldName = 400, "bad_field_name", "a field name is empty or holds a character that no token may hold";
    /// NUL or another control character in a field value (RFC 9110 section 5.5).
    BadFieldValue = 400, "bad_field_value", "a field value holds a control character";
    /// The request line is not `method SP target SP version`.
    BadRequestLine = 400, "bad_request_line", "the request line is not: method, space, target, space, version";
    /// More than one empty line, or half of one, before a request (RFC 9112 section 2.2).
    EmptyLines = 400, "empty_lines", "more than one empty line precedes the request";
    /// The method is no token.
    BadMethod = 400, "bad_method", "the method holds a character that no token may hold";
    /// A target that is in none of the four forms or holds a forbidden character (RFC 9112 section 3.2).
    BadTarget = 400, "bad_target", "the request target is malformed; escape what RFC 3986 does not allow";
    /// A target form that the method does not allow, as `*` with GET.
    TargetForm = 400, "target_form", "this form of request target does not go with the method";
    /// The version is not `HTTP/digit.digit`.
    BadVersion = 400, "bad_version", "the version is not HTTP/ digit . digit";
    /// A major version that is not 1.
    UnsupportedVersion = 505, "unsupported_version", "only HTTP/1 is spoken in this form: 1.0, 1.1, and 1.2 to 1.9 as 1.1";
    /// No Host in an HTTP/1.1 request (RFC 9112 section 3.2).
    MissingHost = 400, "missing_host", "an HTTP/1.1 request needs a Host field";
    /// More than one Host field line.
    RepeatedHost = 400, "repeated_host", "the request has more than one Host field";
    /// A Host value, or an authority, that is no `host[:port]`.
    BadHost = 400, "bad_host", "the host is not: name or address, optionally a colon and a port";
    /// Host and the authority of the target differ.
    HostMismatch = 400, "host_mismatch", "Host and the authority of the request target differ; send the same";
    /// Content-Length together with Transfer-Encoding (RFC 9112 section 6.3).
    ConflictingLength = 400, "conflicting_length", "both Content-Length and Transfer-Encoding are given; send one";
    /// Content-Length more than once, or a list.
    RepeatedLength = 400, "repeated_length", "Content-Length is given more than once; send it once";
    /// Content-Length that is not 1 to 32 decimal digits, or 10^18 and over.
    BadLength = 400, "bad_length", "Content-Length is no plain decimal number below 10^18 in at most 32 digits";
    /// A transfer coding other than `chunked` (RFC 9112 section 6.1).
    UnknownCoding = 501, "unknown_coding", "only the transfer coding `chunked` is spoken";
    /// `chunked` more than once, or several Transfer-Encoding fields.
    RepeatedCoding = 400, "repeated_coding", "a transfer coding is given more than once; send `chunked` once";
    /// Transfer-Encoding in an HTTP/1.0 message (RFC 9112 section 6.1).
    CodingInHttp10 = 400, "coding_in_http10", "an HTTP/1.0 message may not have Transfer-Encoding";
    /// Transfer-Encoding where none may be: 1xx and 204 responses (RFC 9112 section 6.1).
    CodingNotAllowed = 400, "coding_not_allowed", "a 1xx or 204 response may not have Transfer-Encoding";
    /// A WebSocket handshake that has a body: to one reader that is content, to another the tunnel's first bytes.
    HandshakeWithContent = 400, "handshake_with_content", "a WebSocket handshake has no content; leave its body out";
    /// A WebSocket handshake that has more than one key (RFC 6455 section 11.3.1).
    RepeatedKey = 400, "repeated_key", "Sec-WebSocket-Key is given more than once; send it once";
    /// The status line is not `version SP three digits SP reason`.
    BadStatusLine = 400, "bad_status_line", "the status line is not: version, space, three digits, space, reason";
    /// A chunk size that is not 1 to 32 hexadecimal digits, or 2^60 and over.
    BadChunkSize = 400, "bad_chunk_size", "a chunk size is no plain hexadecimal number below 2^60 in at most 32 digits";
    /// A chunk extension that is not `;name[=value]` (RFC 9112 section 7.1.1).
    BadChunkExt = 400, "bad_chunk_extension", "a chunk extension is not: ; name, optionally = and a value";
    /// Chunk data not followed by CR LF.
    BadChunkEnd = 400, "bad_chunk_end", "the data of a chunk is not followed by CR LF";
    /// A trailer field that would change framing or routing (RFC 9110 section 6.5.1).
    ForbiddenTrailer = 400, "forbidden_trailer", "a field that frames or routes the message may not be a trailer";
    /// The connection ended inside a message.
    PrematureEof = 400, "premature_eof", "the connection ended before the message did";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_distinct_snake_case() {
        let mut causes: Vec<_> = ParseError::ALL.iter().map(|e| e.cause()).collect();
        assert!(
            causes
                .iter()
                .all(|c| c.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        );
        causes.sort_unstable();
        causes.dedup();
        assert_eq!(causes.len(), ParseError::ALL.len());
    }

    #[test]
    fn a_limit_names_its_setting() {
        let text = ParseError::OverLimit { limit: Limit::HeaderCount, max: 100 }.to_string();
        assert!(text.contains("100") && text.contains("--max-header-count"), "{text}");
    }
}
