//! The time of day as HTTP writes it (RFC 9110 section 5.6.7), made once in a second.

use std::cell::RefCell;
use std::time::{Duration, UNIX_EPOCH};

/// The last second that was asked for, and its text.
#[derive(Debug, Default)]
pub(crate) struct DateText(RefCell<Option<(u64, String)>>);

impl DateText {
    /// `wall`: the time since 1970.
    pub(crate) fn with<T>(&self, wall: Duration, take: impl FnOnce(&str) -> T) -> T {
        let mut known = self.0.borrow_mut();
        let second = wall.as_secs();
        match &*known {
            Some((of, text)) if *of == second => take(text),
            _ => {
                let (_, text) = known.insert((second, httpdate::fmt_http_date(UNIX_EPOCH + wall)));
                take(text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_its_own() {
        let date = DateText::default();
        let told = |millis: u64| date.with(Duration::from_millis(millis), str::to_owned);
        assert_eq!(told(784_111_777_000), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(told(784_111_777_999), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(told(784_111_778_000), "Sun, 06 Nov 1994 08:49:38 GMT");
        assert_eq!(told(784_111_777_000), "Sun, 06 Nov 1994 08:49:37 GMT", "a clock that is set back");
    }
}
