//! `meshwork breaker`: forcing circuit breakers for a time; and how they stand in the running proxies.

use std::process::ExitCode;

use bytes::Bytes;
use meshwork_process::parse_duration;
use serde_json::{Value, json};

use super::{Outcome, block_on};
use crate::output::{self, Format};
use crate::server::ServerArgs;

/// Force the circuit breaker of a service or route for a time; `meshwork get breakers` shows how they stand
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand, Debug)]
enum Action {
    /// Refuse every call to a service, or by a route, for a time
    #[command(override_usage = "meshwork breaker open [OPTIONS] --for <TIME> <NAME>")]
    Open(Force),
    /// Let every call to a service, or by a route, through, for a time
    #[command(override_usage = "meshwork breaker close [OPTIONS] --for <TIME> <NAME>")]
    Close(Force),
    /// Let policy and rates decide again
    Release(Which),
}

#[derive(clap::Args, Debug)]
struct Which {
    /// The service; with --route the HTTPRoute
    #[arg(value_name = "NAME")]
    name: String,
    /// Its namespace
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
    /// One port of it [default: all]
    #[arg(long, value_name = "PORT", conflicts_with = "route")]
    port: Option<u16>,
    /// It is an HTTPRoute, to which a policy gives a breaker
    #[arg(long)]
    route: bool,
    /// One rule of it that has a breaker of its own [default: all; wanted by `open` where only rules have breakers]
    #[arg(long, value_name = "RULE", requires = "route")]
    rule: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(clap::Args, Debug)]
struct Force {
    #[command(flatten)]
    which: Which,
    /// How long, as 5m; at most 24h. It ends by itself, also while the control plane is away
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    lasts: String,
}

/// A time, as it is passed on.
fn duration(text: &str) -> Result<String, String> {
    parse_duration(text).map(|_| text.to_owned())
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    match &arguments.action {
        Action::Open(force) => order(&force.which, "open", Some(&force.lasts)),
        Action::Close(force) => order(&force.which, "closed", Some(&force.lasts)),
        Action::Release(which) => order(which, "none", None),
    }
}

/// Prints how breakers stand: `meshwork get breakers`.
pub(super) fn show(
    server: &ServerArgs,
    namespace: Option<&str>,
    name: Option<&str>,
    format: Format,
) -> Outcome {
    let answer = standings(server, namespace, name)?;
    let mut all = list(&answer, "services");
    all.extend(list(&answer, "routes"));
    if format != Format::Table {
        output::value(format, &all)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = all.iter().flat_map(|service| {
        let proxies = service["proxies"].as_array().into_iter().flatten();
        proxies.map(move |standing| row(service, standing))
    });
    output::table(
        &["SERVICE", "PORT", "PROXY", "BREAKER", "CALLS", "HEADROOM", "REJECTED", "LIMITS", "PASSED BY"],
        rows,
    )?;
    let memory = answer["memory"].as_array().into_iter().flatten();
    memory.filter_map(short_of_memory).for_each(|note| output::note(&note));
    Ok(ExitCode::SUCCESS)
}

/// How services, and routes, stand in the running proxies; who has not answered is named.
pub(super) fn standings(
    server: &ServerArgs,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Result<Value, Box<dyn std::error::Error>> {
    let path = match (namespace, name) {
        (namespace, Some(name)) => format!("/v1/breakers/{}/{name}", namespace.unwrap_or("default")),
        (Some(namespace), None) => format!("/v1/breakers?namespace={namespace}"),
        (None, None) => "/v1/breakers".to_owned(),
    };
    let client = server.client()?;
    let answer: Value = block_on(client.json(http::Method::GET, &path, &[], Bytes::new()))??;
    notes(&answer, "has not answered", "is of a version that cannot be asked");
    Ok(answer)
}

/// A list of an answer: `services` or `routes`.
pub(super) fn list(answer: &Value, key: &str) -> Vec<Value> {
    answer[key].as_array().cloned().unwrap_or_default()
}

/// What is to be said of a proxy's memory, if anything.
fn short_of_memory(told: &Value) -> Option<String> {
    let does = match told["pressure"].as_str()? {
        "tight" => "connections have less time for what they have begun",
        "full" => "it sends requests away",
        _ => return None,
    };
    let mib = |bytes: &Value| bytes.as_u64().unwrap_or_default() >> 20;
    Some(format!(
        "{} has {} of {} MiB of memory: {does}",
        told["proxy"].as_str().unwrap_or_default(),
        mib(&told["residentBytes"]),
        mib(&told["limitBytes"])
    ))
}

fn row(service: &Value, standing: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let breaker = &standing["breaker"];
    let limits = standing["limits"].as_array().into_iter().flatten();
    let limits = limits.map(|l| {
        let used = format!("{} {}/{}", text(&l["limit"]), l["inUse"], l["allowed"]);
        match l["shedding"].as_str() {
            Some(why) => format!("{used} (sends away: {why})"),
            None => used,
        }
    });
    let admission = &standing["admissionControl"];
    let held_back = admission["rejectionPercent"].as_u64().map(|percent| {
        let of = format!("{} of {} failed", admission["failed"], admission["calls"]);
        match admission["state"].as_str() {
            Some("holding_back") => format!("admissionControl {percent} % ({of}, holding back)"),
            _ => format!("admissionControl {percent} % ({of})"),
        }
    });
    let ejected = standing["ejected"].as_array().into_iter().flatten();
    let ejected = ejected.map(|e| {
        format!("{} ({}, {})", text(&e["address"]), text(&e["cause"]), seconds(&e["msLeft"], "on trial"))
    });
    let tripped = standing["tripped"].as_array().into_iter().flatten();
    let tripped = tripped.map(|e| format!("{} (breaker {})", text(&e["address"]), state(&e["breaker"])));
    let (calls, rejected) = match breaker {
        Value::Null => (String::new(), String::new()),
        _ => (
            format!("{}, {} failed, {} slow", breaker["calls"], breaker["failed"], breaker["slow"]),
            rejected(breaker),
        ),
    };
    let name = format!("{}/{}", text(&service["namespace"]), text(&service["name"]));
    let name = match (service["kind"].as_str(), service["rule"].as_str()) {
        (Some(kind), None | Some("")) => format!("{kind} {name}"),
        (Some(kind), Some(rule)) => format!("{kind} {name}/{rule}"),
        (None, _) => name,
    };
    vec![
        name,
        service["port"].as_u64().map(|port| port.to_string()).unwrap_or_default(),
        text(&standing["proxy"]),
        state(breaker),
        calls,
        headroom(standing),
        rejected,
        limits.chain(held_back).collect::<Vec<_>>().join(", "),
        ejected.chain(tripped).collect::<Vec<_>>().join(", "),
    ]
}

/// How many percent more of the calls may fail until a breaker opens, or calls are held back.
fn headroom(standing: &Value) -> String {
    let nearest = &standing["nearest"];
    let admission = &standing["admissionControl"];
    let of = [
        (&standing["breaker"]["headroomPercent"], String::new()),
        (
            &nearest["breaker"]["headroomPercent"],
            format!(" ({})", nearest["address"].as_str().unwrap_or_default()),
        ),
        (&admission["headroomPercent"], " (admissionControl)".to_owned()),
    ];
    let told = of.into_iter().filter_map(|(percent, whose)| Some(format!("{} %{whose}", percent.as_u64()?)));
    told.collect::<Vec<_>>().join(", ")
}

/// Calls that were refused, and those that only a policy that observes has let through.
fn rejected(breaker: &Value) -> String {
    match breaker["wouldReject"].as_u64() {
        None | Some(0) => breaker["rejected"].to_string(),
        Some(spared) => format!("{}, {spared} would be", breaker["rejected"]),
    }
}

/// The state that calls meet, and why.
fn state(breaker: &Value) -> String {
    let text = |name: &str| breaker[name].as_str().unwrap_or_default();
    if !text("forced").is_empty() {
        return format!("{} (forced, {})", text("state"), seconds(&breaker["forcedMsLeft"], "over"));
    }
    match (text("state"), text("mode")) {
        ("", _) => String::new(),
        (state, "observe") if !matches!(text("rates"), "" | "closed") => {
            let left = breaker["openMsLeft"].as_u64().filter(|left| *left > 0);
            let left = left.map(|_| format!(", {}", seconds(&breaker["openMsLeft"], "over")));
            format!(
                "{state} (observe: would be {}, {}{})",
                text("rates"),
                text("cause"),
                left.unwrap_or_default()
            )
        }
        (state, mode @ ("observe" | "forced_open" | "forced_closed")) => format!("{state} ({mode})"),
        (state, _) if text("cause").is_empty() => state.to_owned(),
        ("open", _) => format!("open ({}, {})", text("cause"), seconds(&breaker["openMsLeft"], "over")),
        (state, _) => format!("{state} ({})", text("cause")),
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
pub(super) fn seconds(millis: &Value, over: &str) -> String {
    match millis.as_u64() {
        None | Some(0) => over.to_owned(),
        Some(millis) => format!("{:.1} s left", millis as f64 / 1e3),
    }
}

fn order(which: &Which, state: &str, lasts: Option<&str>) -> Outcome {
    let Which { name, namespace, port, route, rule, server } = which;
    let mut body = json!({ "state": state });
    if let Some(lasts) = lasts {
        body["for"] = lasts.into();
    }
    if let Some(port) = port {
        body["port"] = (*port).into();
    }
    if let Some(rule) = rule {
        body["rule"] = rule.as_str().into();
    }
    let (path, what) = match (route, rule) {
        (false, _) => (format!("/v1/breakers/{namespace}/{name}"), format!("{namespace}/{name}")),
        (true, rule) => {
            let rule = rule.as_ref().map(|rule| format!("/{rule}")).unwrap_or_default();
            (format!("/v1/route-breakers/{namespace}/{name}"), format!("HTTPRoute {namespace}/{name}{rule}"))
        }
    };
    let client = server.client()?;
    let headers = [("content-type", "application/json")];
    let sent = client.json(http::Method::POST, &path, &headers, body.to_string().into());
    let answer: Value = block_on(sent)??;
    let done = match state {
        "none" => "policy and rates decide again",
        "open" => "forced open",
        _ => "forced closed",
    };
    output::print(&format!("{what}: {done} in {}\n", reach(&answer)))?;
    let unable = "is of a version that cannot be operated: it goes on as its policy says";
    notes(&answer, "has not answered; it hears of it when it is back", unable);
    Ok(ExitCode::SUCCESS)
}

/// In how many proxies an order is in effect, and of how many, where they are not all.
fn reach(answer: &Value) -> String {
    let named = |key: &str| -> Vec<&str> {
        answer[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let (done, absent) = (named("proxies").len(), named("notConnected"));
    let others = named("silent").len() + named("unable").len() + absent.len();
    match (others, absent.as_slice()) {
        (0, _) => format!("{done} proxies"),
        (_, []) => format!("{done} of {} proxies", done + others),
        (_, absent) => {
            format!("{done} of {} proxies; not connected: {}", done + others, absent.join(", "))
        }
    }
}

/// Names the proxies that an answer does not speak of.
fn notes(answer: &Value, silent: &str, unable: &str) {
    for (key, why) in [("silent", silent), ("unable", unable)] {
        let proxies = answer[key].as_array().into_iter().flatten().filter_map(Value::as_str);
        proxies.for_each(|proxy| output::note(&format!("{proxy} {why}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_short_of_memory_is_named() {
        let told = |pressure: &str| {
            short_of_memory(
                &json!({"proxy": "p", "residentBytes": 97 << 20, "limitBytes": 100 << 20, "pressure": pressure}),
            )
        };
        assert_eq!(told("full").as_deref(), Some("p has 97 of 100 MiB of memory: it sends requests away"));
        assert!(told("tight").is_some_and(|note| note.ends_with("less time for what they have begun")));
        assert_eq!(told("calm"), None);
    }

    #[test]
    fn headroom_says_whose_it_is() {
        let standing = json!({
            "breaker": {"headroomPercent": 38},
            "nearest": {"address": "10.0.0.1:80", "breaker": {"headroomPercent": 7}},
            "admissionControl": {"headroomPercent": 0},
        });
        assert_eq!(headroom(&standing), "38 %, 7 % (10.0.0.1:80), 0 % (admissionControl)");
        let forced = json!({"breaker": {"headroomPercent": null}, "nearest": null, "admissionControl": null});
        assert_eq!(headroom(&forced), "", "no rate decides");
    }

    #[test]
    fn what_would_be_refused_is_told_beside_what_is() {
        assert_eq!(rejected(&json!({"rejected": 3, "wouldReject": 33})), "3, 33 would be");
        assert_eq!(rejected(&json!({"rejected": 3, "wouldReject": 0})), "3");
        assert_eq!(rejected(&json!({"rejected": 3})), "3", "an older control plane");
    }

    #[test]
    fn an_order_says_how_many_it_has_reached_and_who_is_cut_off() {
        let all = json!({"proxies": ["a", "b"], "silent": [], "unable": [], "notConnected": []});
        assert_eq!(reach(&all), "2 proxies");
        assert_eq!(reach(&json!({"proxies": ["a"], "silent": ["b"]})), "1 of 2 proxies");
        let some = json!({"proxies": ["a"], "silent": [], "unable": ["b"], "notConnected": ["c", "d"]});
        assert_eq!(reach(&some), "1 of 4 proxies; not connected: c, d");
    }

    #[test]
    fn a_state_says_why() {
        let state = |value: Value| state(&value);
        assert_eq!(
            state(json!({"state": "open", "mode": "enforce", "forced": "open", "forcedMsLeft": 1500})),
            "open (forced, 1.5 s left)"
        );
        let rates = json!({"state": "open", "mode": "enforce", "cause": "failure_rate", "openMsLeft": 2500});
        assert_eq!(state(rates), "open (failure_rate, 2.5 s left)");
        assert_eq!(
            state(json!({"state": "closed", "mode": "observe", "cause": "failure_rate"})),
            "closed (observe)"
        );
        let observed = |rates: &str, left: u64| {
            state(json!({
                "state": "closed", "rates": rates, "mode": "observe", "cause": "failure_rate", "openMsLeft": left,
            }))
        };
        assert_eq!(observed("closed", 0), "closed (observe)");
        assert_eq!(observed("open", 2500), "closed (observe: would be open, failure_rate, 2.5 s left)");
        assert_eq!(observed("half_open", 0), "closed (observe: would be half_open, failure_rate)");
        assert_eq!(state(json!({"state": "closed", "mode": "enforce", "cause": ""})), "closed");
        assert_eq!(state(Value::Null), "");
    }
}
