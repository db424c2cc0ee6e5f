//! `outlast cluster upgrade`.

use super::status;
use crate::connection::Session;
use crate::problem::{Exit, Problem};

const AFTER_HELP: &str = "\
Upgrade the binaries of all coordinators and agents first, one after the other; then this raises the
cluster's feature level to the highest that all of them know. It never goes back: older binaries are
refused from then on.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Upgrade {}

impl Upgrade {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let answer = session.client.upgrade_cluster().await?;
        status::tell(&session, &answer)?;
        Ok(Exit::Done)
    }
}
