//! `meshwork get KIND [NAME]`: objects with their status and where they were written. As YAML they are documents that
//! `apply`, `diff` and `check` take.

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
    /// How to print; objects as yaml are documents that apply, diff and check take
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
        (Format::Yaml, _) => {
            objects.iter().filter_map(hidden).for_each(|told| output::note(&format!("warning: {told}")));
            output::raw(&documents(&objects)?)?;
        }
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
        vec![
            text(&meta["namespace"]),
            text(&meta["name"]),
            match &meta["generation"] {
                Value::Null => "-".to_owned(),
                generation => generation.to_string(),
            },
            conditions(&object["status"]),
            place(&object["source"]),
        ]
    });
    output::table(&["NAMESPACE", "NAME", "GENERATION", "STATUS", "SOURCE"], rows)
}

fn place(source: &Value) -> String {
    match source["file"].as_str() {
        Some(file) => format!("{file}:{}", source["line"]),
        None => String::new(),
    }
}

/// Objects one after the other, so that several answers make one file. Where each was written is no part of it; neither is
/// one of which nothing is in force, as nobody knows what it is to say.
fn documents(objects: &[Value]) -> Result<String, serde_saphyr::ser::Error> {
    let mut all = String::new();
    for object in objects {
        let mut object = object.clone();
        let source = object.as_object_mut().and_then(|fields| fields.remove("source")).unwrap_or_default();
        all.push_str("---\n");
        comment(&place(&source), &mut all);
        match rejection(&object).filter(|_| was_never_valid(&object)) {
            Some(told) => comment(&told, &mut all),
            None => all.push_str(&serde_saphyr::to_string(&object)?),
        }
    }
    Ok(all)
}

fn comment(text: &str, all: &mut String) {
    for line in text.lines() {
        all.push_str(&format!("# {}\n", output::plain(line)));
    }
}

/// What `apply` will miss.
fn hidden(object: &Value) -> Option<String> {
    let meta = &object["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (object["kind"] == "Secret").then(|| {
        let (namespace, name) = (text(&meta["namespace"]), text(&meta["name"]));
        format!("keys are not shown: put those of Secret {namespace}/{name} in before it is applied")
    })
}

fn told_rejected(object: &Value) -> Option<&Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == "meshwork.dev/Rejected")
}

fn was_never_valid(object: &Value) -> bool {
    told_rejected(object).is_some_and(|told| told["reason"] == "NeverValid")
}

/// What is wrong with an object's newest text, where that is not what is in force.
fn rejection(object: &Value) -> Option<String> {
    let told = told_rejected(object)?;
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

    /// Texts that YAML takes for something else where they are not quoted.
    const ODD: &[&str] = &[
        "yes",
        "null",
        "~",
        "",
        " ",
        "1e3",
        "0x1f",
        "012",
        "0o7",
        "1_000",
        "2020-01-01",
        ".inf",
        ".nan",
        "+1",
        "-",
        "- a",
        "a: b",
        "a:",
        "#x",
        "a #x",
        "---",
        "...",
        "---\nkind: Service",
        "%x",
        "@",
        "`",
        "{",
        "}",
        "[a",
        "*a",
        "&a",
        "!t",
        "?",
        "? a",
        "|",
        ">",
        "=",
        "<<",
        "'",
        "\"",
        "\\",
        "\t",
        "a\tb",
        " lead",
        "trail ",
        "two\nlines",
        "end\n",
        "ends\n\n",
        "\nfirst",
        "\n",
        " a\nb",
        "a\r\nb",
        "\u{7}",
        "\u{85}",
        "\u{2028}",
        "\u{feff}",
        "\u{e9}",
        "\u{1f600}",
        "true",
        "No",
        "12345678901234567890123",
    ];

    #[test]
    fn yaml_is_read_back_as_the_same_documents_without_their_sources() {
        let notes: serde_json::Map<String, Value> =
            ODD.iter().enumerate().map(|(number, text)| (format!("a{number}"), (*text).into())).collect();
        let object = |name: &str, notes: &serde_json::Map<String, Value>| {
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": "default", "annotations": notes},
                "spec": {"ports": [{"port": 80}, {"port": 81, "x": [[], {}, [1, [2.5]], true]}], "selector": {}},
                "status": {"conditions": []},
            })
        };
        let both = [object("a", &notes), object("b", &serde_json::Map::new())];
        let with_source = |object: &Value| {
            let mut object = object.clone();
            object["source"] = json!({"file": "config:default/Service/a\n@1", "line": 3, "column": 1});
            object
        };
        let text = documents(&both.each_ref().map(with_source)).unwrap();
        assert!(text.starts_with("---\n# config:default/Service/a\n# @1:3\napiVersion: v1\n"), "{text}");
        let read = meshwork_resources::written(&"f.yaml".into(), text.as_bytes());
        assert_eq!(read.len(), 2, "{text}");
        for (number, said) in ODD.iter().enumerate() {
            assert_eq!(read[0]["metadata"]["annotations"][format!("a{number}")], *said, "{text}");
        }
        assert_eq!(read, both);
        assert_eq!(documents(&[]).unwrap(), "");
    }

    #[test]
    fn a_secret_without_its_keys_is_told_and_would_be_refused() {
        let object = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a", "namespace": "shop"},
            "data": {"k": "<redacted>"}, "type": "Opaque",
        });
        assert!(hidden(&object).unwrap().contains("Secret shop/a"));
        assert_eq!(hidden(&json!({"kind": "Service", "metadata": {"name": "a"}})), None);
        let text = documents(&[object]).unwrap();
        let loaded = meshwork_resources::load_file(&"f.yaml".into(), text.as_bytes());
        assert!(loaded.objects.is_empty() && loaded.has_errors(), "{:?}", loaded.diagnostics);
    }

    #[test]
    fn of_an_object_that_never_was_valid_yaml_has_no_document() {
        let told = json!({"type": "meshwork.dev/Rejected", "status": "True", "reason": "NeverValid", "message": "a.yaml:7:3: no\nb"});
        let object = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "shop"},
            "status": {"conditions": [told]}, "source": {"file": "a.yaml", "line": 5},
        });
        let text = documents(&[object]).unwrap();
        assert_eq!(
            text,
            "---\n# a.yaml:5\n# the newest text of Service shop/a is refused: a.yaml:7:3: no\n# b\n"
        );
        assert!(meshwork_resources::written(&"f.yaml".into(), text.as_bytes()).is_empty());
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
