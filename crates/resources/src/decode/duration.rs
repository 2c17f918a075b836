//! Durations as Gateway API writes them (GEP-2257): `1h30m`, `500ms`.

use std::fmt;
use std::time::Duration;

use super::node::Node;
use super::text::parsed;
use super::{Cx, Decode};

/// A duration of GEP-2257: up to four pairs of a number of at most five digits and `h`, `m`, `s` or `ms`. One that a
/// resource says is at most 49 days long, since it travels as a count of milliseconds in 32 bits: see
/// [`LongDuration`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayDuration(Duration);

/// A duration where more than 49 days have a meaning: a cookie may live for years, and what Gateway API itself
/// allows is not refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LongDuration(GatewayDuration);

const LONGEST: Duration = Duration::from_secs(49 * 24 * 3600);
const TOO_LONG: &str = "a duration is at most 49 days (`1176h`)";
const FORM: &str = "a duration is one to four of a number (at most 5 digits) with `h`, `m`, `s` or `ms`: `10s`, `1m30s`, `250ms`";

impl GatewayDuration {
    /// Reads its text.
    ///
    /// # Errors
    /// Says which form the text should have.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut rest = text;
        let mut total = Duration::ZERO;
        for _ in 0..4 {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if !(1..=5).contains(&digits) {
                return Err(FORM);
            }
            let number: u64 = rest[..digits].parse().map_err(|_| FORM)?;
            let unit_len = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
            let unit = &rest[digits..digits + unit_len];
            total += match unit {
                "h" => Duration::from_secs(number * 3600),
                "m" => Duration::from_secs(number * 60),
                "s" => Duration::from_secs(number),
                "ms" => Duration::from_millis(number),
                _ => return Err(FORM),
            };
            rest = &rest[digits + unit_len..];
            if rest.is_empty() {
                return Ok(Self(total));
            }
        }
        Err(FORM)
    }

    fn bounded(text: &str) -> Result<Self, &'static str> {
        Self::parse(text).and_then(|parsed| if parsed.0 > LONGEST { Err(TOO_LONG) } else { Ok(parsed) })
    }

    /// The time itself.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }

    /// Zero, which switches a timeout off.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl fmt::Display for GatewayDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str("0s");
        }
        let (seconds, millis) = (self.0.as_secs(), self.0.subsec_millis());
        for (number, unit) in
            [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s"), (millis.into(), "ms")]
        {
            if number > 0 {
                write!(f, "{number}{unit}")?;
            }
        }
        Ok(())
    }
}

impl serde::Serialize for GatewayDuration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Decode for GatewayDuration {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, Self::bounded)
    }
}

impl From<LongDuration> for GatewayDuration {
    fn from(long: LongDuration) -> Self {
        long.0
    }
}

impl LongDuration {
    /// The time itself.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0.get()
    }

    /// Zero, which switches a timeout off.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl fmt::Display for LongDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl serde::Serialize for LongDuration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl Decode for LongDuration {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| GatewayDuration::parse(text).map(Self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_gep_2257_allows() {
        for (text, millis) in [
            ("0s", 0),
            ("10s", 10_000),
            ("1h", 3_600_000),
            ("1m30s", 90_000),
            ("1s500ms", 1500),
            ("99999ms", 99_999),
            ("1s1s", 2000),
            ("500ms1h", 3_600_500),
        ] {
            assert_eq!(GatewayDuration::parse(text).map(|d| d.get().as_millis()), Ok(millis), "{text}");
        }
    }

    #[test]
    fn refuses_what_gep_2257_forbids() {
        for text in [
            "",
            "1",
            "s",
            "1.5s",
            "-1s",
            "+1s",
            " 1s",
            "1 s",
            "100000s",
            "1d",
            "1us",
            "1h1m1s1ms1h",
            "1S",
            "1sm",
            "١s",
        ] {
            assert!(GatewayDuration::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_not_cut() {
        for text in ["1176h", "1175h59m60s", "0s"] {
            assert_eq!(GatewayDuration::bounded(text), GatewayDuration::parse(text), "{text}");
        }
        for text in ["1176h1ms", "2000h", "99999h"] {
            assert_eq!(GatewayDuration::bounded(text), Err(TOO_LONG), "{text}");
        }
        assert!(u32::try_from(LONGEST.as_millis()).is_ok());
    }

    #[test]
    fn prints_what_it_reads() {
        for text in ["0s", "10s", "1h30m", "1s500ms", "2h3m4s5ms"] {
            assert_eq!(GatewayDuration::parse(text).unwrap().to_string(), text);
        }
    }
}
