//! `outlast cluster verify`.

use std::path::PathBuf;
use std::process::ExitCode;

use outlast_consensus::{Examination, FolderError, OpenError, examine_folder};
use serde_json::json;

use crate::problem::{Exit, Problem};
use crate::serve::opens_in_child;
use crate::term::{Columns, Format, Paint, print_one};

#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// The folder of a coordinator that is stopped
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Read every entry of the log, and not the newest ones only
    #[arg(long)]
    deep: bool,
}

impl Verify {
    pub(crate) fn run(self, format: Format) -> Result<ExitCode, Problem> {
        let what = || format!("{} is not good", self.data_dir.display());
        opens_in_child(&self.data_dir).map_err(|signal| {
            Problem::new(Exit::Failed, what())
                .because(format!("the log is damaged: opening it ended with signal {signal}"))
        })?;
        let found =
            examine_folder(&self.data_dir, self.deep).map_err(|error| not_looked_at(&self, &error))?;
        let findings = found
            .findings
            .iter()
            .map(|one| json!({"part": one.part, "outcome": word(one.is_good), "detail": one.detail}));
        let value = json!({
            "cluster_id": found.cluster_id, "coordinator": found.coordinator.to_string(),
            "good": found.is_good(), "findings": findings.collect::<Vec<_>>(),
        });
        print_one(format, &value, || table(&found))?;
        Ok(if found.is_good() { Exit::Done } else { Exit::Failed }.into())
    }
}

fn word(is_good: bool) -> &'static str {
    if is_good { "ok" } else { "corrupt" }
}

fn table(found: &Examination) -> String {
    let paint = Paint::stdout();
    let mut columns = Columns::new(&["PART", "OUTCOME", "DETAIL"]);
    for one in &found.findings {
        columns.row(&[one.part.clone(), paint.state(word(one.is_good)), one.detail.clone()]);
    }
    columns.finish()
}

fn not_looked_at(verify: &Verify, error: &OpenError) -> Problem {
    let exit = match error {
        OpenError::Folder(FolderError::Locked { .. }) => Exit::Conflict,
        OpenError::NoCoordinator { .. } => Exit::NotFound,
        _ => Exit::Failed,
    };
    Problem::new(exit, format!("{} was not verified", verify.data_dir.display())).because_of(error)
}
