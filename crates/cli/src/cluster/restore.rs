//! `outlast cluster restore`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use outlast_consensus::read_backup;

use super::{rebuilt, remains};
use crate::problem::{Exit, Problem};
use crate::term::{Format, age, confirm, talk};

const FAILED: &str = "the cluster was not restored";

const AFTER_HELP: &str = "\
Makes the first coordinator of a new cluster that goes on from the old one, with a new id and the next
generation: nothing of the lost time can come back. The agents of the old cluster join it by themselves
when they find it, so take an address that they know. Their workers are stopped, and the jobs go on from
their newest checkpoints.

From a backup comes back what it has. Without one, every job comes back that has a sealed checkpoint in
the object store (--from-store, with the same variables for access as agents take) or on the disks of
agents that answer (--from-agents; name all that are left). Say both where there are both. What was found
is printed before anything is made. A seal does not tell whether its job had ended since: --ended JOB
brings one back as cancelled, with its checkpoints.

All old coordinators must be gone for good: where one still runs, agents that follow it go on there.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Restore {
    /// What `outlast cluster backup` wrote
    #[arg(
        required_unless_present_any = ["from_store", "from_agents"],
        conflicts_with_all = ["from_store", "from_agents", "cluster", "ended", "profile"]
    )]
    file: Option<PathBuf>,
    #[command(flatten)]
    sources: remains::Sources,
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
        match &self.file {
            Some(file) => self.restore_backup(file, format)?,
            None => self.restore_remains(format)?,
        }
        Ok(Exit::Done.into())
    }

    fn restore_backup(&self, file: &Path, format: Format) -> Result<(), Problem> {
        let backup = read_backup(file).map_err(|error| {
            Problem::new(Exit::Failed, format!("{} cannot be restored", file.display()))
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
        let made = made.map_err(|error| rebuilt::problem(FAILED, &error))?;
        rebuilt::tell(format, &made, &self.data_dir, &self.address, None, None)
    }

    fn restore_remains(&self, format: Format) -> Result<(), Problem> {
        let (lineage, restored) = self.sources.find()?;
        talk(&remains::summary(&lineage, &restored));
        let what = format!(
            "making a new cluster of what is left of cluster {}, as listed: all else that its coordinators knew is lost, \
             and the workers that run now are stopped",
            lineage.cluster
        );
        confirm(self.yes, &what)?;
        let found = remains::json(&restored);
        let from = self.sources.to_string();
        let made = outlast_coordinator::restore_remains(&self.data_dir, restored.state, &from, &self.address);
        let made = made.map_err(|error| rebuilt::problem(FAILED, &error))?;
        rebuilt::tell(format, &made, &self.data_dir, &self.address, None, Some(found))?;
        self.sources.advise(&self.address);
        Ok(())
    }
}
