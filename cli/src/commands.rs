//! The commands, one file each.

mod check;
mod explain;
mod gateway;
mod get;
mod platform;
mod proxies;
mod run;
mod services;
mod token;

use std::error::Error;
use std::process::ExitCode;

/// What `meshwork` can do.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Run the proxy at the edge
    Gateway(Box<gateway::Arguments>),
    /// Run a program in the mesh
    Run(Box<run::Arguments>),
    /// Run registry and control plane in one process
    Server(Box<platform::ServerArguments>),
    /// Run the registry alone
    Registry(Box<platform::RegistryArguments>),
    /// Run the control plane alone
    ControlPlane(Box<platform::ControlPlaneArguments>),
    /// Say what is wrong with resources before they are used
    Check(check::Arguments),
    /// Show objects with their status
    Get(get::Arguments),
    /// Show the proxies and what they have in effect
    Proxies(proxies::Arguments),
    /// Show services and their instances
    Services(services::Arguments),
    /// Make join tokens
    Token(token::Arguments),
    /// Explain an error code
    Explain(explain::Arguments),
}

type Outcome = Result<ExitCode, Box<dyn Error>>;

/// Runs a command.
pub(crate) fn run(command: Command) -> Outcome {
    match command {
        Command::Gateway(arguments) => gateway::run(*arguments),
        Command::Run(arguments) => run::run(*arguments),
        Command::Server(arguments) => platform::server(*arguments),
        Command::Registry(arguments) => platform::registry(*arguments),
        Command::ControlPlane(arguments) => platform::control_plane(*arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Get(arguments) => get::run(&arguments),
        Command::Proxies(arguments) => proxies::run(&arguments),
        Command::Services(arguments) => services::run(&arguments),
        Command::Token(arguments) => token::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
    }
}

/// Runs a short command's calls.
fn block_on<T>(future: impl Future<Output = T>) -> std::io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
