//! `meshwork delete -f PATH | KIND NAME`: removes documents from the config service; their histories stay.

use std::path::PathBuf;

use meshwork_api::ApplyClient;
use meshwork_api::apply::{Delete, DocumentName};

use super::apply::{WaitArgs, WhyArgs, finish, read};
use super::{Outcome, block_on};
use crate::output::{self, Format};
use crate::server::ServerArgs;

/// Take documents out of effect; their histories stay, and `rollback` brings them back
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// The kind, as httproute, trafficpolicy, Settings
    #[arg(value_name = "KIND", required_unless_present = "filename", requires = "names")]
    kind: Option<String>,
    /// The documents' names
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// A folder or file of resources, or - for standard input: what it defines is removed; may be given several times
    #[arg(short, long, value_name = "PATH", conflicts_with = "kind")]
    filename: Vec<PathBuf>,
    /// The namespace of the documents that are named
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default", conflicts_with = "filename")]
    namespace: String,
    /// Remove those that are there; that others are not is no error
    #[arg(long)]
    ignore_not_found: bool,
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
    let Arguments { kind, names, namespace, .. } = arguments;
    let named = |kind: &String| {
        let name = |name: &String| DocumentName {
            namespace: namespace.clone(),
            kind: kind.clone(),
            name: name.clone(),
        };
        names.iter().map(name).collect()
    };
    let delete = Delete {
        files: read(&arguments.filename)?,
        documents: kind.as_ref().map(named).unwrap_or_default(),
        ignore_absent: arguments.ignore_not_found,
        message: arguments.why.message.clone(),
        author: arguments.why.author.clone(),
    };
    let client = ApplyClient(arguments.server.client()?);
    block_on(async {
        let stored = client.delete(&delete).await;
        if stored.as_ref().is_ok_and(|stored| stored.versions.is_empty()) {
            output::note("none of them is there: nothing was removed");
        }
        finish(&client, stored, &arguments.wait, arguments.output).await
    })?
}
