//! Classes of bytes, as the grammars of RFC 9110 and RFC 3986 draw them.

const TOKEN: u8 = 1;
const PATH: u8 = 2;
const QUERY: u8 = 4;
const REG_NAME: u8 = 8;

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0x21;
    while byte < 0x7f {
        let b = byte as u8;
        if b.is_ascii_alphanumeric() {
            table[byte] = TOKEN | PATH | QUERY | REG_NAME;
        } else {
            // What RFC 3986 allows, and what browsers send unescaped besides: [ ] ^ ` { | }. Never what another
            // reader could take for the end of the target or for a path separator: " < > # and, in paths, \ .
            if !matches!(b, b'"' | b'<' | b'>' | b'#') {
                table[byte] |= QUERY;
                if !matches!(b, b'\\' | b'?') {
                    table[byte] |= PATH;
                }
            }
            if matches!(
                b,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            ) {
                table[byte] |= TOKEN;
            }
            // RFC 3986 allows escapes and sub-delimiters in a registered name; no host has them, and a comma there is
            // how two Host fields look after a careless merge.
            if matches!(b, b'-' | b'.' | b'_' | b'~') {
                table[byte] |= REG_NAME;
            }
        }
        byte += 1;
    }
    table
}

static CLASSES: [u8; 256] = classes();

/// `tchar`, RFC 9110 section 5.6.2.
#[inline]
pub(crate) fn is_token_byte(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & TOKEN != 0
}

/// A non-empty `token`.
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&b| is_token_byte(b))
}

#[inline]
pub(crate) fn is_path_byte(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & PATH != 0
}

#[inline]
pub(crate) fn is_query_byte(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & QUERY != 0
}

#[inline]
pub(crate) fn is_reg_name_byte(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & REG_NAME != 0
}

/// Whether every byte may stand in a field value: no controls but HTAB (RFC 9110 section 5.5). Written without an
/// early exit so that it becomes vector instructions.
#[inline]
pub(crate) fn is_field_value(bytes: &[u8]) -> bool {
    !bytes.iter().fold(false, |bad, &b| bad | ((b < 0x20) & (b != b'\t')) | (b == 0x7f))
}

/// Without the spaces and tabs at both ends (`OWS`).
#[inline]
pub(crate) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The members of a comma-separated list, trimmed; empty members are skipped, as RFC 9110 section 5.6.1.2 asks.
pub(crate) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(trim).filter(|member| !member.is_empty())
}
