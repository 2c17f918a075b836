//! A gateway that stood still for a while, as a machine does that is suspended or moved.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::curl::Reply;
use crate::support::{Curl, Gateway, Upstream, until, yaml};

const LIMIT: Duration = Duration::from_secs(1);

#[test]
#[expect(clippy::disallowed_methods, reason = "the time of a process that stands still goes on")]
fn an_answer_that_came_while_the_gateway_stood_still_is_no_time_out() {
    let Some(curl) = Curl::find() else { return };
    let upstream = Upstream::start("web");
    let route = yaml::route("web", "  - timeouts: {request: 1s}\n    backendRefs: [{name: web, port: 80}]");
    let files = [yaml::EDGE, &route, &yaml::service("web", &[upstream.address])].concat();
    let gateway = Gateway::start(&[("all.yaml", &files)]);
    let mut command = curl.command(&["--http1.1", "-H", "x-hold: 1", &gateway.url("/")]);
    let began = Instant::now();
    let asking = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the request is with the upstream", || (upstream.hits() > 0).then_some(()));
    gateway.signal("STOP");
    assert!(began.elapsed() < LIMIT, "this machine is too busy to tell");
    upstream.release();
    // The answer comes and the time runs out while it stands still.
    std::thread::sleep(2 * LIMIT);
    gateway.signal("CONT");
    let output = asking.wait_with_output().unwrap();
    let reply = Reply::parse(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(reply.seen()["server"], "web");
    assert_eq!(gateway.log(1)[0]["response_code"], 200);
}
