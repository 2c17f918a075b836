//! `meshwork token create`: how a new instance is let into the mesh.

use std::process::ExitCode;
use std::time::Duration;

use meshwork_api::IdentityClient;
use meshwork_api::identity::TokenRequest;
use meshwork_process::parse_duration;

use super::{Outcome, block_on};
use crate::output;
use crate::server::ServerArgs;

/// Make join tokens
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Make a token with which instances of a service join the mesh, and print it alone
    Create(Create),
}

#[derive(clap::Args, Debug)]
struct Create {
    /// The service whose instances may join with it
    #[arg(long, value_name = "NAME")]
    service: String,
    /// Its namespace
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
    /// The workload, where it is named otherwise than the service
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// How many instances may join with it
    #[arg(long, value_name = "N", default_value_t = 1)]
    uses: u32,
    /// How long it may be used, as 1h or 30m
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    ttl: Duration,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let Action::Create(create) = &arguments.action;
    let request = TokenRequest {
        namespace: create.namespace.clone(),
        workload: create.workload.clone().unwrap_or_else(|| create.service.clone()),
        uses: create.uses,
        ttl_seconds: create.ttl.as_secs(),
    };
    let client = IdentityClient(create.server.client()?);
    let token = block_on(client.create_token(&request))??;
    output::print(&format!("{}\n", token.token))?;
    Ok(ExitCode::SUCCESS)
}
