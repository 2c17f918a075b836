//! The given clock, as `rustls` wants it.

use std::fmt;
use std::sync::Arc;

use meshwork_base::Clock;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// A [`Clock`] as the time source of a TLS configuration.
pub struct ClockTime(pub Arc<dyn Clock>);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.0.wall()))
    }
}

impl fmt::Debug for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClockTime")
    }
}
