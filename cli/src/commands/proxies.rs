//! `meshwork proxies`: who is connected and what each has in effect.

use std::process::ExitCode;

use bytes::Bytes;
use serde_json::Value;

use super::{Outcome, block_on};
use crate::output::{self, Format};
use crate::server::ServerArgs;

/// Show the proxies and what they have in effect
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: ServerArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let client = arguments.server.client()?;
    let proxies: Vec<Value> = block_on(client.json(http::Method::GET, "/v1/proxies", &[], Bytes::new()))??;
    if arguments.output != Format::Table {
        output::value(arguments.output, &proxies)?;
        return Ok(ExitCode::SUCCESS);
    }
    let columns = [
        "id",
        "role",
        "service",
        "address",
        "version",
        "connected",
        "modelRevision",
        "effectiveRevision",
        "lastError",
    ];
    let headers =
        ["ID", "ROLE", "SERVICE", "ADDRESS", "VERSION", "CONNECTED", "MODEL", "EFFECTIVE", "LAST ERROR"];
    let text = |proxy: &Value, column: &str| match &proxy[column] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    output::table(&headers, proxies.iter().map(|proxy| columns.iter().map(|c| text(proxy, c)).collect()))?;
    Ok(ExitCode::SUCCESS)
}
