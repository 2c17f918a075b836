//! `meshwork history KIND NAME`: who changed a document, when and why.

use std::process::ExitCode;

use meshwork_api::ApplyClient;

use super::{Outcome, block_on};
use crate::output::{self, Format};
use crate::server::ServerArgs;

/// Show all revisions of a document, the last one first
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    document: DocumentArgs,
    #[command(flatten)]
    server: ServerArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Which document.
#[derive(clap::Args, Debug)]
pub(crate) struct DocumentArgs {
    /// The kind, as httproute, trafficpolicy, Settings
    #[arg(value_name = "KIND")]
    pub(super) kind: String,
    /// The document's name
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// Its namespace
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    pub(super) namespace: String,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let DocumentArgs { kind, name, namespace } = &arguments.document;
    let client = ApplyClient(arguments.server.client()?);
    let versions = block_on(client.history(namespace, kind, name))??;
    match arguments.output {
        Format::Table => {
            let rows = versions.into_iter().map(|version| {
                let message =
                    if version.deleted { format!("(removed) {}", version.message) } else { version.message };
                // One line each, whatever the author wrote.
                let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
                vec![version.revision.to_string(), version.time, version.author, message]
            });
            output::table(&["REVISION", "TIME", "AUTHOR", "MESSAGE"], rows)?;
        }
        format => output::value(format, &versions)?,
    }
    Ok(ExitCode::SUCCESS)
}
