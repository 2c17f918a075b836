//! W3C Trace Context, level 1: what `traceparent` says.

use std::fmt;

use meshwork_base::Rng;

use crate::hex;
use crate::record::TraceId;

/// Bytes of a `traceparent` of version 00.
const LENGTH: usize = 55;
/// The one flag that version 00 knows.
const SAMPLED: u8 = 1;

/// The id of a span (8 bytes, not all zero).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

impl SpanId {
    /// A new one.
    pub fn random(rng: &mut impl Rng) -> Self {
        loop {
            if let Some(id) = Self::from_bytes(rng.next_u64().to_be_bytes()) {
                return id;
            }
        }
    }

    /// The id of these bytes; all zero is no id (W3C Trace Context, section 3.2.2.4).
    #[must_use]
    pub fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        (bytes != [0; 8]).then_some(Self(bytes))
    }

    /// The id's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for SpanId {
    /// 16 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = [0; 16];
        hex::write(&mut out, &self.0);
        f.write_str(std::str::from_utf8(&out).expect("hexadecimal digits are ASCII"))
    }
}

/// A place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span that is the parent of what follows.
    pub span_id: SpanId,
    /// Whether the caller may have recorded it.
    pub sampled: bool,
}

impl TraceContext {
    /// Reads a `traceparent` (section 3.2). Of a later version the fields that version 00 has are read (section 4).
    /// `None`: it is none, and whoever takes part begins a trace of its own.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (head, rest) = text.split_at_checked(LENGTH)?;
        let [version] = hex::read(&head[..2])?;
        let fits = rest.is_empty() || version > 0 && rest[0] == b'-';
        let dashes = [2, 35, 52].iter().all(|&at| head[at] == b'-');
        if version == 0xff || !fits || !dashes {
            return None;
        }
        let [flags] = hex::read(&head[53..])?;
        Some(Self {
            trace_id: TraceId::parse(&head[3..35])?,
            span_id: hex::read(&head[36..52]).and_then(SpanId::from_bytes)?,
            sampled: flags & SAMPLED != 0,
        })
    }

    /// The beginning of a trace; it is not sampled yet.
    pub fn begin(rng: &mut impl Rng) -> Self {
        loop {
            let bytes = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
            if let Some(trace_id) = TraceId::from_bytes(bytes.to_be_bytes()) {
                return Self { trace_id, span_id: SpanId::random(rng), sampled: false };
            }
        }
    }

    /// As `traceparent`, in version 00: of the flags only the one that this version knows.
    #[must_use]
    pub fn traceparent(&self) -> [u8; LENGTH] {
        let mut text = [b'-'; LENGTH];
        hex::write(&mut text[..2], &[0]);
        hex::write(&mut text[3..35], self.trace_id.as_bytes());
        hex::write(&mut text[36..52], &self.span_id.0);
        hex::write(&mut text[53..], &[u8::from(self.sampled)]);
        text
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.traceparent()).expect("digits and dashes are ASCII"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use meshwork_base::SeededRng;
    use proptest::prelude::*;

    const OWN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_comes_back_with_the_flag_that_is_known() {
        let read = TraceContext::parse(OWN.as_bytes()).unwrap();
        assert_eq!((read.to_string().as_str(), read.sampled), (OWN, true));
        for (flags, known) in [("-00", "-00"), ("-fe", "-00"), ("-ff", "-01"), ("-03", "-01")] {
            let text = OWN.replace("-01", flags);
            let read = TraceContext::parse(text.as_bytes()).unwrap();
            assert_eq!(read.to_string(), OWN.replace("-01", known), "{text}");
        }
    }

    #[test]
    fn of_a_later_version_is_read_what_is_known() {
        let later = OWN.replacen("00", "cc", 1);
        for text in [&later, &format!("{later}-"), &format!("{later}-what-the-future-will-be-like")] {
            assert_eq!(TraceContext::parse(text.as_bytes()).unwrap().to_string(), OWN, "{text}");
        }
        assert_eq!(TraceContext::parse(format!("{later}.what").as_bytes()), None);
    }

    #[test]
    fn what_is_no_traceparent_is_not_read_as_one() {
        for bad in [
            String::new(),
            "00".to_owned(),
            OWN[..54].to_owned(),
            format!("{OWN}-"),
            format!("{OWN}-more"),
            format!("{OWN} "),
            format!(" {OWN}"),
            OWN.replacen("00", "ff", 1),
            OWN.replacen("00", "0", 1),
            OWN.replacen("00", "0x", 1),
            OWN.replacen("00", "CC", 1),
            OWN.to_uppercase(),
            OWN.replace("00f067aa0ba902b7", "0000000000000000"),
            OWN.replace("00f067aa0ba902b7", "00f067aa0ba902b"),
            OWN.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            OWN.replace("4bf92f3577b34da6", ".bf92f3577b34da6"),
            OWN.replace("-01", "-0g"),
            OWN.replace("-01", "-1"),
            OWN.replace('-', "_"),
        ] {
            assert_eq!(TraceContext::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_we_begin_is_read_back(seed in any::<u64>(), sampled in any::<bool>()) {
            let begun = TraceContext { sampled, ..TraceContext::begin(&mut SeededRng::new(seed)) };
            prop_assert_eq!(TraceContext::parse(&begun.traceparent()), Some(begun));
        }

        #[test]
        fn what_is_read_is_what_stands_there(text in "[0-9a-fA-F]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-fA-F]{2}(-.{0,9})?") {
            if let Some(read) = TraceContext::parse(text.as_bytes()) {
                prop_assert_eq!(&read.to_string()[2..52], &text[2..52]);
                prop_assert!(text[..2] != *"ff" && (text.len() == 55 || text[..2] != *"00"));
            }
        }

        #[test]
        fn no_bytes_end_it(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = TraceContext::parse(&bytes);
        }
    }
}
