//! Moments as Kubernetes writes them (RFC 3339).

use std::fmt;

use super::node::Node;
use super::text::parsed;
use super::{Cx, Decode};

/// A moment, in whole milliseconds; its text is kept as written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    unix_ms: i64,
    text: String,
}

const FORM: &str = "a moment is written as in RFC 3339: `2026-01-31T12:00:00Z`";

impl Timestamp {
    /// Milliseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn unix_ms(&self) -> i64 {
        self.unix_ms
    }

    /// Reads RFC 3339.
    ///
    /// # Errors
    /// Says which form the text should have.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let bytes = text.as_bytes();
        let shape = bytes.len() >= 20
            && [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')].iter().all(|&(at, mark)| bytes[at] == mark)
            && matches!(bytes[10], b'T' | b't')
            && text.is_ascii();
        if !shape {
            return Err(FORM);
        }
        let (year, month, day) = (number(&text[0..4])?, number(&text[5..7])?, number(&text[8..10])?);
        let (hour, minute, second) = (number(&text[11..13])?, number(&text[14..16])?, number(&text[17..19])?);
        if !(1..=12).contains(&month)
            || !(1..=month_days(year, month)).contains(&day)
            || hour > 23
            || minute > 59
            || second > 60
        {
            return Err(FORM);
        }
        let (millis, zone) = fraction(&text[19..])?;
        let seconds =
            days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset(zone)?;
        Ok(Self { unix_ms: seconds * 1000 + millis, text: text.to_owned() })
    }
}

fn number(text: &str) -> Result<i64, &'static str> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().map_err(|_| FORM) } else { Err(FORM) }
}

/// Milliseconds of a fraction, and what follows it.
fn fraction(text: &str) -> Result<(i64, &str), &'static str> {
    let Some(rest) = text.strip_prefix('.') else { return Ok((0, text)) };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return Err(FORM);
    }
    let millis = rest[..digits]
        .bytes()
        .chain(*b"000")
        .take(3)
        .fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    Ok((millis, &rest[digits..]))
}

/// Seconds east of Greenwich.
fn offset(zone: &str) -> Result<i64, &'static str> {
    if matches!(zone, "Z" | "z") {
        return Ok(0);
    }
    let sign = match zone.as_bytes().first() {
        Some(b'+') => 1,
        Some(b'-') => -1,
        _ => return Err(FORM),
    };
    let (hours, minutes) =
        zone[1..].split_once(':').filter(|(h, m)| h.len() == 2 && m.len() == 2).ok_or(FORM)?;
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    if hours > 23 || minutes > 59 { Err(FORM) } else { Ok(sign * (hours * 3600 + minutes * 60)) }
}

const fn month_days(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 (Hinnant's `days_from_civil`).
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year - era * 400;
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl Decode for Timestamp {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, Self::parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_rfc_3339() {
        for (text, unix_ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T00:00:00.123Z", 951_782_400_123),
            ("2024-12-31T23:59:59Z", 1_735_689_599_000),
            ("2025-01-01T01:59:59+02:00", 1_735_689_599_000),
            ("2024-12-31T23:59:59.9999999Z", 1_735_689_599_999),
        ] {
            assert_eq!(Timestamp::parse(text).map(|t| t.unix_ms()), Ok(unix_ms), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_moment() {
        for text in [
            "",
            "2024-12-31",
            "2024-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-12-31T24:00:00Z",
            "2024-12-31T23:59:59",
            "2024-12-31T23:59:59.Z",
            "2024-12-31T23:59:59+2:00",
            "2024-12-31 23:59:59Z",
            "２024-12-31T23:59:59Z",
        ] {
            assert!(Timestamp::parse(text).is_err(), "{text}");
        }
    }
}
