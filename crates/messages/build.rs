//! Generates the Rust types from `proto/`, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "meshwork/v1/resources.proto",
        "meshwork/v1/discovery.proto",
        "meshwork/v1/observe.proto",
        "meshwork/v1/operate.proto",
    ];
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
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
