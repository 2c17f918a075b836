//! One program for the targets of a group: `MESHWORK_FUZZ_TARGET` names the one to run.

#![no_main]

use std::sync::LazyLock;

#[path = "../engine/mod.rs"]
mod targets;

static CHECK: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("MESHWORK_FUZZ_TARGET").expect("MESHWORK_FUZZ_TARGET names a target");
    let found = targets::TARGETS.iter().find(|(target, _)| *target == name);
    found.unwrap_or_else(|| panic!("no target {name} in fuzz/engine/mod.rs")).1
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| CHECK(data));
