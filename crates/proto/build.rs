//! Compiles every file under `proto/` with protox (no `protoc` needed) and keeps the descriptors for reflection.

use std::error::Error;
use std::path::{Path, PathBuf};

use prost::Message as _;

fn proto_files(dir: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            proto_files(&path, found)?;
        } else if path.extension().is_some_and(|ext| ext == "proto") {
            found.push(path);
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto").canonicalize()?;
    println!("cargo:rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    proto_files(&root, &mut files)?;
    files.sort();
    let descriptors = protox::compile(&files, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .extern_path(".google.protobuf.Timestamp", "crate::time::Timestamp")
        // The JSON form follows the proto's field names; only what people read is serialised.
        .type_attribute(".outlast.control.v1", "#[derive(serde::Serialize)]")
        .field_attribute(
            ".outlast.control.v1.Job.spec",
            "#[serde(serialize_with = \"crate::json::embedded\")]",
        )
        .field_attribute(
            ".outlast.control.v1.LogLine.text",
            "#[serde(serialize_with = \"crate::json::lossy_text\")]",
        )
        .bytes(".outlast.peer.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
