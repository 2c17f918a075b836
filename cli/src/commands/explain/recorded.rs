//! `meshwork explain TRACE_ID`: what became of a request, whose fault it was, and what could be changed; of one that is under way,
//! who is waited for.

use bytes::Bytes;
use serde_json::{Value, json};

use super::live::{heading, paragraph};
use super::{Arguments, text};
use crate::commands::{Outcome, block_on};

pub(super) fn run(id: &str, arguments: &Arguments) -> Outcome {
    let body = Bytes::from(json!({ "id": id }).to_string());
    let kind = [("content-type", "application/json")];
    let client = arguments.server.client()?;
    let answer: Value = block_on(client.json(http::Method::POST, "/v1/explain/recorded", &kind, body))??;
    super::tell(&answer, arguments.output, story)
}

/// The answer as a story: whose fault, what to do, then a paragraph per hop.
fn story(answer: &Value, marks: bool) -> String {
    let mut lines = vec![heading(answer)];
    // What is waited for may yet be answered well.
    for (label, found) in [("fault", &answer["fault"]), ("waits for", &answer["waits"])] {
        if found.is_object() {
            lines.extend(whose(label, found));
        }
    }
    for advice in answer["suggestions"].as_array().into_iter().flatten() {
        lines.push(format!("{:<10} {}", "suggestion", text(advice, "text")));
        if let Some(field) = advice["field"].as_str() {
            let value = match advice["value"].as_str() {
                Some(value) => format!("{field} is {value}{}", source(&advice["source"])),
                None => format!("{field}: nothing is said"),
            };
            lines.push(format!("{:<10} {value}", ""));
        }
    }
    for hop in answer["hops"].as_array().into_iter().flatten() {
        lines.push(String::new());
        lines.extend(paragraph(hop, marks));
    }
    let list = |key: &str| answer[key].as_array().into_iter().flatten().filter_map(Value::as_str);
    lines.extend(list("silent").map(|who| format!("\n{who} has not answered")));
    lines.extend(list("notRecording").map(|who| format!("\n{who} is too old to keep requests")));
    let of_ended = "is too old to tell of requests that have not ended";
    lines.extend(list("notTellingUnderWay").map(|who| format!("\n{who} {of_ended}")));
    lines.join("\n") + "\n"
}

fn whose(label: &str, found: &Value) -> Vec<String> {
    let who = found["service"].as_str().unwrap_or_else(|| text(found, "who"));
    let mut lines = vec![format!("{label:<10} {who}: {}", text(found, "why"))];
    let verdict = ["cause", "flag", "phase"].map(|key| found[key].as_str().map(|is| format!("{key} {is}")));
    let verdict: Vec<String> = verdict.into_iter().flatten().collect();
    if !verdict.is_empty() {
        lines.push(format!("{:<10} {}, as {} says", "", verdict.join(", "), text(found, "proxy")));
    }
    lines
}

fn source(source: &Value) -> String {
    if source.is_object() {
        format!(
            ", as {} {} ({}:{}) says",
            text(source, "kind"),
            text(source, "name"),
            text(source, "file"),
            source["line"]
        )
    } else {
        String::new()
    }
}
