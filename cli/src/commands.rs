//! The commands, one file each.

mod apply;
mod breaker;
mod check;
mod delete;
mod diff;
mod down;
mod endpoints;
mod explain;
mod gateway;
mod get;
mod history;
mod platform;
mod proxies;
mod rollback;
mod run;
mod services;
mod simulate;
mod tap;
mod token;
mod top;
mod up;

use std::error::Error;
use std::process::ExitCode;

use meshwork_process::descriptors::raise_open_files;

/// What `meshwork` can do.
#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Start the whole platform on this machine, with the shop
    Up(Box<up::Arguments>),
    /// Stop the platform that `meshwork up` started
    Down(down::Arguments),
    /// Run the proxy at the edge
    Gateway(Box<gateway::Arguments>),
    /// Run a program in the mesh
    Run(Box<run::Arguments>),
    /// Run registry, config service and control plane in one process
    Server(Box<platform::ServerArguments>),
    /// Run the registry alone
    Registry(Box<platform::RegistryArguments>),
    /// Run the config service alone
    Config(Box<platform::ConfigArguments>),
    /// Run the control plane alone
    ControlPlane(Box<platform::ControlPlaneArguments>),
    /// Say what is wrong with resources before they are used
    Check(check::Arguments),
    /// Check resources and put them into effect
    Apply(apply::Arguments),
    /// Take documents out of effect
    Delete(delete::Arguments),
    /// Show what `apply` would change
    Diff(diff::Arguments),
    /// Show all revisions of a document
    History(history::Arguments),
    /// Put an earlier revision of a document into effect again
    Rollback(rollback::Arguments),
    /// Show objects with their status
    Get(get::Arguments),
    /// Show the proxies and what they have in effect
    Proxies(proxies::Arguments),
    /// Force the circuit breaker of a service or route for a time; `get breakers` shows how they stand
    Breaker(breaker::Arguments),
    /// Show services and their instances
    Services(services::Arguments),
    /// Make join tokens
    Token(token::Arguments),
    /// Run a fleet through the simulator
    Simulate(simulate::Arguments),
    /// Show requests as they end, in all proxies or some
    Tap(Box<tap::Arguments>),
    /// Show rates, success, latencies and circuit breakers of services, live
    Top(top::Arguments),
    /// Explain what would become of a request, or an error code
    Explain(Box<explain::Arguments>),
}

impl Command {
    /// Whether it has callers, each of whom takes a file descriptor or two.
    const fn serves(&self) -> bool {
        matches!(
            self,
            Self::Gateway(_)
                | Self::Run(_)
                | Self::Server(_)
                | Self::Registry(_)
                | Self::Config(_)
                | Self::ControlPlane(_)
        )
    }
}

type Outcome = Result<ExitCode, Box<dyn Error>>;

/// Runs a command.
pub(crate) fn run(command: Command) -> Outcome {
    if command.serves() {
        raise_open_files();
    }
    match command {
        Command::Up(arguments) => up::run(&arguments),
        Command::Down(arguments) => down::run(&arguments),
        Command::Gateway(arguments) => gateway::run(*arguments),
        Command::Run(arguments) => run::run(*arguments),
        Command::Server(arguments) => platform::server(*arguments),
        Command::Registry(arguments) => platform::registry(*arguments),
        Command::Config(arguments) => platform::config(*arguments),
        Command::ControlPlane(arguments) => platform::control_plane(*arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Apply(arguments) => apply::run(&arguments),
        Command::Delete(arguments) => delete::run(&arguments),
        Command::Diff(arguments) => diff::run(&arguments),
        Command::History(arguments) => history::run(&arguments),
        Command::Rollback(arguments) => rollback::run(&arguments),
        Command::Get(arguments) => get::run(&arguments),
        Command::Proxies(arguments) => proxies::run(&arguments),
        Command::Breaker(arguments) => breaker::run(&arguments),
        Command::Services(arguments) => services::run(&arguments),
        Command::Token(arguments) => token::run(&arguments),
        Command::Simulate(arguments) => simulate::run(&arguments),
        Command::Tap(arguments) => tap::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
    }
}

/// Runs a short command's calls.
fn block_on<T>(future: impl Future<Output = T>) -> std::io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
