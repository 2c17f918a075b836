//! `explain ID` and `explain --live` while the service at the end of a chain hangs: it is named, and not who waits for it.

use std::io::Write as _;
use std::net::TcpStream;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::support::platform::Platform;
use crate::support::{command, get, until};
use crate::usual::{Application, ask, before_front, python, trace};

/// Seconds; no test waits so long.
const FOR_EVER: &str = "3600";

/// Sends a request, and hangs up when it is dropped.
fn send(platform: &Platform, number: u32) -> TcpStream {
    let mut client = TcpStream::connect(platform.at(8080)).unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: shop\r\ntraceparent: 00-{}-00f067aa0ba902b7-01\r\n\r\n",
        trace(number)
    );
    client.write_all(request.as_bytes()).unwrap();
    client
}

fn explained(platform: &Platform, number: u32) -> Option<Value> {
    let output = platform.command(&["explain", &trace(number), "-o", "json"]);
    serde_json::from_slice(&output.stdout).ok()
}

fn hops<'a>(answer: &'a Value, service: &str) -> Vec<&'a Value> {
    let all = answer["hops"].as_array().into_iter().flatten();
    all.filter(|hop| hop["service"] == format!("default/{service}:80")).collect()
}

/// `explain --live`, once the gateway and both sidecars look.
fn watching(platform: &Platform, timeout: &str) -> Child {
    let server = format!("http://{}", platform.at(15014));
    let child = command(&["explain", "--live", "--host", "shop", "-o", "json", "--server", &server])
        .args(["--timeout", timeout])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("all look", || {
        let output = platform.command(&["proxies", "-o", "json"]);
        let proxies: Value = serde_json::from_slice(&output.stdout).ok()?;
        let look = proxies.as_array()?.iter().filter(|proxy| proxy["probes"] == 1).count();
        (look == 3).then_some(())
    });
    child
}

fn told(watch: Child) -> Value {
    let output = watch.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What is told as soon as the last call of the way is under way.
fn arrived(platform: &Platform, number: u32) -> Value {
    until("the last call is under way", || {
        explained(platform, number).filter(|answer| hops(answer, "back").len() == 2)
    })
}

/// Both sides of the call that hangs are there, and said not to have ended.
fn hangs(answer: &Value) {
    let back = hops(answer, "back");
    let sides: Vec<_> = back.iter().map(|hop| (&hop["side"], &hop["underWay"])).collect();
    let both = [(&json!("outbound"), &json!(true)), (&json!("inbound"), &json!(true))];
    assert_eq!(sides, both, "{answer:#}");
    assert_eq!(back[0]["verdict"]["outcome"], "underWay");
    assert_eq!(back[0]["attempts"][0]["instance"], "back-1", "{answer:#}");
}

#[test]
fn who_is_waited_for_is_named_while_it_hangs_whether_the_client_has_left_or_not() {
    let Some(python) = python() else { return };
    let platform = before_front();
    let run = |service, place, slow, asks| {
        let app = Application { service, place, takes: "0", slow, asks };
        app.run(&platform, &python, &["--protocol", "http"])
    };
    let _back = run("back", 1, FOR_EVER, "");
    let _front = run("front", 2, "0", "http://back/stock/17");
    until("the edge reaches it", || get(platform.at(8080), "/").filter(|(status, _)| *status == 200));
    ask(&platform, "/", 1);
    std::fs::write(platform.data.path().join("fault"), "").unwrap();

    // Nothing of it has ended.
    let client = send(&platform, 2);
    let answer = arrived(&platform, 2);
    hangs(&answer);
    // That may be no longer than it ordinarily takes.
    let named = if answer["fault"].is_null() { &answer["waits"] } else { &answer["fault"] };
    assert_eq!(named["service"], "default/back:80", "{answer:#}");
    assert_eq!(named["underWay"], true);
    assert_eq!(answer["notTellingUnderWay"], json!([]), "all of them do");
    // The client leaves, and what called the application has ended with that.
    drop(client);
    let answer = until("the edge has seen it leave", || {
        let answer = explained(&platform, 2)?;
        hops(&answer, "front").iter().all(|hop| hop["kept"] == "failed").then_some(answer)
    });
    hangs(&answer);
    assert_eq!(hops(&answer, "front").len(), 2, "the gateway and the sidecar: {answer:#}");
    assert_eq!(answer["fault"]["service"], "default/back:80", "{answer:#}");
    let words = String::from_utf8(platform.command(&["explain", &trace(2)]).stdout).unwrap();
    for told in [
        "fault      default/back:80: the application of default/back:80 has not answered for ",
        ": its call has not ended",
        "answer     none yet (phase request) after ",
    ] {
        assert!(words.contains(told), "{told}: {words}");
    }

    // The same, of whoever was waited for live: first one whose client leaves, then one that does not.
    let watch = watching(&platform, "60s");
    let client = send(&platform, 3);
    arrived(&platform, 3);
    drop(client);
    hangs(&told(watch));
    let watch = watching(&platform, "5s");
    let _client = send(&platform, 4);
    arrived(&platform, 4);
    let answer = told(watch);
    hangs(&answer);
    assert_eq!(answer["hops"][0]["matched"], "filter", "{answer:#}");
    assert!(!answer["hops"][0]["steps"].as_array().unwrap().is_empty(), "{answer:#}");
}
