//! `meshwork tap`: requests as they end, from many proxies at once.

use std::process::ExitCode;

use bytes::Bytes;
use meshwork_api::Client;
use serde_json::{Value, json};

use super::explain::{header, note_of_method};
use super::{Outcome, block_on};
use crate::output;
use crate::server::ServerArgs;

/// How lines are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON object per line.
    Json,
}

/// Show requests as they end, in all proxies or some
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: ServerArgs,
    /// The service that is called, as NAMESPACE/NAME, or its name alone
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// The namespace of the service that is called
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// The only proxy that looks, by its id in `meshwork proxies` [default: all]
    #[arg(long, value_name = "ID")]
    proxy: Option<String>,
    /// The host that is called; *.DOMAIN takes all below
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Paths that begin so
    #[arg(long, value_name = "PREFIX")]
    path_prefix: Option<String>,
    /// Method
    #[arg(short = 'X', long, value_name = "METHOD")]
    method: Option<String>,
    /// A class of statuses, as 5xx
    #[arg(long, value_name = "CLASS")]
    status: Option<String>,
    /// Requests that took at least so long
    #[arg(long, value_name = "DURATION")]
    min_duration: Option<String>,
    /// Failed requests alone: a cause of ours, a status from 500, a gRPC status of a failure
    #[arg(long)]
    failed: bool,
    /// A field that must be there; may be given several times
    #[arg(long, value_name = "NAME")]
    has_header: Vec<String>,
    /// A field with its value, as 'name: value'; may be given several times
    #[arg(short = 'H', long = "header", value_name = "HEADER", value_parser = header)]
    headers: Vec<(String, String)>,
    /// End after so many requests
    #[arg(long, value_name = "COUNT")]
    limit: Option<u64>,
    /// End after this time, at most a day
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    timeout: String,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let question = json!({
        "service": arguments.service, "namespace": arguments.namespace, "proxy": arguments.proxy,
        "host": arguments.host, "pathPrefix": arguments.path_prefix, "method": arguments.method,
        "status": arguments.status, "minDuration": arguments.min_duration, "failed": arguments.failed,
        "present": arguments.has_header, "headers": arguments.headers, "timeout": arguments.timeout,
    });
    let client = arguments.server.client()?;
    note_of_method(arguments.method.as_deref());
    block_on(async {
        if let Some(service) = &arguments.service {
            note_of_service(&client, service).await;
        }
        let body = Bytes::from(question.to_string());
        let mut lines = client.lines(http::Method::POST, "/v1/tap", body).await?;
        let mut left = arguments.limit.unwrap_or(u64::MAX);
        while left > 0 {
            let Some(line) = lines.next().await? else { break };
            let value: Value = serde_json::from_slice(&line)?;
            let lost = value["lost"].as_u64();
            left -= u64::from(lost.is_none());
            let open = match (arguments.output, lost) {
                (Format::Json, _) => output::line(&output::plain_json(&value.to_string()))?,
                (Format::Table, None) => output::line(&row(&value))?,
                (Format::Table, Some(lost)) => {
                    let who = value["proxy"].as_str().unwrap_or("this reader");
                    output::note(&format!("{lost} lost: {who} was too slow for them"));
                    true
                }
            };
            if !open {
                break;
            }
        }
        Ok(ExitCode::SUCCESS)
    })?
}

/// Says that there is no such service, most likely by a slip: nothing matches until there is.
async fn note_of_service(client: &Client, service: &str) {
    let list = |path| client.json::<Vec<Value>>(http::Method::GET, path, &[], Bytes::new());
    let lists = tokio::join!(
        list("/v1/services"),
        list("/v1/resources/services"),
        list("/v1/resources/servicesubsets"),
    );
    // Whoever cannot say which services there are has said nothing of this one.
    let (Ok(registered), Ok(services), Ok(subsets)) = lists else { return };
    let objects = services.iter().chain(&subsets).map(|object| &object["metadata"]);
    let is_there = registered.iter().chain(objects).any(|of| is_called(of, service));
    if !is_there {
        output::note(&format!(
            "no service is called `{service}` now; `meshwork services` lists the registered ones"
        ));
    }
}

/// Whether what has this name and namespace is meant.
fn is_called(of: &Value, service: &str) -> bool {
    let (namespace, name) = service.split_once('/').map_or((None, service), |(of, name)| (Some(of), name));
    of["name"] == name && namespace.is_none_or(|namespace| of["namespace"] == namespace)
}

fn row(hop: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let (request, verdict) = (&hop["request"], &hop["verdict"]);
    let mut status = verdict["status"].as_u64().map_or_else(|| "-".to_owned(), |status| status.to_string());
    if let Some(of_grpc) = verdict["grpcStatus"].as_u64() {
        status += &format!(" (gRPC {of_grpc})");
    }
    let mut line = format!(
        "{} {} {} {status} {} ms  {} {}{}  {}",
        text(&hop["start"]),
        text(&hop["proxy"]),
        text(&hop["side"]),
        hop["durationMs"],
        text(&request["method"]),
        text(&request["host"]),
        text(&request["path"]),
        text(&hop["service"]),
    );
    if let Some(cause) = verdict["cause"].as_str() {
        line += &format!("  {cause} ({}, {})", text(&verdict["flag"]), text(&verdict["phase"]));
    }
    if let Some(id) = request["traceId"].as_str().or(request["requestId"].as_str()) {
        line += &format!("  {id}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_of_grpc_has_its_code_beside_the_status_that_says_nothing() {
        let hop = json!({
            "start": "t", "proxy": "gateway/g", "side": "gateway", "durationMs": 0.4, "service": "default/one:80",
            "request": {"method": "POST", "host": "shop", "path": "/a.B/C", "requestId": "r-7"},
            "verdict": {"status": 200, "grpcStatus": 14, "cause": "circuit_breaker", "flag": "UO", "phase": "endpoint"},
        });
        let line = "t gateway/g gateway 200 (gRPC 14) 0.4 ms  POST shop/a.B/C  default/one:80  \
                    circuit_breaker (UO, endpoint)  r-7";
        assert_eq!(row(&hop), line);
    }
}
