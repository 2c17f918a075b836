//! `meshwork rollback KIND NAME --to REVISION`: puts an earlier revision into effect again, as a new one.

use meshwork_api::ApplyClient;
use meshwork_api::apply::Rollback;

use super::apply::{WaitArgs, WhyArgs, finish};
use super::history::DocumentArgs;
use super::{Outcome, block_on};
use crate::output::Format;
use crate::server::ServerArgs;

/// Put an earlier revision of a document into effect again
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    document: DocumentArgs,
    /// The revision whose content is wanted; `meshwork history` lists them
    #[arg(long, value_name = "REVISION")]
    to: u64,
    #[command(flatten)]
    why: WhyArgs,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let DocumentArgs { kind, name, namespace } = &arguments.document;
    let client = ApplyClient(arguments.server.client()?);
    let WhyArgs { message, author } = &arguments.why;
    let rollback = Rollback { to: arguments.to, message: message.clone(), author: author.clone() };
    block_on(async {
        let stored = client.rollback(namespace, kind, name, &rollback).await;
        finish(&client, stored, &arguments.wait, arguments.output).await
    })?
}
