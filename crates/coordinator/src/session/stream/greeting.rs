//! What a session begins with: the cluster, what the node should do, and what became of the checkpoints that it has.

use outlast_proto::node::v1 as pb;
use outlast_proto::node::v1::coordinator_message::Message as Down;
use outlast_types::{CheckpointSeq, JobId};

use super::super::desired::probe_peers;
use super::super::registering::End;
use super::{HELD_MAX, Session};

impl Session {
    pub(super) async fn greet(&mut self, index: u64, held: &[pb::CheckpointRef]) -> Result<(), End> {
        let (coordinators, predecessors, peers) = self.member.state(|state| {
            let active = state.coordinators.values().filter(|record| !record.removed);
            let predecessors = state.config.iter().flat_map(|config| &config.predecessors);
            (
                active.map(|record| record.address.clone()).collect(),
                predecessors.map(ToString::to_string).collect(),
                probe_peers(state, &self.node),
            )
        });
        self.send(Down::Welcome(pb::Welcome {
            cluster_id: self.member.cluster_id.to_string(),
            index,
            coordinators,
            profile: self.member.profile.to_string(),
            predecessors,
            peers,
        }))
        .await?;
        self.send_desired().await?;
        self.answer_held(held).await
    }

    /// Tells what became of the checkpoints that the agent has bytes of, or should have: it says so where it has not.
    async fn answer_held(&mut self, held: &[pb::CheckpointRef]) -> Result<(), End> {
        let parse = |held: &pb::CheckpointRef| -> Option<(JobId, CheckpointSeq)> {
            Some((held.job.parse().ok()?, held.checkpoint.parse().ok()?))
        };
        let mut held: Vec<_> = held.iter().take(HELD_MAX).filter_map(parse).collect();
        held.extend(self.member.state(|state| state.held_by_log(&self.node)));
        held.sort_unstable();
        held.dedup();
        self.held_jobs.extend(held.iter().map(|(job, _)| *job));
        self.send_pages(&held).await
    }
}
