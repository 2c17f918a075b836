use std::io::Write;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use super::*;

#[derive(Parser, Debug)]
#[command(name = "meshwork")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Gateway(Gateway),
    Down,
}

#[derive(Args, Debug)]
struct Gateway {
    /// Folders
    #[arg(long, required = true)]
    resources: Vec<PathBuf>,
    /// A switch
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    common: CommonArgs,
}

fn file(yaml: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(yaml.as_bytes()).unwrap();
    file
}

fn gateway(arguments: &[&str], yaml: Option<&str>) -> Result<Gateway, SettingsError> {
    let file = yaml.map(file);
    let path = file.as_ref().map(|f| f.path().to_str().unwrap().to_owned());
    let mut all = vec!["meshwork", "gateway"];
    if let Some(path) = &path {
        all.extend(["--settings", path]);
    }
    all.extend(arguments);
    let matches = parse_args(Cli::command(), all)?;
    match Cli::from_arg_matches(&matches)?.verb {
        Verb::Gateway(gateway) => Ok(gateway),
        Verb::Down => unreachable!("gateway was asked for"),
    }
}

fn refused(yaml: &str) -> String {
    gateway(&["--resources", "x"], Some(yaml)).expect_err("the file is wrong").to_string()
}

#[test]
fn without_a_file_the_defaults_hold() {
    let common = gateway(&["--resources", "x"], None).unwrap().common;
    assert_eq!(common.drain_timeout, Duration::from_secs(30));
    assert_eq!(common.access_log, AccessLogTarget::Stdout);
    assert_eq!(common.max_metric_series, meshwork_telemetry::DEFAULT_MAX_SERIES);
    assert!(common.worker_count() >= 1);
}

#[test]
fn a_file_sets_any_flag_and_a_flag_beats_it() {
    let yaml = "workers: 3\ndrain-timeout: 1m30s\nmax-metric-series: 50\nstrict: true\nresources: [a, b]\nlisten-address: ::1\nlog: 'info'\n";
    let from_file = gateway(&[], Some(yaml)).unwrap();
    assert_eq!(from_file.common.worker_count(), 3);
    assert_eq!(from_file.common.drain_timeout, Duration::from_secs(90));
    assert_eq!(from_file.common.max_metric_series, 50);
    assert_eq!(from_file.listen.listen_address, IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]));
    assert_eq!(from_file.resources, [PathBuf::from("a"), PathBuf::from("b")]);
    assert!(from_file.strict);
    let flags = gateway(&["--workers", "5", "--resources", "c"], Some(yaml)).unwrap();
    assert_eq!((flags.common.worker_count(), flags.resources), (5, vec![PathBuf::from("c")]));
}

#[test]
fn an_empty_file_or_one_of_comments_changes_nothing() {
    for yaml in ["", "\n\n", "# workers: 9\n", "---\n"] {
        let common =
            gateway(&["--resources", "x"], Some(yaml)).unwrap_or_else(|e| panic!("{yaml:?}: {e}")).common;
        assert_eq!(common.workers, None);
    }
}

#[test]
fn the_environment_beats_the_file_and_a_flag_beats_the_environment() {
    // Changing this process's environment would race with other tests: a child runs the rest.
    if std::env::var_os("MESHWORK_WORKERS").is_some() {
        let common = |flags: &[&str]| {
            gateway(&[&["--resources", "x"], flags].concat(), Some("workers: 3\nlog: warn")).unwrap().common
        };
        assert_eq!(common(&[]).worker_count(), 7);
        assert_eq!(common(&[]).log, "warn");
        assert_eq!(common(&["--workers", "9"]).worker_count(), 9);
        return;
    }
    let this = std::thread::current().name().expect("tests have names").to_owned();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &this])
        .env("MESHWORK_WORKERS", "7")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_known_ones() {
    let error = refused("# comment\nworkers: 2\nworkres: 3\n");
    assert!(error.contains(":3: `workres` is no setting of `gateway`"), "{error}");
    assert!(error.contains("drain-timeout") && error.contains("workers"), "{error}");
}

#[test]
fn a_wrong_value_is_refused_with_its_line() {
    for (yaml, line, words) in [
        ("log: info\nworkers: many\n", 2, "invalid digit"),
        ("workers: 0\n", 1, "zero"),
        ("drain-timeout: 30\n", 1, "as in 30s"),
        ("workers: [1, 2]\n", 1, "takes one value"),
        ("strict: maybe\n", 1, "true or false"),
        ("log-format: xml\n", 1, "text or json"),
    ] {
        let error = refused(yaml);
        assert!(error.contains(&format!(":{line}: `")) && error.contains(words), "{yaml:?}: {error}");
        assert!(!error.contains("--value"), "{error}");
    }
}

#[test]
fn a_key_set_twice_is_refused() {
    let error = refused("workers: 1\nworkers: 2\n");
    assert!(error.contains('2') && error.to_lowercase().contains("workers"), "{error}");
}

#[test]
fn what_is_no_mapping_is_refused() {
    for yaml in ["- workers\n", "workers\n", "workers: {a: b}\n", "a: [\n"] {
        assert!(
            matches!(gateway(&["--resources", "x"], Some(yaml)), Err(SettingsError::Syntax { .. })),
            "{yaml:?}"
        );
    }
}

#[test]
fn the_file_cannot_name_another_file() {
    assert!(refused("settings: other.yaml\n").contains("no setting"));
}

#[test]
fn a_missing_file_is_an_error() {
    let arguments = ["meshwork", "gateway", "--resources", "x", "--settings", "/nonexistent.yaml"];
    let error = parse_args(Cli::command(), arguments).expect_err("there is no such file").to_string();
    assert!(error.contains("/nonexistent.yaml"), "{error}");
}

#[test]
fn help_and_commands_without_settings_work() {
    let Err(SettingsError::Arguments(help)) = parse_args(Cli::command(), ["meshwork", "gateway", "--help"])
    else {
        panic!("help is an error of clap's")
    };
    assert_eq!(help.kind(), clap::error::ErrorKind::DisplayHelp);
    let matches = parse_args(Cli::command(), ["meshwork", "down"]).unwrap();
    assert!(matches!(Cli::from_arg_matches(&matches).unwrap().verb, Verb::Down));
}

#[test]
fn durations_are_gateway_apis() {
    for (text, millis) in
        [("0s", 0), ("30s", 30_000), ("1m30s", 90_000), ("1h", 3_600_000), ("250ms", 250), ("1s5ms", 1005)]
    {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
    }
    for text in ["", "30", "s", "1.5s", "-1s", "1d", "5s1m", "1s1s", "100000s", " 1s"] {
        assert!(parse_duration(text).is_err(), "{text:?}");
    }
}
