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
    let fault = &answer["fault"];
    if fault.is_object() {
        let who = fault["service"].as_str().unwrap_or_else(|| text(fault, "who"));
        // It may yet be answered well.
        let is_open = fault["underWay"] == true && fault["cause"].is_null();
        let label = if is_open { "waits for" } else { "fault" };
        lines.push(format!("{label:<10} {who}: {}", text(fault, "why")));
        let verdict =
            ["cause", "flag", "phase"].map(|key| fault[key].as_str().map(|is| format!("{key} {is}")));
        let verdict: Vec<String> = verdict.into_iter().flatten().collect();
        if !verdict.is_empty() {
            lines.push(format!("{:<10} {}, as {} says", "", verdict.join(", "), text(fault, "proxy")));
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
    lines.join("\n") + "\n"
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
