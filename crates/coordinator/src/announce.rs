//! What this coordinator's build knows, told to the cluster: its record says what the build of its first day knew, and
//! the cluster's feature level rises only as far as the records go.

use std::sync::Weak;
use std::time::Duration;

use outlast_control::state::{Command, FORMAT_VERSION};
use outlast_proto::status::Failure;
use outlast_types::Actor;

use crate::limits::WRITE_DEADLINE;
use crate::member::Member;
use crate::propose::envelope;

const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Some hours: a cluster that has had no majority for longer is looked after by somebody who restarts this coordinator.
const TRIES_MAX: u32 = 300;

/// Tells it once, when the cluster can be asked.
pub(crate) async fn run(member: Weak<Member>) {
    let mut pause = PAUSE_FIRST;
    for _ in 0..TRIES_MAX {
        let Some(member) = member.upgrade() else { return };
        match announce(&member, FORMAT_VERSION).await {
            Ok(_) => return,
            Err(failure) if failure.is_retryable() => tracing::debug!(%failure, "not announced yet"),
            Err(failure) => {
                return tracing::error!(%failure, "the cluster does not take what this build knows");
            }
        }
        let shutdown = member.shutdown.clone();
        drop(member);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => return,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
    tracing::error!("the cluster was not told what this build knows; it is tried again at the next start");
}

/// Says whether it had to be written. Asked of a confirmed state: an older one may show an older record.
async fn announce(member: &Member, feature_level: u32) -> Result<bool, Failure> {
    member.confirm_read().await?;
    let record = member.state(|state| state.coordinators.get(&member.id).map(|record| record.feature_level));
    if record == Some(feature_level) {
        return Ok(false);
    }
    let command = Command::AnnounceCoordinator { coordinator: member.id, feature_level };
    member.change(envelope(Actor::System, None, None, command), WRITE_DEADLINE).await?;
    tracing::info!(coordinator = %member.id, feature_level, was = record, "told the cluster what this build knows");
    Ok(true)
}

#[cfg(test)]
mod tests {
    use outlast_control::state::ClusterState;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{Coordinator, CoordinatorConfig};

    #[tokio::test(flavor = "multi_thread")]
    async fn an_upgraded_coordinator_has_its_record_changed_and_the_cluster_can_follow() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = CoordinatorConfig {
            data_dir: folder.path().to_owned(),
            listen: "127.0.0.1:0".parse().expect("an address"),
            init: true,
            ..CoordinatorConfig::default()
        };
        let running = Coordinator::start(config, CancellationToken::new()).await.expect("it starts");
        let member = running.seat.member().expect("it has a cluster");
        let is_written = announce(&member, FORMAT_VERSION).await.expect("the cluster answers");
        assert!(!is_written, "the record is right already");
        let next = FORMAT_VERSION + 1;
        // The coordinator's own word of its start may come in between, once.
        while member.state(ClusterState::next_feature_level) != Ok(Some(next)) {
            announce(&member, next).await.expect("the next build");
        }
        running.stop();
        running.wait().await;
    }
}
