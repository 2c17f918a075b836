//! The `meshwork` binary: arguments in, output out. What it does lives in the roles and crates below.
//!
//! Exit codes: 0 done, 1 failed, 2 used wrongly.

mod commands;
mod output;
mod private;
mod server;
mod token;
mod up;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};
use meshwork_process::{SettingsError, gives_memory_back, parse_args};
use meshwork_telemetry::flush_log;

/// The allocator keeps freed blocks per thread, which is what workers want.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[expect(
    unsafe_code,
    reason = "one function of the allocator's, without pointers, which its crate does not name"
)]
unsafe extern "C" {
    /// mimalloc's own: gives back what the calling thread has freed; with `force` at once.
    safe fn mi_collect(force: bool);
}

/// A service mesh and API gateway in one binary
#[derive(Parser, Debug)]
#[command(name = "meshwork", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    let arguments = match parse_args(Arguments::command(), std::env::args_os()) {
        Ok(matches) => Arguments::from_arg_matches(&matches).map_err(SettingsError::from),
        Err(error) => Err(error),
    };
    let arguments = match arguments {
        Ok(arguments) => arguments,
        // Prints help to stdout and errors to stderr, and ends with 0 or 2.
        Err(SettingsError::Arguments(error)) => error.exit(),
        Err(error) => {
            output::failure(&error);
            return ExitCode::from(2);
        }
    };
    gives_memory_back(|| mi_collect(true));
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .expect("nothing installed a TLS provider before main");
    let outcome = commands::run(arguments.command);
    // What a process has to say comes before what it ends with, and neither where nobody reads: it would not end.
    let is_read = flush_log();
    match outcome {
        Ok(code) => code,
        Err(error) => {
            if is_read {
                output::failure(&*error);
            }
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use meshwork_process::resident_memory;

    use super::*;

    #[test]
    fn what_is_free_and_kept_for_later_is_given_back_when_it_is_asked_for() {
        const BLOCKS: usize = 64 * 1024;
        let held = || resident_memory().expect("this system tells");
        let blocks: Vec<Vec<u8>> = (0..BLOCKS).map(|_| vec![1; 1024]).collect();
        drop(blocks);
        let kept = held();
        mi_collect(true);
        let left = held();
        assert!(left + 32 * 1024 * 1024 < kept, "{kept} bytes, then {left}");
    }

    #[test]
    fn every_flag_of_a_process_is_a_variable_of_the_same_name() {
        let all = Arguments::command();
        // Those that take a settings file: what runs until it is told to stop.
        let is_process =
            |command: &&clap::Command| command.get_arguments().any(|arg| arg.get_id() == "settings");
        let processes: Vec<_> = all.get_subcommands().filter(is_process).collect();
        let names: Vec<_> = processes.iter().map(|command| command.get_name()).collect();
        assert_eq!(names, ["gateway", "run", "server", "registry", "config", "control-plane"]);
        for (command, arg) in processes.iter().flat_map(|c| c.get_arguments().map(move |arg| (c, arg))) {
            let Some(flag) = arg.get_long() else { continue };
            let variable = format!("MESHWORK_{}", flag.replace('-', "_").to_uppercase());
            let found = arg.get_env().and_then(std::ffi::OsStr::to_str);
            assert_eq!(found, Some(&*variable), "--{flag} of {}", command.get_name());
        }
    }
}
