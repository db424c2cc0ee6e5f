//! The rules of the source tree: what a reviewer would otherwise have to remember.

mod dependencies;
mod failpoints;
mod layers;
mod sources;

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the workspace").to_path_buf()
}
