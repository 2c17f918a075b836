//! `meshwork get KIND [NAME]`: objects with their status and where they were written.

use std::process::ExitCode;

use bytes::Bytes;
use serde_json::Value;

use super::{Outcome, block_on, breaker, endpoints};
use crate::output::{self, Format};
use crate::server::ServerArgs;

/// Show objects with their status
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// The kind, as gateways, httproutes, services, trafficpolicies; or breakers, or the endpoints that are out, as
    /// the proxies have them now
    #[arg(value_name = "KIND")]
    kind: String,
    /// The object's name
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Its namespace [default: `default` with a name, else all]
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    // They are no objects: what running proxies have.
    if matches!(arguments.kind.to_ascii_lowercase().as_str(), "breaker" | "breakers" | "circuitbreakers") {
        let Arguments { name, namespace, server, output, .. } = arguments;
        return breaker::show(server, namespace.as_deref(), name.as_deref(), *output);
    }
    if matches!(arguments.kind.to_ascii_lowercase().as_str(), "endpoint" | "endpoints" | "ep") {
        let Arguments { name, namespace, server, output, .. } = arguments;
        return endpoints::show(server, namespace.as_deref(), name.as_deref(), *output);
    }
    let client = arguments.server.client()?;
    let path = path(arguments);
    let answer: Value = block_on(client.json(http::Method::GET, &path, &[], Bytes::new()))??;
    let objects = match answer {
        Value::Array(objects) => objects,
        object => vec![object],
    };
    objects.iter().filter_map(rejection).for_each(|told| output::note(&format!("warning: {told}")));
    match (arguments.output, arguments.name.is_some()) {
        (Format::Table, _) => print_table(&objects)?,
        (format, true) => output::value(format, &objects.first())?,
        (format, false) => output::value(format, &objects)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn path(arguments: &Arguments) -> String {
    let kind = &arguments.kind;
    match (&arguments.namespace, &arguments.name) {
        (namespace, Some(name)) => {
            format!("/v1/resources/{kind}/{}/{name}", namespace.as_deref().unwrap_or("default"))
        }
        (Some(namespace), None) => format!("/v1/resources/{kind}?namespace={namespace}"),
        (None, None) => format!("/v1/resources/{kind}"),
    }
}

fn print_table(objects: &[Value]) -> std::io::Result<()> {
    let rows = objects.iter().map(|object| {
        let meta = &object["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let source = &object["source"];
        let place = match source["file"].as_str() {
            Some(file) => format!("{file}:{}", source["line"]),
            None => String::new(),
        };
        vec![
            text(&meta["namespace"]),
            text(&meta["name"]),
            match &meta["generation"] {
                Value::Null => "-".to_owned(),
                generation => generation.to_string(),
            },
            conditions(&object["status"]),
            place,
        ]
    });
    output::table(&["NAMESPACE", "NAME", "GENERATION", "STATUS", "SOURCE"], rows)
}

/// What is wrong with an object's newest text, where that is not what is in force.
fn rejection(object: &Value) -> Option<String> {
    let conditions = object["status"]["conditions"].as_array()?;
    let told = conditions.iter().find(|condition| condition["type"] == "meshwork.dev/Rejected")?;
    let meta = &object["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace = meta["namespace"].as_str().map(|namespace| format!("{namespace}/")).unwrap_or_default();
    let whom = format!("{} {namespace}{}", text(&object["kind"]), text(&meta["name"]));
    Some(format!("the newest text of {whom} is refused: {}", text(&told["message"])))
}

/// What matters of a status: what does not hold, with its reason; `ok` when all holds.
fn conditions(status: &Value) -> String {
    let mut wrong = Vec::new();
    let mut seen = false;
    collect(status, &mut seen, &mut wrong);
    match (seen, wrong.is_empty()) {
        (false, _) => String::new(),
        (true, true) => "ok".to_owned(),
        (true, false) => wrong.join(", "),
    }
}

fn collect(value: &Value, seen: &mut bool, wrong: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, seen, wrong)),
        Value::Object(map) => {
            if let (Some(kind), Some(status)) =
                (map.get("type").and_then(Value::as_str), map.get("status").and_then(Value::as_str))
            {
                *seen = true;
                let kind = kind.strip_prefix("meshwork.dev/").unwrap_or(kind);
                // Conditions that are good when false carry their badness in their names.
                let bad_when_true = matches!(
                    kind,
                    "Conflicted" | "OverlappingTLSConfig" | "PartiallyInvalid" | "Rejected" | "Shadowed"
                );
                if (status == "True") == bad_when_true {
                    let reason = map.get("reason").and_then(Value::as_str).unwrap_or_default();
                    let text = format!("{kind}={status} ({reason})");
                    if !wrong.contains(&text) {
                        wrong.push(text);
                    }
                }
            } else {
                map.values().for_each(|inner| collect(inner, seen, wrong));
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_says_what_does_not_hold() {
        let status = json!({"listeners": [{"conditions": [
            {"type": "Accepted", "status": "True", "reason": "Accepted"},
            {"type": "Conflicted", "status": "False", "reason": "NoConflicts"},
            {"type": "ResolvedRefs", "status": "False", "reason": "InvalidCertificateRef"},
        ]}]});
        assert_eq!(conditions(&status), "ResolvedRefs=False (InvalidCertificateRef)");
        assert_eq!(conditions(&json!({"conditions": [{"type": "Accepted", "status": "True"}]})), "ok");
        assert_eq!(conditions(&json!(null)), "");
        let ours = json!({"conditions": [{"type": "meshwork.dev/Rejected", "status": "True", "reason": "NeverValid"}]});
        assert_eq!(conditions(&ours), "Rejected=True (NeverValid)");
        let shadowed = json!({"parents": [{"conditions": [
            {"type": "Accepted", "status": "True", "reason": "Accepted"},
            {"type": "meshwork.dev/Shadowed", "status": "True", "reason": "SameMatch"},
        ]}]});
        assert_eq!(conditions(&shadowed), "Shadowed=True (SameMatch)");
    }

    #[test]
    fn a_newest_text_that_is_refused_is_told_with_its_object() {
        let told = json!({"type": "meshwork.dev/Rejected", "message": "a.yaml:7:3: no"});
        let object = |meta: Value, conditions: Value| json!({"kind": "Gateway", "metadata": meta, "status": {"conditions": conditions}});
        let refused = object(json!({"namespace": "shop", "name": "edge"}), json!([told]));
        let line = "the newest text of Gateway shop/edge is refused: a.yaml:7:3: no";
        assert_eq!(rejection(&refused).as_deref(), Some(line));
        assert_eq!(rejection(&object(json!({"name": "edge"}), json!([{"type": "Accepted"}]))), None);
        assert_eq!(rejection(&json!({"kind": "Secret"})), None);
    }
}
