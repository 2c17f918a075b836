//! What the short commands print and how they end.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::support::platform::{Spawned, signal};
use crate::support::process::HTTP;
use crate::support::{Upstream, address, command, get, meshwork, until, yaml};

fn check(path: &Path) -> (Option<i32>, Vec<Value>) {
    let output = meshwork(&["check", "-f", path.to_str().unwrap(), "-o", "json"]);
    let found = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), found)
}

#[test]
fn check_tells_every_fault_at_its_place_and_fails_on_errors_only() {
    let folder = tempfile::tempdir().unwrap();
    let service = yaml::service("web", &["127.0.0.1:9000".parse().unwrap()]);
    let good =
        [yaml::EDGE, &yaml::route("web", "  - backendRefs: [{name: web, port: 80}]"), &service].concat();
    fs::write(folder.path().join("good.yaml"), &good).unwrap();
    assert_eq!(check(folder.path()), (Some(0), Vec::new()));
    let table = meshwork(&["check", "-f", folder.path().to_str().unwrap()]);
    assert_eq!(table.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&table.stdout).ends_with("0 errors, 0 warnings\n"), "{table:?}");

    let bad = good.replace("port: 80}]", "prot: 80}]");
    fs::write(folder.path().join("bad.yaml"), bad.replace("name: web", "name: bad")).unwrap();
    let (code, found) = check(folder.path());
    assert_eq!(code, Some(1));
    let misspelt = found.iter().find(|found| found["code"] == "MW1008").expect("an unknown field");
    let keys: BTreeSet<&str> = misspelt.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["code", "column", "file", "help", "line", "message", "severity"].into());
    let file = folder.path().join("bad.yaml");
    assert_eq!(misspelt["file"], file.to_str().unwrap());
    let line = fs::read_to_string(&file).unwrap();
    let line = line.lines().position(|line| line.contains("prot: 80")).unwrap() + 1;
    assert_eq!((&misspelt["line"], &misspelt["severity"]), (&line.into(), &"error".into()));
    assert!(misspelt["message"].as_str().unwrap().contains("prot"), "{misspelt}");
    assert!(misspelt["help"].as_str().unwrap().contains("port"), "{misspelt}");
    let table = meshwork(&["check", "-f", folder.path().to_str().unwrap()]);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    assert_eq!(table.status.code(), Some(1));
    assert!(text.contains("prot: 80") && text.contains("MW1008"), "{text}");
}

#[test]
fn check_of_a_reference_to_nothing_and_of_a_path_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let text = [yaml::EDGE, &yaml::route("web", "  - backendRefs: [{name: absent, port: 80}]")].concat();
    fs::write(folder.path().join("all.yaml"), text).unwrap();
    let (_, found) = check(folder.path());
    assert!(found.iter().any(|found| found["message"].as_str().unwrap().contains("absent")), "{found:?}");
    let output = meshwork(&["check", "-f", folder.path().join("nothing").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing"), "{output:?}");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    // More than a pipe holds.
    let many: String = (0..2000).map(|n| format!("kind: Nothing{n}\n---\n")).collect();
    for part in 0..10 {
        fs::write(folder.path().join(format!("{part}.yaml")), &many).unwrap();
    }
    let folder = folder.path().to_str().unwrap();
    for (arguments, code) in [(&["check", "-f", folder][..], 1), (&["check", "-f", folder, "-o", "json"], 1)]
    {
        let mut child =
            command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), &*output.stderr), (Some(code), &b""[..]), "{arguments:?}");
    }
    for arguments in [&["explain", "MW1001"][..], &["--help"], &["--version"]] {
        let mut child =
            command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]), "{arguments:?}");
    }
}

#[test]
fn wrong_use_ends_with_2_and_says_what_is_right() {
    let (missing, directory) = ("/nowhere/settings.yaml", tempfile::tempdir().unwrap());
    let typo = directory.path().join("settings.yaml");
    fs::write(&typo, "workers: 1\nlisten-adress: 127.0.0.1\n").unwrap();
    let typo = typo.to_str().unwrap();
    for (arguments, says) in [
        (&[][..], "Usage"),
        (&["no-such-command"], "no-such-command"),
        (&["gateway"], "--resources"),
        (&["gateway", "--resources", ".", "--workers", "many"], "many"),
        (&["gateway", "--resources", ".", "--listen-address", "everywhere"], "everywhere"),
        // A sidecar listens at its instance's own address.
        (&["run", "--service", "a", "--listen-address", "127.0.0.2", "--", "true"], "--listen-address"),
        (&["run", "--service", "a", "--label", "tier", "--", "true"], "KEY=VALUE"),
        (&["gateway", "--resources", ".", "--settings", missing], missing),
        (&["gateway", "--resources", ".", "--settings", typo], "settings.yaml:2"),
        (&["check"], "--filename"),
        (&["get"], "<KIND>"),
        (&["explain"], "<ID|CODE|--host <HOST[:PORT]>|--live>"),
    ] {
        let output = meshwork(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
}

#[test]
fn a_settings_file_of_any_process_is_refused_at_the_line_of_what_it_does_not_know() {
    let directory = tempfile::tempdir().unwrap();
    let typo = directory.path().join("settings.yaml");
    fs::write(&typo, "workers: 1\n\nlisten-adress: 127.0.0.1\n").unwrap();
    let typo = typo.to_str().unwrap();
    for process in ["gateway", "server", "registry", "config", "control-plane", "run"] {
        let output = meshwork(&[process, "--settings", typo]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{process}: {said}");
        let expected = format!("settings.yaml:3: `listen-adress` is no setting of `{process}`; known are");
        assert!(said.contains(&expected) && said.contains("drain-timeout"), "{process}: {said}");
    }
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let (file, folder) = (directory.path().join("settings.yaml"), directory.path().to_str().unwrap());
    fs::write(&file, "admin-address: 192.0.2.1:15000\n").unwrap();
    // The admin port is for this machine alone: each is refused, and the error names the one that counted.
    let named = |variable: Option<&str>, flags: &[&str]| {
        let fixed = ["gateway", "--resources", folder, "--settings", file.to_str().unwrap()];
        let mut command = command(&[&fixed, flags].concat());
        command.envs(variable.map(|value| ("MESHWORK_ADMIN_ADDRESS", value)));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(named(None, &[]).contains("192.0.2.1:15000"));
    let variable = Some("192.0.2.2:15000");
    assert!(named(variable, &[]).contains("192.0.2.2:15000"));
    assert!(named(variable, &["--admin-address", "192.0.2.3:15000"]).contains("192.0.2.3:15000"));
}

#[test]
fn a_gateway_that_cannot_start_ends_with_1_and_says_why() {
    let output = meshwork(&["gateway", "--resources", "/nowhere/resources"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("/nowhere/resources"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let address = crate::support::address().to_string();
    let holder = std::net::TcpListener::bind((address.as_str(), 15000)).unwrap();
    let resources = folder.path().to_str().unwrap();
    let output = meshwork(&["gateway", "--resources", resources, "--listen-address", &address]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&holder.local_addr().unwrap().to_string()), "{said}");
}

/// Codes that the sources give: `NAME = 1008;`, `=> 5001,` and `Code::new(6030)` in files that speak of `Code`.
fn codes(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("target") && !path.ends_with("tests") {
                codes(&path, found);
            }
            continue;
        }
        let is_source =
            path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs");
        let text = if is_source { fs::read_to_string(&path).unwrap() } else { continue };
        if !text.contains("Code::new(") {
            continue;
        }
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with("//"));
        for line in lines.take_while(|line| *line != "#[cfg(test)]") {
            let given = ["= ", "=> ", "Code::new("]
                .iter()
                .flat_map(|before| line.match_indices(before).map(|(at, _)| &line[at + before.len()..]));
            let number =
                |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().to_owned();
            found.extend(
                given.map(number).filter(|digits| digits.len() == 4).map(|digits| format!("MW{digits}")),
            );
        }
    }
}

#[test]
fn every_error_code_has_a_page() {
    let root = meshwork_testkit::workspace();
    let mut found = BTreeSet::new();
    for folder in ["crates", "control-plane", "gateway", "sidecar", "registry", "config", "cli/src"] {
        codes(&root.join(folder), &mut found);
    }
    assert!(found.len() > 60, "the sources name their codes: {found:?}");
    for code in &found {
        let output = meshwork(&["explain", code]);
        let page = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && page.starts_with(&format!("# {code}: ")), "{code}: {output:?}");
    }
    let lower = meshwork(&["explain", "mw1008"]);
    assert!(lower.status.success() && lower.stdout.starts_with(b"# MW1008: "));
    let unknown = meshwork(&["explain", "MW9999"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("MW9999"));
}

#[test]
fn a_process_log_that_cannot_be_written_is_lost_and_nothing_else() {
    let upstream = Upstream::start("web");
    let route = yaml::route("web", "  - backendRefs: [{name: web, port: 80}]");
    let files = [yaml::EDGE, &route, &yaml::service("web", &[upstream.address])].concat();
    let (folder, address) = (tempfile::tempdir().unwrap(), address());
    fs::write(folder.path().join("all.yaml"), &files).unwrap();
    let (resources, listen) = (folder.path().to_str().unwrap(), address.to_string());
    let mut gateway = command(&["gateway", "--resources", resources, "--listen-address", &listen]);
    gateway.current_dir(folder.path()).args(["--workers", "1", "--access-log", "off"]);
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut running = Spawned::logging(&mut gateway, full);
    let serves = |status| {
        let answer = || get((address, HTTP).into(), "/").filter(|(told, _)| *told == status);
        until("it does what its resources say", answer);
    };
    serves(200);
    fs::write(folder.path().join("all.yaml"), yaml::EDGE).unwrap();
    serves(404);
    signal("TERM", running.id());
    assert_eq!(running.ended(), Some(0), "no thread has panicked");
}
