//! `outlast cluster recover`.

use std::path::PathBuf;
use std::process::ExitCode;

use outlast_consensus::Survivor;

use super::rebuilt;
use crate::problem::{Exit, Problem};
use crate::serve::opens_in_child;
use crate::term::{Format, confirm};

const AFTER_HELP: &str = "\
For a cluster that has lost the majority of its coordinators for good. Stop the survivor first; of
several, take the one whose log goes furthest (`outlast cluster verify` shows it). It becomes the only
coordinator of a new cluster that goes on from the old one, with a new id and the next generation.
Others join it with --join and an empty folder. The old folder is kept beside the new one.

As long as a majority can be brought back, bring it back instead: then nothing is lost.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Recover {
    /// The survivor's folder
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where agents and other coordinators will reach it
    #[arg(long, value_name = "HOST:PORT", value_parser = super::address)]
    address: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Recover {
    pub(crate) fn run(self, format: Format) -> Result<ExitCode, Problem> {
        const FAILED: &str = "the cluster was not recovered";
        opens_in_child(&self.data_dir).map_err(|signal| {
            Problem::new(Exit::Failed, FAILED)
                .because(format!(
                    "the log in {} is damaged: opening it ended with signal {signal}",
                    self.data_dir.display()
                ))
                .next("take another survivor's folder, or a backup: outlast cluster restore FILE")
        })?;
        let survivor = Survivor::open(&self.data_dir).map_err(|error| rebuilt::problem(FAILED, &error))?;
        let what = format!(
            "making a new cluster of {} of cluster {}, up to entry {}: what only the other coordinators had is lost, \
             {} entries at the end come to be although they may never have been decided, and the workers that run \
             now are stopped",
            survivor.coordinator,
            survivor.cluster_id,
            survivor.index(),
            survivor.uncommitted
        );
        confirm(self.yes, &what)?;
        let made = outlast_coordinator::recover(survivor, &self.address);
        let (made, kept) = made.map_err(|error| rebuilt::problem(FAILED, &error))?;
        rebuilt::tell(format, &made, &self.data_dir, &self.address, Some(&kept), None)?;
        Ok(Exit::Done.into())
    }
}
