//! Generates the Rust types from `proto/`, without `protoc`, and how two messages that leave things unsaid are laid over
//! each other.

#[path = "build/layered.rs"]
mod layered;

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "meshwork/v1/resources.proto",
        "meshwork/v1/discovery.proto",
        "meshwork/v1/observe.proto",
        "meshwork/v1/operate.proto",
    ];
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=build");
    let descriptors = protox::compile(files, ["proto"])?;
    let out = std::env::var("OUT_DIR")?;
    let text = layered::generate(&descriptors.file, ".meshwork.v1.TrafficPolicy");
    std::fs::write(Path::new(&out).join("layered.rs"), text)?;
    let mut config = prost_build::Config::new();
    config
        .enable_type_names()
        .type_name_domain(["."], "type.meshwork.dev")
        .btree_map(["."])
        .bytes(["."])
        .skip_debug([".meshwork.v1.Secret"])
        .compile_fds(descriptors)?;
    Ok(())
}
