//! What is in force stays so over a restart, and a process does not begin with a folder that it cannot take whole.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::support::process::HTTP;
use crate::support::{Gateway, Upstream, address, get, until, yaml};

/// Nobody gets to `/admin`.
const DENY: &str = "apiVersion: meshwork.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: deny}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: web}]
  action: Deny
  rules: [{to: [{paths: [/admin*]}]}]
";

fn files(upstream: &Upstream) -> String {
    let route = yaml::route("web", "  - backendRefs: [{name: web, port: 80}]");
    [yaml::EDGE, &route, &yaml::service("web", &[upstream.address])].concat()
}

fn typo(text: &str, word: &str) -> String {
    let (first, rest) = word.split_at(1);
    assert!(text.contains(word));
    text.replace(word, &format!("{first}x{rest}"))
}

fn status(gateway: &Gateway, path: &str) -> Option<u16> {
    get(gateway.at(HTTP), path).map(|(status, _)| status)
}

fn refused(gateway: &Gateway, file: &str) {
    until("it is refused", || (!gateway.findings(file).is_empty()).then_some(()));
}

#[test]
fn a_restart_changes_nothing_of_what_is_in_force_though_its_text_is_wrong_now() {
    let upstream = Upstream::start("web");
    let all = files(&upstream);
    let mut gateway = Gateway::start(&[("all.yaml", &all), ("deny.yaml", DENY)]);
    assert_eq!((status(&gateway, "/"), status(&gateway, "/admin")), (Some(200), Some(403)));

    gateway.write("deny.yaml", &typo(DENY, "paths"));
    refused(&gateway, "deny.yaml");
    gateway.restart(|_| {}, &[]);
    gateway.ready();
    assert_eq!((status(&gateway, "/"), status(&gateway, "/admin")), (Some(200), Some(403)));
    let shown = gateway.object("authorizationpolicy", "default", "deny");
    let told = shown["status"]["conditions"].as_array().unwrap().last().unwrap();
    assert_eq!(told["reason"], "LastValidServes", "{shown}");

    // Edited while the process was away, and once more.
    let half = all.find("appProtocol").unwrap() + 3;
    for torn in [typo(&all, "backendRefs"), all[..half].to_owned(), "garbage: [\n".to_owned()] {
        gateway.restart(|gateway| gateway.write("all.yaml", &torn), &[]);
        gateway.ready();
        assert_eq!((status(&gateway, "/"), status(&gateway, "/admin")), (Some(200), Some(403)));
    }
    // What is removed is gone, also then.
    gateway.restart(
        |gateway| {
            gateway.write("all.yaml", &all);
            gateway.remove("deny.yaml");
        },
        &[],
    );
    gateway.ready();
    assert_eq!(status(&gateway, "/admin"), Some(200));
}

#[test]
fn a_gateway_serves_nothing_and_is_not_ready_until_the_folder_it_starts_with_is_good() {
    let upstream = Upstream::start("web");
    let bad = typo(DENY, "paths");
    let both = [("all.yaml", &files(&upstream)[..]), ("deny.yaml", &bad)];
    let gateway = Gateway::spawn_at(address(), &both, &[]);
    let told = gateway.held();
    for words in ["AuthorizationPolicy default/deny is refused", "deny.yaml:7:", "pxaths", "--start-anyway"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert_eq!(status(&gateway, "/admin"), None, "nobody listens");
    assert!(gateway.stderr().contains("not started: AuthorizationPolicy"), "{}", gateway.stderr());
    let shown = gateway.ask(&["get", "authorizationpolicies"]);
    let (table, why) = (String::from_utf8_lossy(&shown.stdout), String::from_utf8_lossy(&shown.stderr));
    assert!(table.contains("Rejected=True (NeverValid)"), "{table}");
    assert!(why.contains("No good version of it is known"), "{why}");

    // Another mistake elsewhere is told, and the first one mended is not enough.
    gateway.write("more.yaml", "apiVersion: [");
    gateway.write("deny.yaml", DENY);
    until("the other one is told", || gateway.held().contains("more.yaml:1:").then_some(()));
    gateway.remove("more.yaml");
    gateway.ready();
    assert_eq!((status(&gateway, "/"), status(&gateway, "/admin")), (Some(200), Some(403)));

    // From now on an edit that is refused is one of many.
    gateway.write("more.yaml", "apiVersion: [");
    refused(&gateway, "more.yaml");
    gateway.ready();
}

#[test]
fn start_anyway_serves_what_is_good_and_the_next_start_with_the_same_folder_too() {
    let upstream = Upstream::start("web");
    let bad = typo(DENY, "paths");
    let both = [("all.yaml", &files(&upstream)[..]), ("deny.yaml", &bad)];
    let mut gateway = Gateway::start_at(address(), &both, &["--start-anyway"]);
    assert_eq!(status(&gateway, "/admin"), Some(200));
    assert!(gateway.stderr().contains("as --start-anyway says"), "{}", gateway.stderr());
    gateway.restart(|_| {}, &[]);
    gateway.ready();
    assert_eq!(status(&gateway, "/admin"), Some(200));
    gateway.restart(|gateway| gateway.write("deny.yaml", &typo(DENY, "rules")), &[]);
    assert!(gateway.held().contains("rxules"), "another text is another decision");
}

#[test]
fn a_file_that_cannot_be_read_holds_up_a_first_start_and_no_other_one() {
    let upstream = Upstream::start("web");
    let nowhere = |gateway: &Gateway| {
        fs::remove_file(gateway.file("deny.yaml")).unwrap();
        std::os::unix::fs::symlink("nowhere", gateway.file("deny.yaml")).unwrap();
    };
    let mut gateway = Gateway::start(&[("all.yaml", &files(&upstream)), ("deny.yaml", DENY)]);
    gateway.restart(nowhere, &[]);
    gateway.ready();
    assert_eq!(status(&gateway, "/admin"), Some(403));
    let kept = gateway.directory().join(".meshwork/gateway/last-good");
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o700);
    gateway.restart(|_| fs::remove_dir_all(&kept).unwrap(), &[]);
    let told = gateway.held();
    assert!(told.contains("deny.yaml cannot be read"), "{told}");
}
