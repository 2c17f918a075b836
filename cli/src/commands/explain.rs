//! `meshwork explain --host …`: what would become of a request, and why; `meshwork explain MW1042`: the page of an error
//! code; with `--live` what becomes of the next one that comes; `meshwork explain TRACE_ID`: what became of one, or who
//! it waits for.

mod live;
mod recorded;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use bytes::Bytes;
use rust_embed::RustEmbed;
use serde_json::{Value, json};

use super::{Outcome, block_on};
use crate::output::{self, Format};
use crate::server::ServerArgs;

/// The pages, compiled in.
#[derive(RustEmbed)]
#[folder = "../docs/errors"]
struct Pages;

/// Explain what would become of a request, what became of one, or an error code
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("what").args(["code", "host", "live"]).required(true).multiple(true))]
pub(crate) struct Arguments {
    /// The trace or request id of a request, over or under way; or an error code, as MW1042
    #[arg(value_name = "ID|CODE", conflicts_with_all = ["host", "live"])]
    code: Option<String>,
    #[command(flatten)]
    live: live::Live,
    #[command(flatten)]
    request: Request,
    #[command(flatten)]
    server: ServerArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// The request in question.
#[derive(clap::Args, Debug)]
struct Request {
    /// The host that it names, as shop.example or catalog:8080; live also *.shop.example
    #[arg(long, value_name = "HOST[:PORT]")]
    host: Option<String>,
    /// Path with its query [default: /]; live also /api*, and any where nothing is said
    #[arg(long, value_name = "PATH", conflicts_with = "code")]
    path: Option<String>,
    /// Method [default: GET; live: any]
    #[arg(short = 'X', long, value_name = "METHOD", conflicts_with = "code")]
    method: Option<String>,
    /// A header, as 'name: value'; may be given several times
    #[arg(short = 'H', long = "header", value_name = "HEADER", conflicts_with = "code", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The port of this listener, as NAMESPACE/GATEWAY/LISTENER
    #[arg(long, value_name = "LISTENER", requires = "host")]
    listener: Option<String>,
    /// The gateway's port
    #[arg(long, value_name = "PORT", requires = "host")]
    port: Option<u16>,
    /// Over TLS
    #[arg(long, requires = "host")]
    https: bool,
    /// The server name of the TLS handshake [default: the host]
    #[arg(long, value_name = "NAME", requires = "host")]
    sni: Option<String>,
    /// Who asks, from within the mesh: a SPIFFE ID, or NAMESPACE/WORKLOAD
    #[arg(long, value_name = "WHO", conflicts_with_all = ["code", "listener", "port", "https", "sni"])]
    from: Option<String>,
}

/// Prints an answer: as a story, or as it is.
fn tell(answer: &Value, format: Format, story: impl FnOnce(&Value, bool) -> String) -> Outcome {
    match format {
        Format::Table => output::print(&story(answer, std::io::stdout().is_terminal()))?,
        format => output::value(format, answer)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A field as it is given.
pub(super) fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("write it as 'name: value'".to_owned()),
    }
}

/// Says that a method is another one than is meant, most likely: nothing will match it.
pub(super) fn note_of_method(method: Option<&str>) {
    if let Some(method) = method.filter(|method| method.contains(|c: char| c.is_ascii_lowercase())) {
        let upper = method.to_ascii_uppercase();
        output::note(&format!(
            "method `{method}` is not `{upper}`: case counts, and clients send the latter"
        ));
    }
}

/// The page of a code, in any case.
fn page(code: &str) -> Option<String> {
    let file = Pages::get(&format!("{}.md", code.to_ascii_uppercase()))?;
    Some(String::from_utf8_lossy(&file.data).into_owned())
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    match &arguments.code {
        Some(code) if is_code(code) => explain_code(code, arguments),
        Some(id) => recorded::run(id, arguments),
        None if arguments.live.live => live::run(arguments),
        None => explain_request(arguments),
    }
}

/// Whether it is written as codes are; what is not is an id.
fn is_code(text: &str) -> bool {
    let prefix = text.get(..2).is_some_and(|prefix| prefix.eq_ignore_ascii_case("MW"));
    prefix && text.len() <= 8 && text[2..].bytes().all(|byte| byte.is_ascii_digit())
}

fn explain_code(code: &str, arguments: &Arguments) -> Outcome {
    if arguments.output != Format::Table {
        output::note("error: the page of a code is text; leave --output out");
        return Ok(ExitCode::from(2));
    }
    let Some(page) = page(code) else {
        let known: Vec<String> =
            Pages::iter().filter_map(|name| name.strip_suffix(".md").map(str::to_owned)).collect();
        let (first, last) = (known.iter().min(), known.iter().max());
        output::note(&format!(
            "error: there is no error code `{code}`; codes are written as {} to {}",
            first.map_or("MW1001", String::as_str),
            last.map_or("MW7999", String::as_str)
        ));
        return Ok(ExitCode::FAILURE);
    };
    output::print(&page)?;
    Ok(ExitCode::SUCCESS)
}

fn explain_request(arguments: &Arguments) -> Outcome {
    let Request { host, path, method, headers, listener, port, https, sni, from } = &arguments.request;
    note_of_method(method.as_deref());
    let question = json!({
        "host": host, "path": path, "method": method, "headers": headers, "listener": listener, "port": port,
        "https": https, "sni": sni, "from": from,
    });
    let body = Bytes::from(question.to_string());
    let kind = [("content-type", "application/json")];
    let client = arguments.server.client()?;
    let answer: Value = block_on(client.json(http::Method::POST, "/v1/explain", &kind, body))??;
    tell(&answer, arguments.output, story)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// The answer as a story: one line per step, the verdict last.
fn story(answer: &Value, marks: bool) -> String {
    let request = &answer["request"];
    let port = request["port"].as_u64().map(|port| format!(":{port}")).unwrap_or_default();
    let query = request["query"].as_str().map(|query| format!("?{query}")).unwrap_or_default();
    let from = request["from"].as_str().map(|from| format!(" from {from}")).unwrap_or_default();
    let mut lines = vec![format!(
        "{} {}://{}{port}{}{query}{from}, by revision {}",
        text(request, "method"),
        text(request, "scheme"),
        text(request, "host"),
        text(request, "path"),
        answer["revision"]
    )];
    lines.extend(steps(answer, marks));
    lines.push(format!("{:<10} {}", "answer", verdict(answer)));
    lines.join("\n") + "\n"
}

/// One line per step, and how many were left out.
fn steps(answer: &Value, marks: bool) -> Vec<String> {
    let mut lines = Vec::new();
    for step in answer["steps"].as_array().into_iter().flatten() {
        let outcome = text(step, "outcome");
        let mark = match outcome {
            _ if !marks => "",
            "chosen" => "✓ ",
            "refused" => "✗ ",
            _ => "  ",
        };
        // What was only noted is told by its words alone.
        let outcome = if outcome == "noted" { String::new() } else { format!(" {outcome}") };
        let (phase, subject, why) = (text(step, "phase"), text(step, "subject"), text(step, "why"));
        lines.push(format!("{mark}{phase:<10} {subject}{outcome}: {why}"));
    }
    if let Some(omitted) = answer["omitted"].as_u64().filter(|omitted| *omitted > 0) {
        lines.push(format!("… and {omitted} more that do not take it"));
    }
    lines
}

/// What a policy answers to some of the requests, where it does.
fn injected(backend: &Value) -> String {
    let some = backend["verdict"]["failingPercent"].as_f64().filter(|percent| *percent > 0.0);
    let abort = some.and_then(|_| backend["faultAbort"]["value"].as_str());
    abort.map(|abort| format!(", but a policy answers {abort}")).unwrap_or_default()
}

fn verdict(answer: &Value) -> String {
    let verdict = &answer["verdict"];
    let failure = |verdict: &Value| {
        let policy = verdict["policy"].as_str().map(|policy| format!(", {policy}")).unwrap_or_default();
        format!(
            "{} (cause {}, flag {}{policy})",
            verdict["status"],
            text(verdict, "cause"),
            text(verdict, "flag")
        )
    };
    match text(verdict, "outcome") {
        "failed" => failure(verdict),
        "redirected" => format!("{} to {}", verdict["status"], text(verdict, "location")),
        "notListening" => "none: nothing listens there".to_owned(),
        "handshakeRefused" => "none: the TLS handshake fails".to_owned(),
        _ => {
            let backends = answer["backends"].as_array().into_iter().flatten();
            let total: u64 = backends.clone().filter_map(|backend| backend["weight"].as_u64()).sum();
            let told: Vec<String> = backends
                .map(|backend| {
                    let share = backend["weight"].as_u64().unwrap_or_default() * 100 / total.max(1);
                    let fails = text(&backend["verdict"], "outcome") == "failed";
                    let but = if fails {
                        format!(", which fails: {}", failure(&backend["verdict"]))
                    } else {
                        injected(backend)
                    };
                    // What does not resolve has none.
                    let port = backend["port"].as_u64().filter(|port| *port > 0);
                    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
                    format!("{}{port} ({share} %){but}", text(backend, "service"))
                })
                .collect();
            format!("forwarded to {}", told.join("; "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_a_policy_answers_a_part_of_the_requests_is_in_the_last_word() {
        let told = |failing: Value| {
            verdict(&json!({
                "verdict": {"outcome": "forwarded"},
                "backends": [{
                    "service": "shop/web", "port": 80, "weight": 1, "faultAbort": {"value": "status 418 to 50 % of the requests"},
                    "verdict": {"outcome": "forwarded", "failingPercent": failing},
                }],
            }))
        };
        let injected = ", but a policy answers status 418 to 50 % of the requests";
        assert_eq!(told(json!(50)), format!("forwarded to shop/web:80 (100 %){injected}"));
        assert_eq!(told(json!(0.1)), told(json!(50)), "also to a few");
        assert_eq!(told(json!(0)), "forwarded to shop/web:80 (100 %)", "it is about other requests");
    }
}
