//! The commands, one file each.

mod check;
mod explain;
mod gateway;
mod get;
mod proxies;

use std::error::Error;
use std::process::ExitCode;

/// What `meshwork` can do.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Run the proxy at the edge
    Gateway(Box<gateway::Arguments>),
    /// Say what is wrong with resources before they are used
    Check(check::Arguments),
    /// Show objects with their status
    Get(get::Arguments),
    /// Show the proxies and what they have in effect
    Proxies(proxies::Arguments),
    /// Explain an error code
    Explain(explain::Arguments),
}

type Outcome = Result<ExitCode, Box<dyn Error>>;

/// Runs a command.
pub(crate) fn run(command: Command) -> Outcome {
    match command {
        Command::Gateway(arguments) => gateway::run(*arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Get(arguments) => get::run(&arguments),
        Command::Proxies(arguments) => proxies::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
    }
}

/// Runs a short command's calls.
fn block_on<T>(future: impl Future<Output = T>) -> std::io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
