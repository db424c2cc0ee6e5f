//! `cluster status`: answered also where there is no leader, because that is when it is needed most.

use std::time::Duration;

use futures::StreamExt as _;
use outlast_control::state::{ClusterState, NodeCondition};
use outlast_proto::control::v1 as pb;
use outlast_proto::status::Failure;
use outlast_types::CoordinatorId;
use tokio::net::TcpStream;

use super::ControlHandler;
use crate::clock::Deadline;
use crate::member::Member;

/// A status that waits longer than this for a leader is better given without one.
const CONFIRM_DEADLINE: Duration = Duration::from_millis(1_500);
const PROBE_DEADLINE: Duration = Duration::from_millis(300);
/// Coordinators that are probed at a time; there are three or five.
const PROBES_MAX: usize = 8;

impl ControlHandler {
    pub(crate) async fn cluster_status(&self) -> Result<pb::ClusterStatusResponse, Failure> {
        let Ok(member) = self.seat.member() else { return Ok(lobby_status(&self.seat.address)) };
        let confirmed = confirm(&member).await;
        let notes = member.notes().await;
        let mut status = member.state(|state| of_state(state, &notes));
        let leadership = member.consensus.leadership().borrow().clone();
        status.leader = leadership.leader.as_ref().map(|leader| leader.id.to_string()).unwrap_or_default();
        status.term = leadership.term;
        status.answered_by = member.id.to_string();
        status.coordinators = coordinators(&member, leadership.leader.map(|leader| leader.id)).await;
        status.warnings = warnings(&member, confirmed, &status.coordinators);
        Ok(status)
    }
}

fn lobby_status(address: &str) -> pb::ClusterStatusResponse {
    let warning =
        "this coordinator belongs to no cluster yet: run `outlast cluster init` or start it with --join";
    pb::ClusterStatusResponse {
        answered_by: address.to_owned(),
        warnings: vec![warning.to_owned()],
        ..pb::ClusterStatusResponse::default()
    }
}

async fn confirm(member: &Member) -> Result<(), Failure> {
    let deadline = Deadline::after(CONFIRM_DEADLINE);
    let index = member.reads.confirm(deadline).await?;
    member.wait_applied(index, deadline).await
}

fn of_state(state: &ClusterState, notes: &outlast_proto::view::LeaderNotes) -> pb::ClusterStatusResponse {
    let lost = state.nodes.values().filter(|node| node.condition == NodeCondition::Lost).count();
    let is_suspect = |node: &&outlast_control::state::Node| {
        node.condition != NodeCondition::Lost
            && notes.conditions.get(&node.id).is_some_and(|word| word == "suspect")
    };
    let suspect = state.nodes.values().filter(is_suspect).count();
    let config = state.config.as_ref();
    pb::ClusterStatusResponse {
        cluster_id: config.map(|config| config.cluster_id.to_string()).unwrap_or_default(),
        profile: config.map(|config| config.profile.to_string()).unwrap_or_default(),
        generation: state.generation,
        feature_level: state.feature_level,
        applied_index: state.applied,
        nodes_ready: (state.nodes.len() - lost - suspect) as u32,
        nodes_suspect: suspect as u32,
        nodes_lost: lost as u32,
        jobs_active: state.active_jobs().filter(|job| !job.state.is_final()).count() as u32,
        jobs_total: state.jobs.len() as u32,
        ..pb::ClusterStatusResponse::default()
    }
}

/// Everybody who ever had an id, with what is known of them now.
async fn coordinators(member: &Member, leader: Option<CoordinatorId>) -> Vec<pb::Coordinator> {
    let members = member.consensus.members();
    let views = member.member_views().await;
    let records = member.state(|state| state.coordinators.clone());
    let listed = records.into_iter().map(|(id, record)| {
        let voter = members.iter().any(|known| known.id == id && known.voter);
        let role = match (record.removed, leader == Some(id), voter) {
            (true, ..) => "removed",
            (_, true, _) => "leader",
            (_, _, true) => "follower",
            _ => "learner",
        };
        let lag = views.iter().find(|view| view.id == id.0).map_or(0, |view| view.lag);
        let is_self = id == member.id;
        async move {
            let reachable = !record.removed && (is_self || answers(&record.address).await);
            pb::Coordinator {
                id: id.to_string(),
                address: record.address,
                role: role.to_owned(),
                lag,
                reachable,
            }
        }
    });
    let listed: Vec<_> = listed.collect();
    futures::stream::iter(listed).buffered(PROBES_MAX).collect().await
}

async fn answers(address: &str) -> bool {
    matches!(tokio::time::timeout(PROBE_DEADLINE, TcpStream::connect(address)).await, Ok(Ok(_)))
}

fn warnings(
    member: &Member,
    confirmed: Result<(), Failure>,
    coordinators: &[pb::Coordinator],
) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Err(failure) = confirmed {
        warnings.push(format!("this is what {} knew last, and it may be old: {failure}", member.id));
    }
    for coordinator in coordinators.iter().filter(|known| known.role != "removed" && !known.reachable) {
        warnings.push(format!("coordinator {} at {} does not answer", coordinator.id, coordinator.address));
    }
    let voters =
        coordinators.iter().filter(|known| matches!(known.role.as_str(), "leader" | "follower")).count();
    if voters == 2 {
        warnings.push(
            "two coordinators are no safer than one: the loss of either stops changes; join a third"
                .to_owned(),
        );
    }
    if let Ok(Some(level)) = member.state(ClusterState::next_feature_level) {
        warnings.push(format!(
            "every member knows feature level {level}: `outlast cluster upgrade` lets the cluster use it"
        ));
    }
    warnings.extend(crate::disk::warning(&member.consensus.status(), member.profile));
    if member.disk.age_ms() > crate::disk::HUNG_AFTER_MS {
        let age_s = member.disk.age_ms() / 1_000;
        warnings.push(format!("the disk of {} has not finished a write for {age_s} s", member.id));
    }
    warnings.extend(member.office().and_then(|office| office.board.holding()));
    warnings
}
