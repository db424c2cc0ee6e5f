//! `outlast checkpoint pin` and `unpin`.

use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::print_one;

#[derive(Debug, clap::Args)]
pub(crate) struct Pin {
    /// Id or name of the job
    job: String,
    /// ck7
    checkpoint: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Unpin {
    /// Id or name of the job
    job: String,
    /// ck7
    checkpoint: String,
}

impl Pin {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        set(&session, &self.job, &self.checkpoint, true).await
    }
}

impl Unpin {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        set(&session, &self.job, &self.checkpoint, false).await
    }
}

async fn set(session: &Session, job: &str, checkpoint: &str, pinned: bool) -> Result<Exit, Problem> {
    let checkpoint = session.client.pin_checkpoint(job, checkpoint, pinned).await?;
    let word = if checkpoint.pinned { "pinned" } else { "not pinned" };
    print_one(session.format, &checkpoint, || format!("{} {word}\n", checkpoint.id))?;
    Ok(Exit::Done)
}
