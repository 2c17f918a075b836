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

/// Whether every byte may stand in a field value: no controls but HTAB (RFC 9110 section 5.5). Eight at a time, since most
/// values are too short for vector instructions; where there is a tab or worse, each is looked at.
#[inline]
pub(crate) fn is_field_value(bytes: &[u8]) -> bool {
    let Some(last) = bytes.last_chunk::<8>() else { return is_short_field_value(bytes) };
    // The last eight may overlap the word before: looking twice is cheaper than a remainder.
    let words = bytes.as_chunks::<8>().0.iter().chain([last]);
    let odd = words.fold(0, |odd, word| odd | controls(u64::from_le_bytes(*word)));
    odd & HIGH_BITS == 0 || is_field_value_by_bytes(bytes)
}

/// The same of fewer than eight: of four or more as one word. Kept out of the loop over fields, whose values are mostly longer.
#[inline(never)]
fn is_short_field_value(bytes: &[u8]) -> bool {
    let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) else {
        return is_field_value_by_bytes(bytes);
    };
    let both = u64::from(u32::from_le_bytes(*first)) << 32 | u64::from(u32::from_le_bytes(*last));
    controls(both) & HIGH_BITS == 0 || is_field_value_by_bytes(bytes)
}

fn is_field_value_by_bytes(bytes: &[u8]) -> bool {
    !bytes.iter().fold(false, |bad, &b| bad | ((b < 0x20) & (b != b'\t')) | (b == 0x7f))
}

const HIGH_BITS: u64 = u64::from_ne_bytes([0x80; 8]);

/// Has a byte's high bit set if one of the eight is a control character. The bits above such a byte may be set wrongly,
/// which does not matter to a yes or no.
const fn controls(word: u64) -> u64 {
    const fn below(word: u64, n: u8) -> u64 {
        word.wrapping_sub(u64::from_ne_bytes([n; 8])) & !word
    }
    below(word, 0x20) | below(word ^ u64::from_ne_bytes([0x7f; 8]), 1)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_character_is_found_wherever_it_stands_and_nothing_else_is() {
        for length in 0..=25 {
            assert!(is_field_value(&vec![b'x'; length]));
            for at in 0..length {
                for byte in 0..=u8::MAX {
                    let mut value = vec![b'x'; length];
                    value[at] = byte;
                    let may = byte == b'\t' || !byte.is_ascii_control();
                    assert_eq!(is_field_value(&value), may, "{byte} at {at} of {length}");
                }
            }
        }
    }
}
