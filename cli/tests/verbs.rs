//! What operators and scripts type, against a running platform: exit codes, output, bad input, a server that is away.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;
use support::platform::{Platform, assert_ok, next};
use support::yaml::{EDGE, route};
use support::{command, exchange, get, until};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn printed(output: &Output) -> String {
    assert_ok(output);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&printed(output)).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// It must fail with 1, say these words on stderr, and print nothing.
fn refused(output: &Output, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    for word in words {
        assert!(said.contains(word), "{word:?} in {said}");
    }
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// A platform whose folder has the gateway; routes come by `apply`.
fn platform(resources: &Path) -> Platform {
    std::fs::write(resources.join("edge.yaml"), EDGE).unwrap();
    let platform = Platform::new();
    assert_ok(&platform.up(&["--no-shop", "--resources", resources.to_str().unwrap()]));
    platform
}

/// A route that answers by itself: which revision is in effect shows without a backend.
fn redirect(to: &str) -> String {
    let filter = format!(
        "{{type: RequestRedirect, requestRedirect: {{path: {{type: ReplaceFullPath, replaceFullPath: {to}}}}}}}"
    );
    route("web", &format!("  - filters: [{filter}]"))
}

fn status(platform: &Platform) -> u16 {
    get(platform.at(8080), "/").unwrap().0
}

/// What `get` prints is what `apply` takes.
fn is_taken_again(platform: &Platform, folder: &Path, get: &[&str]) {
    let yaml = printed(&platform.command(get));
    assert!(yaml.contains("kind: HTTPRoute") && !yaml.contains('{'), "{yaml}");
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("dump.yaml");
    std::fs::write(&file, &yaml).unwrap();
    let path = file.to_str().unwrap();
    // The gateway is in the folder.
    assert_ok(&command(&["check", "-f", path, "-f", folder.to_str().unwrap()]).output().unwrap());
    let diff = printed(&platform.command(&["diff", "-f", path]));
    assert!(diff.contains(" HTTPRoute default/web\n") && !diff.contains("source"), "{diff}");
    assert_ok(&platform.command(&["apply", "-f", path, "--wait"]));
    assert_eq!(status(platform), 302, "{yaml}");
}

#[test]
fn a_route_is_applied_changed_rolled_back_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let platform = platform(folder.path());
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("web.yaml");
    let path = file.to_str().unwrap();
    let written = |text: &str| std::fs::write(&file, text).unwrap();
    written(&redirect("/one"));
    let plan = json(&platform.command(&["diff", "-f", path, "-o", "json"]));
    assert_eq!((&plan[0]["action"], &plan[0]["kind"]), (&"create".into(), &"HTTPRoute".into()), "{plan}");
    assert_eq!(status(&platform), 404, "a diff changes nothing");

    let wait = ["--wait", "--timeout", "30s"];
    let by = ["--author", "ann", "-m", "first\nline"];
    let applied = platform.command(&[&["apply", "-f", path, "-o", "json"][..], &by, &wait].concat());
    let applied = json(&applied);
    assert_eq!(keys(&applied), ["configRevision", "revision", "versions", "warnings"].into());
    assert_eq!(applied["versions"][0]["revision"], 1);
    assert_eq!(status(&platform), 302, "after --wait it is in effect");

    written(&redirect("/two"));
    let diff = printed(&platform.command(&["diff", "-f", path]));
    assert!(diff.starts_with("update HTTPRoute default/web\n"), "{diff}");
    assert!(diff.contains("- /spec/") && diff.contains("\"/one\"") && diff.contains("\"/two\""), "{diff}");
    let table = printed(&platform.command(&[&["apply", "-f", path][..], &wait].concat()));
    assert!(table.starts_with("KIND") && table.contains("is in effect on 1 of 1 proxies"), "{table}");
    let diff = printed(&platform.command(&["diff", "-f", path]));
    assert_eq!(diff, "unchanged HTTPRoute default/web\n");

    let history = json(&platform.command(&["history", "route", "web", "-o", "json"]));
    let all = ["author", "deleted", "hash", "kind", "message", "name", "namespace", "revision", "time"];
    assert_eq!(keys(&history[0]), all.into());
    assert_eq!((&history[1]["author"], &history[1]["message"]), (&"local:ann".into(), &"first\nline".into()));
    let table = printed(&platform.command(&["history", "HTTPRoute", "web"]));
    assert!(table.lines().count() == 3 && table.contains("first line"), "one line each: {table}");

    let gone = platform.command(&[&["delete", "httproute", "web", "-m", "over"][..], &wait].concat());
    assert!(printed(&gone).contains("HTTPRoute"), "{gone:?}");
    assert_eq!(status(&platform), 404, "after --wait it is gone");
    refused(&platform.command(&["get", "route", "web"]), &["HTTPRoute default/web"]);
    refused(&platform.command(&["delete", "route", "web"]), &["HTTPRoute default/web", "MW4103"]);
    let table = printed(&platform.command(&["history", "route", "web"]));
    assert!(table.contains("(removed) over"), "{table}");

    let back =
        [&["rollback", "route", "web", "--to", "1", "--author", "bob", "-o", "json"][..], &wait].concat();
    assert_eq!(json(&platform.command(&back))["versions"][0]["revision"], 4);
    assert_eq!(status(&platform), 302, "what was removed is back");
    let history = json(&platform.command(&["history", "route", "web", "-o", "json"]));
    assert_eq!(history[0]["message"], "rolled back to revision 1");
    refused(&platform.command(&["rollback", "route", "web", "--to", "99"]), &["99"]);
    refused(&platform.command(&["rollback", "route", "typo", "--to", "1"]), &["typo"]);
    refused(&platform.command(&["history", "route", "typo"]), &["typo"]);

    let object = json(&platform.command(&["get", "httproute", "web", "-o", "json"]));
    assert_eq!(object["metadata"]["generation"], 4);
    assert_eq!(object["source"]["file"], "config:default/HTTPRoute/web@4");
    assert_eq!(object["status"]["parents"][0]["conditions"][0]["status"], "True", "{object}");
    is_taken_again(&platform, folder.path(), &["get", "httproute", "web", "-o", "yaml"]);
    is_taken_again(&platform, folder.path(), &["get", "httproutes", "-o", "yaml"]);
    assert_ok(&platform.command(&["delete", "-f", path, "--wait"]));
    assert_eq!(status(&platform), 404);
    refused(&platform.command(&["delete", "-f", path]), &["HTTPRoute default/web", "nothing was removed"]);
    let none = platform.command(&["delete", "-f", path, "--ignore-not-found", "--wait"]);
    assert_ok(&none);
    assert!(said(&none).contains("nothing was removed"), "{none:?}");
    // What a folder defines is not the config service's to remove.
    refused(&platform.command(&["delete", "gateway", "edge"]), &["edge.yaml", "remove it there"]);
}

#[test]
fn who_has_served_keeps_its_traffic_when_another_of_an_earlier_name_wants_it() {
    let folder = tempfile::tempdir().unwrap();
    let platform = platform(folder.path());
    let elsewhere = tempfile::tempdir().unwrap();
    let apply = |name: &str, to: &str| {
        let file = elsewhere.path().join("route.yaml");
        let text = redirect(to).replace("name: web", &format!("name: {name}"));
        std::fs::write(&file, text).unwrap();
        platform.command(&["apply", "-f", file.to_str().unwrap(), "--wait"])
    };
    let served = || {
        let answer =
            exchange(platform.at(8080), b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut lines = answer.lines();
        lines
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("location: ").map(str::to_owned))
            .unwrap()
    };
    let by = |to: &str| format!("http://x:8080{to}");
    assert_ok(&apply("z", "/old"));
    assert_eq!(served(), by("/old"));
    let told = said(&apply("a0", "/new"));
    assert!(told.contains("HTTPRoute default/z, which is older, has the same match"), "{told}");
    assert_eq!(served(), by("/old"), "who came first keeps it");
    assert_ok(&apply("z", "/edited"));
    assert_eq!(served(), by("/edited"), "an edit makes nobody younger");
    // What was removed and comes back is the youngest.
    assert_ok(&platform.command(&["delete", "route", "z", "--wait"]));
    assert_eq!(served(), by("/new"));
    assert_ok(&platform.command(&["rollback", "route", "z", "--to", "1", "--wait"]));
    assert_eq!(served(), by("/new"));
    let age = |name: &str| {
        let object = json(&platform.command(&["get", "route", name, "-o", "json"]));
        object["metadata"]["creationTimestamp"].as_str().unwrap().to_owned()
    };
    assert!(age("a0") < age("z"));
}

#[test]
fn what_cannot_be_done_is_refused_with_its_reason_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let platform = platform(folder.path());
    let other = tempfile::tempdir().unwrap();
    let file = other.path().join("bad.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, redirect("/one").replace("filters", "filterz")).unwrap();
    for verb in ["apply", "diff", "delete"] {
        refused(&platform.command(&[verb, "-f", path]), &["MW1008", "bad.yaml:7", "filterz"]);
    }
    std::fs::write(&file, "").unwrap();
    for verb in ["apply", "diff", "delete"] {
        refused(&platform.command(&[verb, "-f", path]), &["document"]);
        refused(&platform.command(&[verb, "-f", "/nowhere"]), &["/nowhere"]);
        let empty = tempfile::tempdir().unwrap();
        refused(&platform.command(&[verb, "-f", empty.path().to_str().unwrap()]), &["*.yaml"]);
    }
    // The folder has it: two places for one object are a riddle.
    std::fs::write(&file, EDGE).unwrap();
    refused(&platform.command(&["apply", "-f", path]), &["edge.yaml"]);
    refused(&platform.command(&["get", "gatewayz"]), &["gatewayz", "HTTPRoute"]);
    assert_eq!(printed(&platform.command(&["get", "routes", "-o", "json"])).trim(), "[]");
    for wrong in [
        &["apply"][..],
        &["apply", "-f", path, "--timeout", "soon"],
        &["rollback", "route", "web"],
        &["delete"],
        &["delete", "route"],
        &["delete", "route", "web", "-f", path],
        &["delete", "-f", path, "-n", "shop"],
        &["token", "create"],
        &["token", "create", "--service", "web", "--ttl", "long"],
        &["services", "-o", "xml"],
    ] {
        let output = platform.command(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", said(&output));
    }
    refused(&platform.command(&["token", "create", "--service", "Bad_Name"]), &["workload"]);
    refused(&platform.command(&["token", "create", "--service", "web", "--uses", "0"]), &["uses"]);

    // No proxy is behind: --wait that cannot come true says who is.
    let pid = support::platform::pid_in(&platform.data.path().join("gateway/pid")).unwrap();
    support::platform::signal("STOP", pid);
    std::fs::write(&file, redirect("/one")).unwrap();
    let output = platform.command(&["apply", "-f", path, "--wait", "--timeout", "200ms"]);
    support::platform::signal("CONT", pid);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("MW4105") && said(&output).contains("gateway/"), "{}", said(&output));
    until("it goes on", || (status(&platform) == 302).then_some(()));
}

#[test]
fn proxies_and_services_are_told_to_scripts_as_promised() {
    let Some(python) = meshwork_testkit::tool("python3") else { return };
    let folder = tempfile::tempdir().unwrap();
    let platform = platform(folder.path());
    let proxies = json(&platform.command(&["proxies", "-o", "json"]));
    let promised = "id role service identity address pid version connected modelRevision effectiveRevision workers lastError";
    assert!(keys(&proxies[0]).is_superset(&promised.split(' ').collect()), "{proxies}");
    assert_eq!(proxies[0]["identity"], "spiffe://mesh.local/ns/meshwork/sa/gateway");

    let app = "import http.server, os\nhttp.server.HTTPServer((os.environ['HOST'], int(os.environ['PORT'])), http.server.SimpleHTTPRequestHandler).serve_forever()";
    let app = [python.to_str().unwrap(), "-c", app];
    let more = ["--app-version", "7", "--protocol", "http", "--label", "tier=main", "--label", "team=web"];
    let more = [&more[..], &["--weight", "3"]].concat();
    let _web = platform.run("web", next(platform.base, 1), &more, &app);
    let services = until("the instance is registered", || {
        let services = json(&platform.command(&["services", "-o", "json"]));
        services.as_array().unwrap().iter().any(|service| service["name"] == "web").then_some(services)
    });
    let web = services.as_array().unwrap().iter().find(|service| service["name"] == "web").unwrap();
    assert!(keys(web).is_superset(&["name", "namespace", "instances"].into()), "{web}");
    let promised = "id address ports workload version zone weight tags metadata health leaseExpires";
    let instance = &web["instances"][0];
    assert!(keys(instance).is_superset(&promised.split(' ').collect()), "{instance}");
    assert_eq!((&instance["version"], &instance["weight"]), (&"7".into(), &3.into()));
    assert_eq!(
        (&instance["metadata"]["tier"], &instance["metadata"]["team"]),
        (&"main".into(), &"web".into())
    );
    assert_eq!(printed(&platform.command(&["services", "-n", "other", "-o", "json"])).trim(), "[]");
}

#[test]
fn the_socket_in_the_data_directory_is_its_owners_and_what_commands_use() {
    let folder = tempfile::tempdir().unwrap();
    let platform = platform(folder.path());
    let socket = platform.data.path().join("control-plane/api.sock");
    let named = format!("unix:{}", socket.display());
    assert_eq!(platform.endpoints()["controlPlaneSocket"], *named);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let seen = json(&platform.command(&["proxies", "-o", "json", "--server", &named]));
    assert_eq!(seen[0]["role"], "gateway");
    refused(
        &platform.command(&["services", "--server", "unix:/nowhere"]),
        &["unix:/nowhere cannot be reached"],
    );
    // Without --server it is the one that endpoints.json names.
    std::fs::remove_file(&socket).unwrap();
    refused(&platform.command(&["services"]), &[&named, "cannot be reached"]);
}

#[test]
fn a_reader_that_leaves_is_no_error_and_a_server_that_is_away_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let platform = platform(folder.path());
    // `meshwork services | head -1`
    for verb in [&["services"][..], &["proxies", "-o", "json"], &["get", "gateways", "-o", "yaml"]] {
        let data = platform.data.path().to_str().unwrap();
        let mut child = command(&[verb, &["--data-dir", data]].concat());
        let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), said(&output)), (Some(0), String::new()), "{verb:?}");
    }

    assert_ok(&platform.command(&["down"]));
    let away = format!("http://{}", platform.at(15014));
    let file = folder.path().join("edge.yaml");
    let path = file.to_str().unwrap();
    for verb in [
        &["apply", "-f", path][..],
        &["diff", "-f", path],
        &["delete", "gateway", "edge"],
        &["history", "gateway", "edge"],
        &["rollback", "gateway", "edge", "--to", "1"],
        &["get", "gateways"],
        &["services"],
        &["proxies"],
        &["token", "create", "--service", "web"],
    ] {
        let output = platform.command(&[verb, &["--server", &away]].concat());
        refused(&output, &[&away, "cannot be reached", "check that it runs"]);
    }
    refused(&platform.command(&["services", "--server", "not a url"]), &["not a url"]);
}

#[test]
fn what_others_can_reach_asks_who_calls_or_does_not_listen() {
    let data = tempfile::tempdir().unwrap();
    let own = support::platform::base();
    let fixed = ["--data-dir", data.path().to_str().unwrap(), "--workers", "1"];
    let open = |port: u16| format!("0.0.0.0:{port}");
    let at = |port: u16| format!("{own}:{port}");
    let resources = data.path().join("resources");
    std::fs::create_dir(&resources).unwrap();
    let resources = resources.to_str().unwrap();
    for (arguments, why) in [
        (
            vec!["control-plane", "--api-address", "0.0.0.0:0", "--proxy-address", &at(15012)],
            "without a token",
        ),
        (vec!["config", "--config-address", "0.0.0.0:0"], "--config-address"),
        (
            vec!["registry", "--registry-address", "0.0.0.0:0", "--token-file", "/dev/null"],
            "--registry-address",
        ),
        (vec!["gateway", "--resources", resources, "--admin-address", &open(15000)], "loopback"),
    ] {
        let output = command(&[&arguments[..], &fixed].concat()).output().unwrap();
        assert!(said(&output).contains(why), "{arguments:?}: {}", said(&output));
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    }

    // With a token it listens everywhere, and whoever has none gets nothing but health and metrics.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let arguments = ["control-plane", "--api-address", &open(port), "--proxy-address", &at(15012)];
    let mut plane = command(&[&arguments[..], &fixed].concat());
    let _plane = support::platform::Spawned::start(plane.env("MESHWORK_API_TOKEN", "hush"));
    let api = (own, port).into();
    until("the control plane is ready", || get(api, "/healthz/ready").filter(|(status, _)| *status == 200));
    assert_eq!(get(api, "/v1/proxies").unwrap().0, 401);
    assert_eq!(get(api, "/metrics").unwrap().0, 200);
    let server = format!("http://{api}");
    let ask = |token: Option<&str>| {
        let mut command = command(&["token", "create", "--service", "web", "--server", &server]);
        command.envs(token.map(|token| ("MESHWORK_TOKEN", token))).output().unwrap()
    };
    refused(&ask(None), &["401", "Authorization: Bearer"]);
    refused(&ask(Some("husk")), &["401"]);
    assert_eq!(printed(&ask(Some("hush"))).trim().split('.').count(), 3);
}
