//! The gateway judged by a suite that nobody here wrote.

use std::process::Command;

use crate::support::{Gateway, Upstream, yaml};

/// Cases of httpwg-cli 0.2.5 that pass, of 107. What fails, and why, is in docs/http.md.
const PASSING: u32 = 105;

#[test]
fn httpwg_finds_no_more_than_what_is_known() {
    let Some(httpwg) = meshwork_testkit::tool("httpwg") else { return };
    let upstream = Upstream::start("web");
    let route = yaml::route("web", "  - backendRefs: [{name: web, port: 80}]");
    let files = [yaml::EDGE, &route, &yaml::service("web", &[upstream.address])].concat();
    let gateway = Gateway::start(&[("all.yaml", &files)]);
    let mut command = Command::new(httpwg);
    command.args(["--address", &gateway.at(8080).to_string()]);
    command.args(["--connect-timeout", "10000", "--frame-timeout", "5000"]);
    let output = command.env("NO_COLOR", "1").output().expect("the suite runs");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let failed: Vec<_> = said.lines().filter(|line| line.contains("❌")).collect();
    let (passed, all) = score(&said).unwrap_or_else(|| panic!("no result: {said}"));
    assert_eq!(all, 107, "{said}");
    assert!(passed >= PASSING, "{passed} of {all}: {failed:#?}");
}

/// The numbers of `Passed N/M tests`, without the colours around them.
fn score(said: &str) -> Option<(u32, u32)> {
    let mut plain = String::new();
    let mut parts = said.split('\x1b');
    plain.push_str(parts.next()?);
    parts.for_each(|part| plain.push_str(part.split_once('m').map_or("", |(_, text)| text)));
    let (_, result) = plain.rsplit_once("Passed ")?;
    let (passed, all) = result.split_once(" tests")?.0.split_once('/')?;
    Some((passed.trim().parse().ok()?, all.trim().parse().ok()?))
}
