//! `meshwork top`: rates, success, latencies, breakers and overload of services, live.

mod breakers;
mod overload;
mod screen;

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use meshwork_api::{Client, ClientError};
use meshwork_process::parse_duration;
use serde::{Deserialize, Serialize};

use super::{Outcome, block_on};
use crate::output::{self, Format};
use crate::server::ServerArgs;
use breakers::{Admission, Breaker, Breakers};
use overload::{Kept, Overload};
use screen::{LeftOut, Screen};

/// Show rates, success, latencies, circuit breakers and overload of services, live
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: ServerArgs,
    /// The time that each table tells of
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_duration)]
    interval: Duration,
    /// Print one table and end
    #[arg(long)]
    once: bool,
    /// Services of this namespace alone
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// The control plane's answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Top {
    at_ms: u64,
    proxies: Vec<Proxy>,
    silent: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Proxy {
    id: String,
    services: Vec<Counted>,
    breakers: Vec<Breaker>,
    /// An older control plane says nothing of it.
    #[serde(default)]
    overloads: Vec<Kept>,
    #[serde(default)]
    admissions: Vec<Admission>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Counted {
    service: String,
    reporter: String,
    requests: u64,
    failed: u64,
    buckets: Vec<u64>,
    bounds_ms: Vec<f64>,
}

/// One line of the table.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    /// Absent: a service; else `HTTPRoute`, whose rows tell of its breaker alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    /// `NAMESPACE/NAME`; of a route's rule `NAMESPACE/NAME/RULE`.
    service: String,
    /// None of a route.
    requests_per_second: Option<f64>,
    /// Percent; none without requests.
    success: Option<f64>,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    /// Of each state of the breaker of a port, and of those of endpoints that are not closed: how many proxies say so.
    breakers: BTreeMap<String, usize>,
    /// Percent of calls that may fail, or be slow, beyond those that do, until a breaker opens: in the proxy where it is
    /// nearest; none where no rates decide.
    headroom_percent: Option<u32>,
    /// Percent of calls that are held back since too few succeed: in the proxy where it is most; none without such a policy.
    held_back_percent: Option<u32>,
    /// What is kept from it; none where no policy says so.
    overload: Option<Overload>,
}

/// What is told to scripts: the table, and who is missing from it.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Told<'a> {
    Row(&'a Row),
    /// A proxy that has not answered: the other rows say nothing of what it has seen.
    Silent {
        kind: &'static str,
        proxy: &'a str,
        answered: bool,
    },
}

fn told<'a>(rows: &'a [Row], now: &'a Top) -> Vec<Told<'a>> {
    let silent = now.silent.iter().map(|proxy| Told::Silent { kind: "Proxy", proxy, answered: false });
    rows.iter().map(Told::Row).chain(silent).collect()
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    if arguments.interval < Duration::from_millis(100) {
        output::note("error: --interval: at least 100ms");
        return Ok(ExitCode::from(2));
    }
    let client = arguments.server.client()?;
    let redraws = arguments.output == Format::Table && !arguments.once && std::io::stdout().is_terminal();
    block_on(async {
        let mut before = ask(&client).await?;
        loop {
            tokio::time::sleep(arguments.interval).await;
            let now = match ask(&client).await {
                Err(error) if redraws && passes(&error) => {
                    output::failure(&error);
                    continue;
                }
                now => now?,
            };
            let mut rows = rows(&before, &now);
            let wanted = arguments.namespace.as_ref().map(|namespace| format!("{namespace}/"));
            rows.retain(|row| wanted.as_ref().is_none_or(|wanted| row.service.starts_with(wanted)));
            if redraws {
                output::clear()?;
            }
            show(arguments, rows, &now, if redraws { Screen::of_stdout() } else { None })?;
            // An empty line parts the tables, and tells whether somebody still reads.
            if arguments.once || !output::line("")? {
                return Ok(ExitCode::SUCCESS);
            }
            before = now;
        }
    })?
}

/// Whether whoever watches goes on watching: it may be a control plane that starts anew.
fn passes(error: &ClientError) -> bool {
    error.is_temporary()
}

async fn ask(client: &Client) -> Result<Top, ClientError> {
    client.json(http::Method::GET, "/v1/top", &[], Bytes::new()).await
}

fn show(
    arguments: &Arguments,
    mut rows: Vec<Row>,
    now: &Top,
    screen: Option<Screen>,
) -> Result<(), Box<dyn std::error::Error>> {
    match arguments.output {
        Format::Json => {
            return Ok(output::print(&output::plain_json(&format!(
                "{}\n",
                serde_json::to_string(&told(&rows, now))?
            )))?);
        }
        Format::Yaml => {
            output::print("---\n")?;
            return output::value(Format::Yaml, &told(&rows, now));
        }
        Format::Table => {}
    }
    let left_out =
        screen.map_or_else(LeftOut::default, |screen| screen.keep(&mut rows, !now.silent.is_empty()));
    let cut = |text: String| screen.map_or_else(|| text.clone(), |screen| screen.cut(&text));
    output::print(&cut(table(&rows)))?;
    if left_out.rows > 0 {
        output::print(&cut(format!("{left_out}\n")))?;
    }
    if !now.silent.is_empty() {
        output::note(cut(format!("no answer from {}", now.silent.join(", "))).trim_end());
    }
    Ok(())
}

fn table(rows: &[Row]) -> String {
    let number = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    let cells = rows.iter().map(|row| {
        let breakers: Vec<String> =
            row.breakers.iter().map(|(state, proxies)| format!("{state} in {proxies}")).collect();
        let percent = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        vec![
            row.kind.map_or_else(String::new, |kind| format!("{kind} ")) + &row.service,
            number(row.requests_per_second, 1),
            number(row.success, 2),
            number(row.p50_ms, 1),
            number(row.p99_ms, 1),
            if breakers.is_empty() { "-".to_owned() } else { breakers.join(", ") },
            percent(row.headroom_percent),
            percent(row.held_back_percent),
            row.overload.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
        ]
    });
    let head = [
        "SERVICE",
        "RATE/S",
        "SUCCESS %",
        "P50 MS",
        "P99 MS",
        "BREAKER",
        "HEADROOM %",
        "HELD BACK %",
        "OVERLOAD",
    ];
    output::tabled(&head, cells)
}

#[derive(Clone, Default)]
struct Sum {
    requests: u64,
    failed: u64,
    buckets: Vec<u64>,
    bounds: Vec<f64>,
}

/// What happened between two answers. A service is told as its callers have seen it; where none of them has a proxy, as
/// its own side has.
fn rows(before: &Top, now: &Top) -> Vec<Row> {
    let mut sums: BTreeMap<(&str, &str), Sum> = BTreeMap::new();
    for proxy in &now.proxies {
        let earlier = before.proxies.iter().find(|earlier| earlier.id == proxy.id);
        for is in &proxy.services {
            let same = |was: &&Counted| was.service == is.service && was.reporter == is.reporter;
            // Of a proxy that did not answer before it is not known since when it counts.
            let Some(earlier) = earlier else { continue };
            let was = earlier.services.iter().find(same).filter(|was| was.requests <= is.requests);
            let sum = sums.entry((&is.service, &is.reporter)).or_default();
            sum.requests += is.requests - was.map_or(0, |was| was.requests);
            sum.failed += is.failed.saturating_sub(was.map_or(0, |was| was.failed));
            sum.bounds.clone_from(&is.bounds_ms);
            sum.buckets.resize(is.buckets.len().max(sum.buckets.len()), 0);
            for (at, count) in is.buckets.iter().enumerate() {
                let was = was.and_then(|was| was.buckets.get(at)).copied().unwrap_or(0);
                sum.buckets[at] += count.saturating_sub(was);
            }
        }
    }
    let (mut breakers, routes) = breakers::of(now);
    let mut services: BTreeSet<&str> = sums.keys().map(|(service, _)| *service).collect();
    services.extend(breakers.keys());
    services.extend(now.proxies.iter().flat_map(|proxy| &proxy.overloads).map(|kept| &*kept.service));
    let seconds = (now.at_ms.saturating_sub(before.at_ms)) as f64 / 1000.0;
    let of_service = |service: &str| {
        let of = |reporter| sums.get(&(service, reporter)).filter(|sum| sum.requests > 0);
        let sum = of("source").or(of("destination")).cloned().unwrap_or_default();
        let Breakers { states, headroom_percent, held_back_percent } =
            breakers.remove(service).unwrap_or_default();
        Row {
            kind: None,
            service: service.to_owned(),
            requests_per_second: Some(if seconds > 0.0 { sum.requests as f64 / seconds } else { 0.0 }),
            success: (sum.requests > 0).then(|| 100.0 * (1.0 - sum.failed as f64 / sum.requests as f64)),
            p50_ms: quantile(&sum, 0.5),
            p99_ms: quantile(&sum, 0.99),
            breakers: states,
            headroom_percent,
            held_back_percent,
            overload: Overload::of(service, before, now, seconds),
        }
    };
    let mut rows: Vec<Row> = services.into_iter().map(of_service).collect();
    rows.extend(routes.into_iter().map(|(route, breakers)| Row::of_route(route, breakers)));
    rows
}

impl Row {
    /// Whether calls fail, or a breaker is not closed.
    fn is_in_trouble(&self) -> bool {
        let is_open = |state: &String| !state.starts_with("closed") || state.contains("would be");
        self.success.is_some_and(|percent| percent < 100.0) || self.breakers.keys().any(is_open)
    }

    fn of_route(route: &str, breakers: Breakers) -> Self {
        Self {
            kind: Some("HTTPRoute"),
            service: route.to_owned(),
            requests_per_second: None,
            success: None,
            p50_ms: None,
            p99_ms: None,
            breakers: breakers.states,
            headroom_percent: breakers.headroom_percent,
            held_back_percent: None,
            overload: None,
        }
    }
}

/// As Prometheus' `histogram_quantile`: even within a bucket; the last bound for what is beyond it.
fn quantile(sum: &Sum, share: f64) -> Option<f64> {
    let total: u64 = sum.buckets.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = share * total as f64;
    let mut below = 0.0;
    let mut from = 0.0;
    for (count, bound) in sum.buckets.iter().zip(&sum.bounds) {
        let count = *count as f64;
        if below + count >= rank && count > 0.0 {
            return Some(from + (bound - from) * (rank - below) / count);
        }
        below += count;
        from = *bound;
    }
    Some(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(at_ms: u64, proxies: &[(&str, &str, u64, u64, [u64; 3])]) -> Top {
        let proxies = proxies.iter().map(|(id, reporter, requests, failed, buckets)| Proxy {
            id: (*id).to_owned(),
            services: vec![Counted {
                service: "shop/web".to_owned(),
                reporter: (*reporter).to_owned(),
                requests: *requests,
                failed: *failed,
                buckets: buckets.to_vec(),
                bounds_ms: vec![10.0, 20.0],
            }],
            breakers: vec![Breaker::of_test("shop/web", "", "open", Some(0))],
            overloads: Vec::new(),
            admissions: Vec::new(),
        });
        Top { at_ms, proxies: proxies.collect(), silent: Vec::new() }
    }

    #[test]
    fn rates_are_what_lies_between_two_answers() {
        let before = answer(1000, &[("a", "source", 100, 1, [100, 0, 0]), ("b", "source", 7, 7, [7, 0, 0])]);
        let now = answer(3000, &[("a", "source", 200, 26, [150, 50, 0]), ("b", "source", 7, 7, [7, 0, 0])]);
        let row = &rows(&before, &now)[0];
        assert_eq!((row.requests_per_second, row.success), (Some(50.0), Some(75.0)));
        assert_eq!((row.p50_ms, row.p99_ms), (Some(10.0), Some(19.8)));
        assert_eq!(row.breakers["open (:80)"], 2);
    }

    #[test]
    fn a_proxy_that_started_anew_counts_from_nothing_and_one_that_was_silent_counts_later() {
        let before = answer(0, &[("a", "source", 1000, 0, [1000, 0, 0])]);
        let now =
            answer(1000, &[("a", "source", 10, 0, [10, 0, 0]), ("new", "source", 9000, 0, [9000, 0, 0])]);
        assert_eq!(rows(&before, &now)[0].requests_per_second, Some(10.0));
    }

    #[test]
    fn who_is_refused_is_not_refused_again_and_again() {
        let refused =
            |status| ClientError::Refused { server: "http://a".to_owned(), status, problem: Box::default() };
        assert!(!passes(&refused(http::StatusCode::UNAUTHORIZED)));
        let unexpected = ClientError::Unexpected { server: "http://a".to_owned(), why: "HTML".to_owned() };
        assert!(!passes(&unexpected), "another server");
        assert!(passes(&refused(http::StatusCode::TOO_MANY_REQUESTS)));
        assert!(passes(&ClientError::Unreachable {
            server: "http://a".to_owned(),
            cause: "gone".to_owned()
        }));
    }

    #[test]
    fn scripts_hear_who_has_not_answered() {
        let answered = answer(1000, &[("a", "source", 10, 0, [10, 0, 0])]);
        let now = Top { silent: vec!["shop/web-3".to_owned()], ..answered };
        let rows = rows(&now, &now);
        let json = serde_json::to_value(told(&rows, &now)).expect("it is JSON");
        assert_eq!(json[0]["service"], "shop/web", "a service is told as before");
        let silent = serde_json::json!({"kind": "Proxy", "proxy": "shop/web-3", "answered": false});
        assert_eq!(json.as_array().map(|all| &all[1..]), Some(&[silent][..]));
    }

    #[test]
    fn a_service_is_told_as_its_callers_have_seen_it() {
        let before = answer(0, &[("a", "source", 0, 0, [0; 3]), ("b", "destination", 0, 0, [0; 3])]);
        let now = answer(1000, &[("a", "source", 10, 0, [10, 0, 0]), ("b", "destination", 9, 0, [9, 0, 0])]);
        assert_eq!(rows(&before, &now)[0].requests_per_second, Some(10.0));
        let plain = answer(1000, &[("b", "destination", 9, 0, [9, 0, 0])]);
        assert_eq!(rows(&before, &plain)[0].requests_per_second, Some(9.0));
    }

    #[test]
    fn what_is_beyond_the_last_bound_is_told_as_that_bound() {
        let sum = Sum { requests: 1, failed: 0, buckets: vec![0, 0, 5], bounds: vec![10.0, 20.0] };
        assert_eq!(quantile(&sum, 0.99), Some(20.0));
        assert_eq!(quantile(&Sum::default(), 0.5), None);
    }
}
