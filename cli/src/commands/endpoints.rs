//! `meshwork get endpoints [NAME]`: endpoints that are out, why, and for whom.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::Outcome;
use super::breaker::{list, seconds, standings};
use crate::output::{self, Format};
use crate::server::ServerArgs;

/// Asks the running proxies, and prints what they leave out.
pub(super) fn show(
    server: &ServerArgs,
    namespace: Option<&str>,
    name: Option<&str>,
    format: Format,
) -> Outcome {
    let services = list(&standings(server, namespace, name)?, "services");
    let out: Vec<Value> = services.iter().flat_map(of_service).collect();
    if format != Format::Table {
        output::value(format, &out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = out.iter().map(|endpoint| {
        let text = |key: &str| endpoint[key].as_str().unwrap_or_default().to_owned();
        let why = match endpoint["msLeft"].as_u64() {
            Some(_) => format!("{} ({})", text("why"), seconds(&endpoint["msLeft"], "on trial")),
            None => text("why"),
        };
        let service = format!("{}/{}", text("namespace"), text("service"));
        vec![
            service,
            endpoint["port"].to_string(),
            text("address"),
            text("instance"),
            text("state"),
            why,
            text("proxy"),
        ]
    });
    output::table(&["SERVICE", "PORT", "ADDRESS", "INSTANCE", "STATE", "WHY", "PROXY"], rows)?;
    Ok(ExitCode::SUCCESS)
}

/// One entry for each endpoint that a proxy leaves out, and each reason for it.
fn of_service(service: &Value) -> Vec<Value> {
    let proxies = service["proxies"].as_array().into_iter().flatten();
    let entries = proxies.flat_map(|standing| {
        let entry = move |endpoint: &Value, state: &str, why: &Value| {
            json!({
                "namespace": service["namespace"], "service": service["name"], "port": service["port"],
                "address": endpoint["address"], "instance": endpoint["instance"],
                "state": state, "why": why, "proxy": standing["proxy"],
            })
        };
        let failing = standing["failing"].as_array().into_iter().flatten();
        let failing = failing.map(move |endpoint| {
            entry(endpoint, endpoint["state"].as_str().unwrap_or_default(), &endpoint["why"])
        });
        let ejected = standing["ejected"].as_array().into_iter().flatten();
        let ejected = ejected.map(move |endpoint| {
            let mut entry = entry(endpoint, "ejected", &endpoint["cause"]);
            entry["msLeft"] = endpoint["msLeft"].clone();
            entry
        });
        failing.chain(ejected)
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_out_has_an_entry_for_each_reason_and_proxy() {
        let service = json!({"namespace": "shop", "name": "reviews", "port": 80, "proxies": [
            {"proxy": "a",
             "failing": [{"address": "10.0.0.1:80", "instance": "r-1", "state": "unhealthy", "why": "HTTP GET /: 503"}],
             "ejected": [{"address": "10.0.0.1:80", "instance": "r-1", "cause": "consecutive_5xx", "msLeft": 5}]},
            {"proxy": "b", "failing": [], "ejected": []},
        ]});
        let out = of_service(&service);
        let told: Vec<_> =
            out.iter().map(|e| (e["state"].as_str().unwrap(), e["why"].as_str().unwrap())).collect();
        assert_eq!(told, [("unhealthy", "HTTP GET /: 503"), ("ejected", "consecutive_5xx")]);
        assert!(out.iter().all(|e| e["proxy"] == "a" && e["namespace"] == "shop"));
        assert_eq!((out[0]["msLeft"].as_u64(), out[1]["msLeft"].as_u64()), (None, Some(5)));
    }
}
