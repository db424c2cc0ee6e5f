//! `cluster status`: answered also where there is no leader, because that is when it is needed most.

use std::time::Duration;

use futures::StreamExt as _;
use outlast_consensus::{Leadership, RaftStatus};
use outlast_control::state::{ClusterState, NodeCondition};
use outlast_host::net::TcpStream;
use outlast_proto::control::v1 as pb;
use outlast_proto::status::Failure;
use outlast_types::CoordinatorId;

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
        let deadline = Deadline::after(CONFIRM_DEADLINE);
        let confirmed = member.reads.confirm(deadline).await;
        let lead = Lead::of(member.consensus.leadership().borrow().clone(), &confirmed);
        let is_new = match confirmed {
            Ok(index) => member.wait_applied(index, deadline).await,
            Err(failure) => Err(failure),
        };
        let notes = member.notes().await;
        let mut status = member.state(|state| of_state(state, &notes));
        let name = |id: Option<CoordinatorId>| id.map(|id| id.to_string()).unwrap_or_default();
        (status.leader, status.last_leader) = (name(lead.now), name(lead.last));
        status.term = lead.term;
        status.answered_by = member.id.to_string();
        status.coordinators = coordinators(&member, lead.now).await;
        status.disk = Some(disk(&member.consensus.status()));
        status.warnings = warnings(&member, &lead, is_new, &status.coordinators);
        Ok(status)
    }
}

/// Who leads, as far as it is confirmed: what Raft remembers may be gone together with its majority.
#[derive(Debug, PartialEq, Eq)]
struct Lead {
    now: Option<CoordinatorId>,
    /// Who led last, where nobody leads now.
    last: Option<CoordinatorId>,
    term: u64,
}

impl Lead {
    fn of<T>(remembered: Leadership, confirmed: &Result<T, Failure>) -> Self {
        let leader = remembered.leader.map(|leader| leader.id);
        // A coordinator that has too much to do says nothing about the leader.
        let is_gone = matches!(confirmed, Err(Failure::Unavailable { .. } | Failure::Unknown { .. }));
        let (now, last) = if is_gone { (None, leader) } else { (leader, None) };
        Self { now, last, term: remembered.term }
    }

    fn warning(&self) -> Option<String> {
        if self.now.is_some() {
            return None;
        }
        let last = match self.last {
            Some(id) => format!("{id} led last, in term {}", self.term),
            None => format!("the term is {}", self.term),
        };
        Some(format!(
            "there is no leader now ({last}): nothing is changed or started until a majority of coordinators runs"
        ))
    }
}

fn disk(status: &RaftStatus) -> pb::LogDisk {
    pb::LogDisk {
        sync_p99_ms: crate::disk::p99_ms(status),
        loaded_p999_ms: status.probe_loaded.map(|times| times.p999_us as f64 / 1_000.0),
        hangs: status.disk_hangs,
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
    lead: &Lead,
    is_new: Result<(), Failure>,
    coordinators: &[pb::Coordinator],
) -> Vec<String> {
    let mut warnings = Vec::new();
    warnings.extend(lead.warning());
    if let Err(failure) = is_new {
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
    let raft = member.consensus.status();
    warnings.extend(crate::disk::warning(&raft, member.profile));
    warnings.extend(crate::disk::room_warning(raft.room, member.id));
    if member.disk.age_ms() > crate::disk::HUNG_AFTER_MS {
        let age_s = member.disk.age_ms() / 1_000;
        warnings.push(format!("the disk of {} has not finished a write for {age_s} s", member.id));
    }
    warnings.extend(member.office().and_then(|office| office.board.holding()));
    warnings
}

#[cfg(test)]
mod tests {
    use outlast_consensus::Leader;

    use super::*;
    use crate::member::no_leader;

    fn remembered() -> Leadership {
        let leader = Leader { id: CoordinatorId(2), address: "127.0.0.1:1".to_owned() };
        Leadership { leader: Some(leader), term: 5, is_self: false }
    }

    #[test]
    fn a_leader_that_nobody_confirms_led_last() {
        let confirmed = Lead::of(remembered(), &Ok(()));
        assert_eq!((confirmed.now, confirmed.last), (Some(CoordinatorId(2)), None));
        assert_eq!(confirmed.warning(), None);
        let gone = Lead::of::<()>(remembered(), &Err(no_leader()));
        assert_eq!((gone.now, gone.last), (None, Some(CoordinatorId(2))));
        let warning = gone.warning().expect("somebody should look");
        assert!(warning.starts_with("there is no leader now (c2 led last, in term 5)"), "{warning}");
        let never = Leadership { leader: None, ..remembered() };
        let warning = Lead::of::<()>(never, &Err(no_leader())).warning().expect("somebody should look");
        assert!(warning.starts_with("there is no leader now (the term is 5)"), "{warning}");
    }

    #[test]
    fn a_coordinator_with_too_many_reads_still_knows_its_leader() {
        let busy = super::super::exhausted("too many reads");
        assert_eq!(Lead::of::<()>(remembered(), &Err(busy)).now, Some(CoordinatorId(2)));
    }
}
