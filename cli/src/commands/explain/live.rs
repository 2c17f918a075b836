//! `meshwork explain --live`: waits for the next request that matches, and prints its way through the proxies.

use std::io::IsTerminal as _;

use bytes::Bytes;
use meshwork_process::parse_duration;
use serde_json::{Value, json};

use super::{Arguments, Request, note_of_method, steps, text};
use crate::commands::{Outcome, block_on};
use crate::output;

#[derive(clap::Args, Debug)]
pub(super) struct Live {
    /// Wait for the next request that matches, and explain what the proxies did with it
    #[arg(long, conflicts_with_all = ["listener", "port", "https", "sni"])]
    pub(super) live: bool,
    /// The only proxy that looks, by its id in `meshwork proxies` [default: all]
    #[arg(long, value_name = "ID", requires = "live")]
    proxy: Option<String>,
    /// How long to wait, at most ten minutes
    #[arg(long, value_name = "DURATION", default_value = "30s", requires = "live")]
    timeout: String,
}

pub(super) fn run(arguments: &Arguments) -> Outcome {
    let Request { host, path, method, headers, from, .. } = &arguments.request;
    let Live { proxy, timeout, .. } = &arguments.live;
    let question = json!({
        "host": host, "path": path, "method": method, "headers": headers, "from": from, "proxy": proxy,
        "timeout": timeout,
    });
    let body = Bytes::from(question.to_string());
    let kind = [("content-type", "application/json")];
    // What is no time the server refuses at once.
    let client = arguments.server.client()?.that_waits(parse_duration(timeout).unwrap_or_default());
    note_of_method(method.as_deref());
    if std::io::stderr().is_terminal() {
        output::note(&format!("waiting at most {timeout} for a request that matches"));
    }
    let answer: Value = block_on(client.json(http::Method::POST, "/v1/explain/live", &kind, body))??;
    super::tell(&answer, arguments.output, story)
}

/// The answer as a story: a paragraph per hop.
fn story(answer: &Value, marks: bool) -> String {
    let mut lines = vec![heading(answer)];
    for hop in answer["hops"].as_array().into_iter().flatten() {
        lines.push(String::new());
        lines.extend(paragraph(hop, marks));
    }
    let list = |key: &str| answer[key].as_array().into_iter().flatten().filter_map(Value::as_str);
    lines.extend(list("missing").map(|who| format!("\nnot told: {who}")));
    lines.extend(list("notObserving").map(|who| format!("\n{who} is too old to look at requests")));
    lines.join("\n") + "\n"
}

/// What the request is known by.
pub(super) fn heading(answer: &Value) -> String {
    let known = |key: &str, name: &str| answer[key].as_str().map(|id| format!("{name} {id}"));
    let ids = [known("traceId", "trace"), known("requestId", "request")];
    ids.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

pub(super) fn paragraph(hop: &Value, marks: bool) -> Vec<String> {
    let request = &hop["request"];
    let from = request["from"].as_str().or(request["peer"].as_str()).unwrap_or("nobody");
    let mut lines = vec![format!(
        "{} {}: {} {}{} from {from}, by revision {}",
        text(hop, "proxy"),
        text(hop, "side"),
        text(request, "method"),
        text(request, "host"),
        text(request, "path"),
        text(hop, "revision"),
    )];
    lines.extend(steps(hop, marks));
    let waits = hop["held"].as_array().into_iter().flatten().map(held);
    let attempts = hop["attempts"].as_array().into_iter().flatten().map(attempt);
    lines.extend(waits.chain(attempts).map(|line| if marks { format!("  {line}") } else { line }));
    let (verdict, when) = (verdict(&hop["verdict"]), if is_under_way(hop) { "after" } else { "in" });
    let line = format!("{:<10} {verdict} {when} {}", "answer", times(hop));
    lines.push(if marks { format!("  {line}") } else { line });
    lines
}

/// Whether all that is told of it is how it is so far.
fn is_under_way(hop: &Value) -> bool {
    hop["underWay"] == true
}

/// How long it took, of that its application alone, and how long such requests ordinarily do.
fn times(hop: &Value) -> String {
    let both = |all: &str, own: &str| {
        let all = hop[all].as_f64()?;
        let own = hop[own].as_f64().map(|own| format!(" (by itself {own} ms)")).unwrap_or_default();
        Some(format!("{all} ms{own}"))
    };
    let usual = both("usualMs", "usualOwnMs").map(|usual| format!(", usually {usual}"));
    both("durationMs", "ownMs").unwrap_or_default() + &usual.unwrap_or_default()
}

/// What it waited for before it was sent to anybody.
fn held(held: &Value) -> String {
    let by = held["by"].as_str().map(|by| format!(", by {by}")).unwrap_or_default();
    format!("{:<10} {} ms in phase {}{by}", "held", held["ms"], text(held, "phase"))
}

/// One attempt: where, how long each step took, on which connection, what came of it.
fn attempt(attempt: &Value) -> String {
    let instance = attempt["instance"].as_str().map(|name| format!(" ({name})")).unwrap_or_default();
    let detail = attempt["detail"].as_str().filter(|detail| !detail.is_empty());
    let detail = detail.map(|detail| format!(": {detail}")).unwrap_or_default();
    let outcome = match (attempt["status"].as_u64(), attempt["cause"].as_str()) {
        (Some(status), None) => status.to_string(),
        (Some(status), Some(cause)) => format!("{status}, then {cause}{detail}"),
        (None, Some(cause)) => format!("{cause}{detail}"),
        (None, None) => "no answer yet".to_owned(),
    };
    let connection = match (attempt["connectMs"].as_f64(), attempt["connectionAgeMs"].as_f64()) {
        (None, _) => "no connection".to_owned(),
        (Some(connect), None) => format!("connected in {connect} ms"),
        (Some(_), Some(age)) => format!("connection of {age} ms"),
    };
    format!(
        "{:<10} {}{instance} {} after {} ms: {outcome} in {} ms; {connection}, {} bytes there, {} back",
        "attempt",
        text(attempt, "endpoint"),
        text(attempt, "protocol"),
        attempt["startMs"],
        attempt["durationMs"],
        attempt["bytesSent"],
        attempt["bytesReceived"],
    )
}

fn verdict(verdict: &Value) -> String {
    let status = verdict["status"].as_u64();
    if verdict["outcome"] == "underWay" {
        let begun = status.map_or_else(|| "none yet".to_owned(), |status| format!("{status}, not ended yet"));
        return format!("{begun} (phase {})", text(verdict, "phase"));
    }
    let mut status = status.map_or_else(|| "none".to_owned(), |status| status.to_string());
    if let Some(of_grpc) = verdict["grpcStatus"].as_u64() {
        status += &format!(", gRPC status {of_grpc}");
    }
    match verdict["cause"].as_str() {
        None => status,
        Some(cause) => {
            let detail = verdict["detail"].as_str().map(|detail| format!(": {detail}")).unwrap_or_default();
            let phase = verdict["phase"].as_str().map(|phase| format!(", phase {phase}")).unwrap_or_default();
            format!("{status} (cause {cause}, flag {}{phase}{detail})", text(verdict, "flag"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_attempt_nothing_is_told_that_is_not_known() {
        let told = |status: Value, cause: &str, detail: Value| {
            attempt(&json!({
                "endpoint": "10.0.0.1:80", "instance": null, "protocol": "HTTP/1.1", "startMs": 0.4, "durationMs": 51,
                "status": status, "cause": (!cause.is_empty()).then_some(cause), "detail": detail, "connectMs": null, "connectionAgeMs": null,
                "bytesSent": 0, "bytesReceived": 0,
            }))
        };
        let lost = told(Value::Null, "hedge_lost", Value::Null);
        assert!(lost.contains("after 0.4 ms: hedge_lost in 51 ms; no connection"), "{lost}");
        let late = told(json!(200), "request_timeout", json!(""));
        assert!(late.contains("ms: 200, then request_timeout in 51 ms"), "{late}");
        let waits = told(Value::Null, "", Value::Null);
        assert!(waits.contains("ms: no answer yet in 51 ms"), "{waits}");
        let refused = told(Value::Null, "connect_failure", json!("refused"));
        assert!(refused.contains("ms: connect_failure: refused in 51 ms"), "{refused}");
    }

    #[test]
    fn of_a_hop_that_has_not_ended_the_answer_is_said_not_to_have_come_yet() {
        let told = |status: Value| {
            let hop = json!({
                "underWay": true, "durationMs": 21_034.2, "usualMs": 3.1, "request": {},
                "verdict": {"outcome": "underWay", "status": status, "phase": "request"},
            });
            paragraph(&hop, false).pop().unwrap()
        };
        assert_eq!(told(Value::Null), "answer     none yet (phase request) after 21034.2 ms, usually 3.1 ms");
        assert!(told(json!(200)).starts_with("answer     200, not ended yet (phase"), "{}", told(json!(200)));
    }
}
