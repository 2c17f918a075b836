//! The process log: what the program itself has to say, to stderr.
//!
//! Workers and the main thread say things while somebody waits for them, and whoever reads stderr may have stopped. So lines
//! go into a buffer which one thread empties, as `crate::lines` says.

use std::io;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use tracing::Level;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, reload};

use crate::inventory;
use crate::lines::{LAST, Lines, LinesWriter, Log, Output};
use crate::metrics::MetricsRegistry;

static LOG: Log = Log {
    name: "process log",
    thread: "process-log",
    dropped: &inventory::LOG_DROPPED,
    // Each line is to be seen at once.
    hand_over: 1,
    full: 1024 * 1024,
    age: None,
    is_the_process_log: true,
};

/// The log that was set up, for the end of the process and for panics.
static PROCESS_LOG: OnceLock<Lines> = OnceLock::new();

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
    /// The writer thread did not start.
    #[error("the process log's thread could not be started: {0}; raise the limit of threads")]
    Thread(io::Error),
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

/// Sends the process's log to stderr. Call once, in `main`, and [`flush_log`] at its end.
///
/// `filter` is a level (`info`) or directives (`info,meshwork_xds=debug`). Lines that nobody takes are dropped, and counted in
/// `metrics`.
///
/// # Errors
/// The filter does not parse, there is no thread for it, or a subscriber is already installed.
pub fn init_logging(
    format: LogFormat,
    filter: &str,
    metrics: &MetricsRegistry,
) -> Result<LogHandle, LoggingError> {
    let (filter, reload) = reload::Layer::new(parse(filter)?);
    let lines = Lines::start(&LOG, Output::Stderr, metrics).map_err(LoggingError::Thread)?;
    let registry = tracing_subscriber::registry().with(filter);
    let stderr = fmt::layer()
        .with_writer(Arc::new(Formatted(lines.writer())))
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()));
    match format {
        LogFormat::Text => registry.with(stderr.with_filter(ours())).try_init(),
        LogFormat::Json => registry.with(stderr.json().flatten_event(true).with_filter(ours())).try_init(),
    }
    .map_err(|_| LoggingError::Twice)?;
    PROCESS_LOG.set(lines).map_err(|_| LoggingError::Twice)?;
    tell_panics_in_their_place();
    Ok(LogHandle { reload: Arc::new(reload) })
}

/// `h2` warns once for each odd frame, so that whoever connects writes this log at will. What such callers do is counted, and
/// said once, when their connection ends for it.
fn ours() -> FilterFn {
    FilterFn::new(|what| *what.level() != Level::WARN || !what.target().starts_with("h2::"))
}

/// For the end of the process: returns when every line so far has been handed to the system, or after two seconds. Whether it
/// was; if not, whoever writes to stderr would wait for its reader. Where no log was set up there is nothing to wait for.
pub fn flush_log() -> bool {
    PROCESS_LOG.get().is_none_or(|lines| lines.finish(LAST))
}

/// A panic is told on stderr by the thread that has it, and may be the last that the process says: what was said before is
/// written first. Where nobody reads it is not told, but counted, since the thread would wait for ever.
fn tell_panics_in_their_place() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // The thread that writes cannot wait for itself.
        let is_the_writer = std::thread::current().name() == Some(LOG.thread);
        match PROCESS_LOG.get().filter(|_| !is_the_writer) {
            Some(lines) if !lines.written(LAST) => lines.count_dropped(),
            _ => tell(panic),
        }
    }));
}

/// Takes lines as they are formatted: each by one call.
struct Formatted(LinesWriter);

impl io::Write for &Formatted {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(|out| out.extend_from_slice(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_changes_while_running_and_a_bad_one_changes_nothing() {
        let metrics = MetricsRegistry::default();
        let handle = init_logging(LogFormat::Json, "warn", &metrics).expect("first set-up");
        assert!(!tracing::enabled!(tracing::Level::DEBUG));
        handle.set("debug").expect("a level is a filter");
        assert!(tracing::enabled!(tracing::Level::DEBUG));
        let error = handle.set("meshwork=loud").expect_err("no such level").to_string();
        assert!(error.contains("meshwork=loud"), "{error}");
        assert_eq!(handle.filter(), "debug");
        assert!(matches!(init_logging(LogFormat::Text, "info", &metrics), Err(LoggingError::Twice)));
    }

    #[test]
    fn what_strangers_make_h2_say_is_not_said() {
        #[derive(Clone, Default)]
        struct Said(Arc<parking_lot::Mutex<Vec<u8>>>);
        impl io::Write for Said {
            fn write(&mut self, line: &[u8]) -> io::Result<usize> {
                self.0.lock().extend_from_slice(line);
                Ok(line.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let said = Said::default();
        let writer = said.clone();
        let lines = fmt::layer().with_writer(move || writer.clone());
        let log = tracing_subscriber::registry().with(lines.with_filter(ours()));
        tracing::subscriber::with_default(log, || {
            tracing::warn!(target: "h2::proto::ping_pong", "of a stranger");
            tracing::error!(target: "h2::proto", "broken");
            tracing::warn!("own");
        });
        let said = String::from_utf8(said.0.lock().clone()).expect("text");
        assert!(!said.contains("stranger") && said.contains("broken") && said.contains("own"), "{said}");
    }

    #[test]
    fn unknown_formats_are_refused_with_what_would_be_right() {
        let error = "xml".parse::<LogFormat>().expect_err("not a format").to_string();
        assert!(error.contains("xml") && error.contains("text or json"), "{error}");
    }
}
