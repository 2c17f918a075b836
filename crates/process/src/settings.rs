//! Settings that every process has, and where they come from: a flag, else the environment (`MESHWORK_*`), else the
//! file named by `--settings`, else the default.
//!
//! The file is YAML; its keys are the flags' names without the dashes. It is laid under clap's own parsing by making
//! its values the arguments' defaults, so that every flag of every role can stand in it without further code.

use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Args, Command};
use meshwork_telemetry::{AccessLogTarget, DEFAULT_MAX_SERIES, LogFormat};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// Where a process listens; of every process but a sidecar, which listens at its instance's own address.
#[derive(Args, Clone, Debug)]
pub struct ListenArgs {
    /// Address that this process's listeners bind to unless they name one themselves
    #[arg(long, value_name = "IP", env = "MESHWORK_LISTEN_ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub listen_address: IpAddr,
}

/// The flags of every process.
#[derive(Args, Clone, Debug)]
pub struct CommonArgs {
    /// Threads that carry traffic [default: the CPU quota rounded up, else the cores]
    #[arg(long, value_name = "N", env = "MESHWORK_WORKERS")]
    pub workers: Option<NonZeroUsize>,

    /// YAML file with any of these flags, by their names without dashes
    #[arg(long, value_name = "FILE", env = "MESHWORK_SETTINGS")]
    pub settings: Option<PathBuf>,

    /// How long what is in flight may take to finish after SIGTERM, as 30s or 1m30s
    #[arg(long, value_name = "TIME", env = "MESHWORK_DRAIN_TIMEOUT", default_value = "30s", value_parser = parse_duration)]
    pub drain_timeout: Duration,

    /// Folder that holds this process's state
    #[arg(long, value_name = "DIR", env = "MESHWORK_DATA_DIR", default_value = ".meshwork")]
    pub data_dir: PathBuf,

    /// Where the access log goes: stdout, off or a file
    #[arg(long, value_name = "TARGET", env = "MESHWORK_ACCESS_LOG", default_value = "stdout", value_parser = access_log)]
    pub access_log: AccessLogTarget,

    /// Time series of requests and connections that are exported at most; what is beyond is counted under `other`
    #[arg(long, value_name = "N", env = "MESHWORK_MAX_METRIC_SERIES", default_value_t = DEFAULT_MAX_SERIES)]
    pub max_metric_series: usize,

    /// How the process log on stderr is written: text or json
    #[arg(long, value_name = "FORMAT", env = "MESHWORK_LOG_FORMAT", default_value = "text", value_parser = log_format)]
    pub log_format: LogFormat,

    /// What the process log holds: a level, or directives as in info,meshwork_xds=debug
    #[arg(long, value_name = "FILTER", env = "MESHWORK_LOG", default_value = "info")]
    pub log: String,
}

impl CommonArgs {
    /// Threads that carry traffic: as asked for, else as fits the CPU quota.
    #[must_use]
    pub fn worker_count(&self) -> usize {
        self.workers.map_or_else(crate::cpus::default_workers, NonZeroUsize::get)
    }
}

fn access_log(text: &str) -> Result<AccessLogTarget, String> {
    if text.is_empty() {
        return Err("name a file, stdout or off".to_owned());
    }
    text.parse().map_err(|never: std::convert::Infallible| match never {})
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    text.parse().map_err(|e: meshwork_telemetry::LoggingError| e.to_string())
}

/// Reads a duration as Gateway API writes it (GEP-2257): whole numbers with `h`, `m`, `s` or `ms`, largest first.
///
/// # Errors
/// A sentence that says what would be right.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let wrong =
        || format!("`{text}` is no duration; write whole numbers with h, m, s or ms, as in 30s or 1m30s");
    let mut rest = text;
    let mut units = &UNITS[..];
    let mut millis = 0_u64;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        let number: u64 = number.parse().ok().filter(|n| *n <= 99_999).ok_or_else(wrong)?;
        let index = units.iter().position(|(name, _)| *name == unit).ok_or_else(wrong)?;
        millis += number * units[index].1;
        units = &units[index + 1..];
        rest = after;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(Duration::from_millis(millis)) }
}

/// Why the settings file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It cannot be read.
    #[error("settings file {path} cannot be read: {source}; correct --settings or MESHWORK_SETTINGS", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no YAML mapping of names to values.
    #[error("settings file {path}: {why}; write one `name: value` per flag, names without dashes in front", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser said, with the line.
        why: String,
    },
    /// A key is no flag of this command, or appears twice.
    #[error("{path}:{line}: `{key}` {why}", path = path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The key.
        key: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// The arguments themselves are wrong, or help was asked for: print it with `clap::Error::exit`.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
}

/// Parses the command line, with the environment and the settings file below it. Use with
/// `T::from_arg_matches` of a type that derives `clap::Parser` and flattens [`CommonArgs`] where it applies.
///
/// # Errors
/// The arguments or the file are wrong; `--help` is an error of clap's too.
pub fn parse_args<I, T>(command: Command, arguments: I) -> Result<ArgMatches, SettingsError>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString>,
{
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    // A first look that forgives everything only learns which subcommand it is and where the file lies. What it
    // cannot read (help, version) the real parse below answers.
    let first = command.clone().ignore_errors(true).try_get_matches_from(&arguments);
    let command = match first.ok().as_ref().and_then(settings_path) {
        Some((path, subcommands)) => under(command, &subcommands, &path)?,
        None => command,
    };
    Ok(command.try_get_matches_from(&arguments)?)
}

/// The file, and the names of the subcommands on the way to the one that was asked for.
fn settings_path(matches: &ArgMatches) -> Option<(PathBuf, Vec<String>)> {
    let mut here = matches;
    let mut names = Vec::new();
    let mut path = None;
    loop {
        if let Ok(Some(found)) = here.try_get_one::<PathBuf>("settings") {
            path = Some(found.clone());
        }
        match here.subcommand() {
            Some((name, below)) => {
                names.push(name.to_owned());
                here = below;
            }
            None => return path.map(|p| (p, names)),
        }
    }
}

/// The command with the file's values as defaults of the named subcommand's arguments.
fn under(command: Command, subcommands: &[String], path: &Path) -> Result<Command, SettingsError> {
    if let Some((name, rest)) = subcommands.split_first() {
        let mut result = Ok(());
        let command = command.mut_subcommand(name, |below| match under(below.clone(), rest, path) {
            Ok(changed) => changed,
            Err(error) => {
                result = Err(error);
                below
            }
        });
        return result.map(|()| command);
    }
    let text =
        fs::read_to_string(path).map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
    let entries: Option<Entries> = serde_saphyr::from_str(&text)
        .map_err(|e| SettingsError::Syntax { path: path.to_owned(), why: e.to_string() })?;
    let entries = entries.map_or_else(Vec::new, |e| e.0);
    let mut seen: Vec<&str> = Vec::new();
    let mut command = command;
    for (key, values) in &entries {
        let line = key.referenced.line();
        let wrong =
            |why: String| SettingsError::Key { path: path.to_owned(), line, key: key.value.clone(), why };
        if seen.contains(&key.value.as_str()) {
            return Err(wrong("is set twice; remove one".to_owned()));
        }
        seen.push(&key.value);
        let arg = flag(&command, &key.value).ok_or_else(|| wrong(unknown(&command)))?;
        check(arg, values).map_err(wrong)?;
        let id = arg.get_id().clone();
        command = command.mut_arg(id, |arg| arg.default_values(values.0.clone()).required(false));
    }
    Ok(command)
}

/// The argument whose long flag this is; help, version and the file itself cannot stand in it.
fn flag<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| arg.get_long() == Some(name) && !is_special(arg))
}

fn is_special(arg: &Arg) -> bool {
    matches!(arg.get_id().as_str(), "settings" | "help" | "version")
}

fn unknown(command: &Command) -> String {
    let mut names: Vec<&str> =
        command.get_arguments().filter(|arg| !is_special(arg)).filter_map(Arg::get_long).collect();
    names.sort_unstable();
    format!("is no setting of `{}`; known are {}", command.get_name(), names.join(", "))
}

/// Says which line is at fault before clap would complain about a flag that nobody typed.
fn check(arg: &Arg, values: &Values) -> Result<(), String> {
    let many = matches!(arg.get_action(), ArgAction::Append);
    if values.0.len() != 1 && !many {
        return Err("takes one value".to_owned());
    }
    if matches!(arg.get_action(), ArgAction::SetTrue) && !values.0.iter().all(|v| v == "true" || v == "false")
    {
        return Err("is true or false".to_owned());
    }
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return Ok(());
    }
    // A bare argument with the same parser: relations to other arguments are for the real parse.
    let bare = Arg::new("value")
        .long("value")
        .action(ArgAction::Append)
        .value_parser(arg.get_value_parser().clone());
    let given = values.0.iter().map(|value| format!("--value={value}"));
    let result = Command::new("settings").no_binary_name(true).arg(bare).try_get_matches_from(given);
    result.map(drop).map_err(|e| format!("is invalid: {}", reason(&e)))
}

/// What clap says, without the name of the stand-in argument.
fn reason(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
    first.replace(" for '--value <value>'", "")
}

/// The file's entries in order, duplicates included, each key with its line.
struct Entries(Vec<(Spanned<String>, Values)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Mapping;
        impl<'de> Visitor<'de> for Mapping {
            type Value = Entries;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a mapping of setting names to values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Mapping)
    }
}

/// One value, or a list of them, as text.
struct Values(Vec<String>);

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl<'de> Visitor<'de> for Scalar {
            type Value = Values;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text, a number, true, false or a list of them")
            }

            fn visit_bool<E>(self, v: bool) -> Result<Values, E> {
                Ok(Values(vec![v.to_string()]))
            }

            fn visit_i64<E>(self, v: i64) -> Result<Values, E> {
                Ok(Values(vec![v.to_string()]))
            }

            fn visit_u64<E>(self, v: u64) -> Result<Values, E> {
                Ok(Values(vec![v.to_string()]))
            }

            fn visit_f64<E>(self, v: f64) -> Result<Values, E> {
                Ok(Values(vec![v.to_string()]))
            }

            fn visit_str<E>(self, v: &str) -> Result<Values, E> {
                Ok(Values(vec![v.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Values, A::Error> {
                let mut all = Vec::new();
                while let Some(Values(one)) = seq.next_element()? {
                    all.extend(one);
                }
                Ok(Values(all))
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}

#[cfg(test)]
mod tests;
