//! Compiles the .proto files with protox, so that no `protoc` has to be installed.

use std::error::Error;

const PROTO_DIR: &str = "proto";
const PROTO_FILES: [&str; 4] = [
    "everflame/v1/deploys.proto",
    "everflame/v1/ingest.proto",
    "everflame/v1/query.proto",
    "perftools/profiles/profile.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO_DIR}");
    let descriptors = protox::compile(PROTO_FILES, [PROTO_DIR])?;
    tonic_prost_build::configure()
        // Clients are built over a channel that the caller has set up.
        .build_transport(false)
        .bytes(".everflame.v1.ProfileRecord.pprof_gz")
        .compile_fds(descriptors)?;
    Ok(())
}
