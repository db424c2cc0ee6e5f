//! `outlast checkpoint put`: checkpoints for programs that know nothing of us, from inside a worker.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use outlast_types::Span;
use outlast_worker::{SealOutcome, Worker};
use serde_json::json;

use crate::problem::{Exit, Problem};
use crate::term::{Format, print_one};

#[derive(Debug, clap::Args)]
pub(crate) struct Put {
    /// The folder; it may change again when the command ends
    dir: PathBuf,
    /// The training step that it belongs to; the same for all ranks
    #[arg(long, value_name = "N")]
    step: u64,
    /// Wait until it is sealed; exit code 1 when it never will be
    #[arg(long, value_name = "TIME")]
    wait: Option<Span>,
}

impl Put {
    pub(crate) fn run(self, format: Format) -> Result<ExitCode, Problem> {
        let worker = Worker::connect().map_err(|error| {
            Problem::new(Exit::Unreachable, "the node's agent does not answer").because_of(&error)
        })?;
        let worker = worker.ok_or_else(|| {
            Problem::new(Exit::Usage, "this is not a worker")
                .because("OUTLAST_SOCKET is not set")
                .next("call this from the command of a job, as in `outlast job run -- sh -c 'outlast checkpoint put out --step 1'`")
        })?;
        let dir = std::path::absolute(&self.dir).unwrap_or(self.dir);
        let failed = |error: &dyn std::error::Error| {
            Problem::new(Exit::Failed, format!("no checkpoint was made of {}", dir.display()))
                .because_of(error)
        };
        let saved = worker.save_in_turn(self.step, &dir).map_err(|error| failed(&error))?;
        let sealed = match self.wait.map(Duration::from) {
            None => None,
            Some(limit) => {
                Some(worker.wait_sealed(&saved.checkpoint, limit).map_err(|error| failed(&error))?)
            }
        };
        let value = json!({
            "checkpoint": saved.checkpoint,
            "step": self.step,
            "size_bytes": saved.size_bytes,
            "root": saved.root.to_string(),
            "sealed": sealed.as_ref().map(|outcome| matches!(outcome, SealOutcome::Sealed)),
        });
        print_one(format, &value, || format!("{}\n", saved.checkpoint))?;
        match sealed {
            None | Some(SealOutcome::Sealed) => Ok(Exit::Done.into()),
            Some(other) => Err(Problem::new(Exit::Failed, format!("{} was not sealed", saved.checkpoint))
                .because(format!("{other:?}"))),
        }
    }
}
