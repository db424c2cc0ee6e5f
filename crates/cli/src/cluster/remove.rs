//! `outlast cluster remove`.

use super::status;
use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::confirm;

#[derive(Debug, clap::Args)]
pub(crate) struct Remove {
    /// The coordinator's id (c2)
    // A name of its own: `coordinator` is the connection's --coordinator.
    #[arg(value_name = "COORDINATOR")]
    id: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Remove {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let what = format!("removing {} takes its vote and its id for good", self.id);
        confirm(self.yes, &what)?;
        let answer = session.client.remove_coordinator(&self.id).await?;
        status::tell(&session, &answer)?;
        Ok(Exit::Done)
    }
}
