//! The house of ARCHITECTURE.md, held by a test: a crate imports only from floors below its own.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Helps tests of every floor, and nothing but tests.
const TESTKIT: &str = "meshwork-testkit";

/// Every crate and its floor. A role (floor 4) imports no other role: equal floors are refused too.
const FLOORS: &[(u8, &[&str])] = &[
    (0, &["meshwork-base", TESTKIT]),
    (
        1,
        &[
            "meshwork-resources",
            "meshwork-messages",
            "meshwork-api",
            "meshwork-identity",
            "meshwork-store",
            "meshwork-telemetry",
            "meshwork-http1",
            "meshwork-probe",
        ],
    ),
    (2, &["meshwork-decision", "meshwork-compile", "meshwork-xds", "meshwork-process"]),
    (3, &["meshwork-proxy"]),
    (
        4,
        &[
            "meshwork-gateway",
            "meshwork-sidecar",
            "meshwork-registry",
            "meshwork-config",
            "meshwork-control-plane",
        ],
    ),
    (5, &["meshwork"]),
];

/// Crates of which the tree must hold one version only.
const SINGLE: &[&str] = &[
    "hyper",
    "http",
    "h2",
    "tower",
    "axum",
    "tonic",
    "prost",
    "rustls",
    "tokio",
    "opentelemetry",
    "aws-lc-rs",
];

/// Crates that must not be in the tree at all.
const ABSENT: &[&str] = &["ring", "openssl-sys", "native-tls", "reqwest", "rsa"];

fn metadata() -> cargo_metadata::Metadata {
    MetadataCommand::new().no_deps().exec().expect("cargo metadata of the workspace")
}

fn floors() -> BTreeMap<&'static str, u8> {
    FLOORS.iter().flat_map(|(floor, names)| names.iter().map(move |name| (*name, *floor))).collect()
}

#[test]
fn a_crate_imports_only_from_floors_below() {
    let floors = floors();
    for package in metadata().packages {
        let name = package.name.as_str();
        if name == "commerce" {
            let ours = package.dependencies.iter().find(|d| d.name.starts_with("meshwork"));
            assert!(ours.is_none(), "the shop's services import no Meshwork crate, but one imports {ours:?}");
            continue;
        }
        let Some(own) = floors.get(name) else {
            panic!("{name} has no floor: add it to FLOORS and ARCHITECTURE.md")
        };
        for dependency in package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development) {
            assert!(dependency.name != TESTKIT, "{name} imports {TESTKIT} outside of tests");
            let Some(other) = floors.get(dependency.name.as_str()) else { continue };
            // Messages are the wire form of floor 1; nothing else on a floor may lean on its neighbours.
            assert!(other < own, "{name} (floor {own}) imports {} (floor {other})", dependency.name);
        }
    }
}

#[test]
fn one_version_of_each_foundation() {
    let metadata = MetadataCommand::new().exec().expect("cargo metadata");
    let mut versions: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for package in &metadata.packages {
        versions.entry(package.name.as_str()).or_default().insert(package.version.to_string());
    }
    for name in SINGLE {
        let found = versions.get(name).cloned().unwrap_or_default();
        assert!(found.len() <= 1, "{name} is in the tree in several versions: {found:?}");
    }
    // The metadata names optional dependencies that a weak feature mentions though nothing builds them; the tree of
    // what is built decides.
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--workspace",
            "--target",
            "all",
            "--edges",
            "all",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .output()
        .expect("cargo tree");
    let tree = String::from_utf8(tree.stdout).expect("names are text");
    let resolved: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(resolved.contains("rustls"), "cargo tree told its packages");
    for name in ABSENT {
        assert!(!resolved.contains(name), "{name} is in the tree: `cargo tree -i {name}` says who brings it");
    }
}
