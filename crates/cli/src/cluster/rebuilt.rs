//! What `restore` and `recover` say of the coordinator that they made, or why they made none.

use std::path::Path;

use outlast_consensus::{FolderError, RebuildError, Rebuilt};
use serde::Serialize;
use serde_json::Value;

use crate::problem::{Exit, Problem};
use crate::term::{Columns, Format, print_one, talk};

#[derive(Serialize)]
struct Made {
    cluster_id: String,
    generation: u64,
    coordinator: String,
    index: u64,
    address: String,
    data_dir: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_in: Option<String>,
    /// What came back, where the seals had to be searched for it.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    found: Option<Value>,
}

pub(super) fn tell(
    format: Format,
    made: &Rebuilt,
    data_dir: &Path,
    address: &str,
    kept: Option<&Path>,
    found: Option<Value>,
) -> Result<(), Problem> {
    let made = Made {
        cluster_id: made.cluster_id.to_string(),
        generation: made.generation,
        coordinator: made.coordinator.to_string(),
        index: made.index,
        address: address.to_owned(),
        data_dir: data_dir.display().to_string(),
        kept_in: kept.map(|kept| kept.display().to_string()),
        found,
    };
    print_one(format, &made, || {
        let mut rows = Columns::without_header();
        rows.pair("cluster", &made.cluster_id);
        rows.pair("generation", made.generation);
        rows.pair("coordinator", format!("{} at {}", made.coordinator, made.address));
        rows.pair("opened at entry", made.index);
        rows.pair("folder", &made.data_dir);
        if let Some(kept) = &made.kept_in {
            rows.pair("the old folder", kept);
        }
        rows.finish()
    })?;
    talk(&format!("start it: outlast coordinator --data-dir {} --listen {address}", data_dir.display()));
    talk(&format!("others join it: outlast coordinator --data-dir DIR --listen HOST:PORT --join {address}"));
    Ok(())
}

pub(super) fn problem(what: &str, error: &RebuildError) -> Problem {
    let exit = match error {
        RebuildError::NotEmpty { .. } | RebuildError::Folder(FolderError::Locked { .. }) => Exit::Conflict,
        RebuildError::NoCoordinator { .. } => Exit::NotFound,
        _ => Exit::Failed,
    };
    Problem::new(exit, what).because_of(error)
}
