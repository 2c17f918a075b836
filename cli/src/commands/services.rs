//! `meshwork services`: who is registered, and how well.

use std::process::ExitCode;

use bytes::Bytes;
use meshwork_api::registry::{Health, Instance, Service};

use super::{Outcome, block_on};
use crate::output::{self, Format};
use crate::server::ServerArgs;

/// Show services and their instances
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// Only those of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let client = arguments.server.client()?;
    let mut services: Vec<Service> =
        block_on(client.json(http::Method::GET, "/v1/services", &[], Bytes::new()))??;
    if let Some(namespace) = &arguments.namespace {
        services.retain(|service| service.namespace == *namespace);
    }
    if arguments.output != Format::Table {
        output::value(arguments.output, &services)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = services
        .iter()
        .flat_map(|service| service.instances.iter().map(move |instance| row(service, instance)));
    let headers = ["NAMESPACE", "SERVICE", "INSTANCE", "ADDRESS", "PORTS", "HEALTH", "IDENTITY"];
    output::table(&headers, rows)?;
    Ok(ExitCode::SUCCESS)
}

fn row(service: &Service, instance: &Instance) -> Vec<String> {
    let port = |(name, port): (&String, &meshwork_api::registry::Port)| match &port.protocol {
        Some(protocol) if protocol != name => format!("{name}:{}/{protocol}", port.port),
        _ => format!("{name}:{}", port.port),
    };
    let health = match instance.health {
        Health::Passing => "passing",
        Health::Suspect => "suspect",
        Health::Warning => "warning",
        Health::Critical => "critical",
        Health::Maintenance => "maintenance",
    };
    vec![
        service.namespace.clone(),
        service.name.clone(),
        instance.id.clone(),
        instance.address.clone(),
        instance.ports.iter().map(port).collect::<Vec<_>>().join(","),
        health.to_owned(),
        instance.identity.clone().unwrap_or_else(|| "external".to_owned()),
    ]
}
