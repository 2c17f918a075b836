//! The process log: what the program itself has to say, to stderr.

use std::str::FromStr;
use std::sync::Arc;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = LoggingError;

    fn from_str(text: &str) -> Result<Self, LoggingError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(LoggingError::Format { text: text.to_owned() }),
        }
    }
}

/// Why the log cannot be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// No such format.
    #[error("log format `{text}` is unknown; write text or json")]
    Format {
        /// As written.
        text: String,
    },
    /// The filter does not parse.
    #[error(
        "log filter `{text}` is invalid: {why}; write a level (error, warn, info, debug, trace) or module=level pairs separated by commas"
    )]
    Filter {
        /// As written.
        text: String,
        /// What the parser said.
        why: String,
    },
    /// Another subscriber is installed.
    #[error("the process log is set up twice; call init_logging once, in main")]
    Twice,
}

/// Changes the filter of the running process's log. Cheap to clone.
#[derive(Clone)]
pub struct LogHandle {
    reload: Arc<reload::Handle<EnvFilter, Registry>>,
}

impl std::fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LogHandle").field(&self.filter()).finish()
    }
}

impl LogHandle {
    /// Replaces the filter at once.
    ///
    /// # Errors
    /// [`LoggingError::Filter`] when it does not parse; the old one stays.
    pub fn set(&self, filter: &str) -> Result<(), LoggingError> {
        let parsed = parse(filter)?;
        // The only failure is that the subscriber is gone, and then nobody is listening.
        drop(self.reload.reload(parsed));
        Ok(())
    }

    /// The filter in effect.
    #[must_use]
    pub fn filter(&self) -> String {
        self.reload.with_current(ToString::to_string).unwrap_or_default()
    }
}

fn parse(filter: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|e| LoggingError::Filter { text: filter.to_owned(), why: e.to_string() })
}

/// Sends the process's log to stderr. Call once, in `main`.
///
/// `filter` is a level (`info`) or directives (`info,meshwork_xds=debug`).
///
/// # Errors
/// The filter does not parse, or a subscriber is already installed.
pub fn init_logging(format: LogFormat, filter: &str) -> Result<LogHandle, LoggingError> {
    let (filter, reload) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    let stderr = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match format {
        LogFormat::Text => registry.with(stderr).try_init(),
        LogFormat::Json => registry.with(stderr.json().flatten_event(true)).try_init(),
    }
    .map_err(|_| LoggingError::Twice)?;
    Ok(LogHandle { reload: Arc::new(reload) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_changes_while_running_and_a_bad_one_changes_nothing() {
        let handle = init_logging(LogFormat::Json, "warn").expect("first set-up");
        assert!(!tracing::enabled!(tracing::Level::DEBUG));
        handle.set("debug").expect("a level is a filter");
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        let error = handle.set("meshwork=loud").expect_err("no such level").to_string();
        assert!(error.contains("meshwork=loud"), "{error}");
        assert_eq!(handle.filter(), "debug");
        assert!(matches!(init_logging(LogFormat::Text, "info"), Err(LoggingError::Twice)));
    }

    #[test]
    fn unknown_formats_are_refused_with_what_would_be_right() {
        let error = "xml".parse::<LogFormat>().expect_err("not a format").to_string();
        assert!(error.contains("xml") && error.contains("text or json"), "{error}");
    }
}
