//! `outlast cluster init`.

use outlast_types::Profile;

use super::status;
use crate::connection::Session;
use crate::problem::{Exit, Problem};

#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    /// Timers: lan, or wan for several sites and slow disks
    #[arg(long, default_value = "lan", value_name = "PROFILE")]
    profile: Profile,
}

impl Init {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let profile = match self.profile {
            Profile::Lan => "lan",
            Profile::Wan => "wan",
        };
        let answer = session.client.init_cluster(profile).await?;
        status::tell(&session, &answer)?;
        Ok(Exit::Done)
    }
}
