//! `meshwork diff -f PATH`: what `apply` would change.

use std::process::ExitCode;

use meshwork_api::ApplyClient;
use meshwork_api::apply::Files;
use meshwork_api::config::{Action, Difference, Planned};

use super::apply::{ResourceArgs, findings};
use super::{Outcome, block_on};
use crate::output::{self, Format};
use crate::server::ServerArgs;

/// Show what `apply` would change; nothing is stored
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    resources: ResourceArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let files = Files { files: arguments.resources.read()?, ..Files::default() };
    let client = ApplyClient(arguments.server.client()?);
    let planned = block_on(client.diff(&files))?.inspect_err(findings)?;
    match arguments.output {
        Format::Table => output::print(&planned.iter().map(tell).collect::<String>())?,
        format => output::value(format, &planned)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(planned: &Planned) -> String {
    let verb = match planned.action {
        Action::Create => "create",
        Action::Update => "update",
        Action::Delete => "delete",
        Action::Unchanged => "unchanged",
    };
    let mut out = format!("{verb} {} {}/{}\n", planned.kind, planned.namespace, planned.name);
    if planned.action == Action::Update {
        out.extend(planned.differences.iter().map(difference));
    }
    out
}

fn difference(found: &Difference) -> String {
    let path = if found.path.is_empty() { "/" } else { &found.path };
    let before = found.before.as_ref().map(|value| format!("  - {path}: {value}\n"));
    let after = found.after.as_ref().map(|value| format!("  + {path}: {value}\n"));
    before.into_iter().chain(after).collect()
}
