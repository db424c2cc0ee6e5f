//! `outlast cluster restore`.

use std::path::PathBuf;
use std::process::ExitCode;

use outlast_consensus::read_backup;

use super::rebuilt;
use crate::problem::{Exit, Problem};
use crate::term::{Format, age, confirm};

const AFTER_HELP: &str = "\
Makes the first coordinator of a new cluster that goes on from the backup's, with a new id and the next
generation: nothing of the time after the backup can come back. The agents of the old cluster join it by
themselves when they find it, so take an address that they know. Their workers are stopped, and the jobs
go on from their newest checkpoints that the backup knows of.

All old coordinators must be gone for good: where one still runs, agents that follow it go on there.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Restore {
    /// What `outlast cluster backup` wrote
    file: PathBuf,
    /// The new coordinator's folder; empty, or not there
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where agents and other coordinators will reach it
    #[arg(long, value_name = "HOST:PORT", value_parser = super::address)]
    address: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Restore {
    pub(crate) fn run(self, format: Format) -> Result<ExitCode, Problem> {
        let backup = read_backup(&self.file).map_err(|error| {
            Problem::new(Exit::Failed, format!("{} cannot be restored", self.file.display()))
                .because_of(&error)
                .next("take another backup")
        })?;
        let head = &backup.head;
        let what = format!(
            "restoring cluster {} as of entry {}, made at {} ({} ago): all that happened since then is lost to the \
             cluster, and the workers that run now are stopped",
            head.cluster_id,
            head.last.index,
            head.at,
            age(Some(head.at.into()))
        );
        confirm(self.yes, &what)?;
        let made = outlast_coordinator::restore(&self.data_dir, backup, &self.address);
        let made = made.map_err(|error| rebuilt::problem("the cluster was not restored", &error))?;
        rebuilt::tell(format, &made, &self.data_dir, &self.address, None)?;
        Ok(Exit::Done.into())
    }
}
