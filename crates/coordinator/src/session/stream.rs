//! One agent's session.
//!
//! ```text
//!  Hello ──► RegisterNode applied ──► Welcome, desired state ──► loop ──► closed (either side, or shutdown)
//!    │            └ refused ─► Refused                             └ registration replaced ─► Refused{final}
//!    │                                                              └ registration lost ─► Refused{register_anew}
//!    ├ a cluster that this one goes on from ─► Succeeded (nothing is registered)
//!    └ another cluster ─► Refused{final}
//! ```
//! The session grants nothing itself: a grant comes from the leader or not at all, so that an agent whose coordinator is
//! cut off moves on.

mod greeting;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use outlast_consensus::AppliedEntry;
use outlast_control::state::{AdoptedWorker, ClusterState, Event, Observation, Registration};
use outlast_proto::node::v1 as pb;
use outlast_proto::node::v1::agent_message::Message as Up;
use outlast_proto::node::v1::coordinator_message::Message as Down;
use outlast_proto::relay::v1::RelayedHeartbeat;
use outlast_proto::status::Failure;
use outlast_types::{CheckpointSeq, JobId, NodeId, RegistrationId};
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use super::look::{Concern, PeerLook};
use super::registering::{End, LastWord, Standing, check_cluster, read_hello, register, rejected, standing};
use super::{checkpoints, desired, observer, orders};
use crate::clock::Deadline;
use crate::member::{Member, stopping};

/// Registration and the wait for the own state; an agent that is not welcomed by then tries another coordinator.
const WELCOME_DEADLINE: Duration = Duration::from_secs(5);
/// An agent that reads nothing for so long is gone, or will come back with a session of its own.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// Grants that wait to be sent; one a heartbeat.
const GRANTS_MAX: usize = 8;
/// Checkpoints that a Hello may name; older ones are asked for with the next session.
const HELD_MAX: usize = 10_000;
/// Checkpoints that one message tells of: a seal has some kilobytes.
const UPDATES_A_MESSAGE: usize = 500;

/// Changes that arrive without an event (a snapshot was installed) are found at this pace.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

type Events = broadcast::Receiver<Arc<AppliedEntry>>;
type DownSender = mpsc::Sender<Result<pb::CoordinatorMessage, Status>>;

/// Serves one session to its end.
pub(super) async fn run(
    member: Arc<Member>,
    mut up: Streaming<pb::AgentMessage>,
    down: DownSender,
    source: Option<String>,
) {
    let end = match welcome(&member, &mut up, &down, source.clone()).await {
        Ok((session, events)) => session.serve(up, events, source).await,
        Err(end) => end,
    };
    let last_words = match end {
        End::Closed => return,
        End::Refused { reason, word } => {
            let (last, register_anew) = (word == LastWord::GiveUp, word == LastWord::RegisterAnew);
            let cluster_id = member.cluster_id.to_string();
            let refused = pb::Refused { reason, r#final: last, register_anew, cluster_id };
            Ok(pb::CoordinatorMessage { message: Some(Down::Refused(refused)) })
        }
        End::Succeeded { predecessors } => {
            let predecessors = predecessors.iter().map(ToString::to_string).collect();
            let succeeded = pb::Succeeded { cluster_id: member.cluster_id.to_string(), predecessors };
            Ok(pb::CoordinatorMessage { message: Some(Down::Succeeded(succeeded)) })
        }
        End::Failed(failure) => Err(failure.into()),
    };
    // The agent may be gone already.
    let _ = tokio::time::timeout(SEND_DEADLINE, down.send(last_words)).await;
}

struct Session {
    member: Arc<Member>,
    node: NodeId,
    registration: RegistrationId,
    down: DownSender,
    /// The desired state that was sent last, and the index that it was stamped with.
    sent: Vec<pb::DesiredWorker>,
    sent_orders: Vec<pb::ShardOrder>,
    sent_index: Option<u64>,
    /// The jobs in it.
    sent_jobs: BTreeSet<JobId>,
    /// The index of the state that was looked at last.
    looked_index: u64,
    /// Jobs that the agent said it has shards of.
    held_jobs: BTreeSet<JobId>,
    /// What already ran when the registration was made.
    adopted: Vec<AdoptedWorker>,
    peers: PeerLook,
}

/// From Hello to Welcome.
async fn welcome(
    member: &Arc<Member>,
    up: &mut Streaming<pb::AgentMessage>,
    down: &DownSender,
    source: Option<String>,
) -> Result<(Session, Events), End> {
    let hello = read_hello(up).await?;
    check_cluster(member, &hello.cluster_id)?;
    let registration: Registration = hello
        .registration
        .ok_or_else(|| rejected("registration", "is missing"))?
        .try_into()
        .map_err(super::service::rejected)?;
    let (node, id) = (registration.node.clone(), registration.registration);
    let adopted = registration.adopted.clone();
    let deadline = Deadline::after(WELCOME_DEADLINE);
    let index = register(member, registration, source, deadline).await?;
    member.wait_applied(index.max(hello.desired_index), deadline).await?;
    // Before the first look at the state, so that nothing falls between the two.
    let events = member.consensus.events();
    let mut session = Session {
        member: member.clone(),
        node,
        registration: id,
        down: down.clone(),
        sent: Vec::new(),
        sent_orders: Vec::new(),
        sent_index: None,
        sent_jobs: BTreeSet::new(),
        looked_index: 0,
        held_jobs: BTreeSet::new(),
        adopted,
        peers: PeerLook::default(),
    };
    session.greet(index, &hello.held).await?;
    Ok((session, events))
}

/// What should run is in the state, but what became of checkpoints meanwhile is told by events only: with the next
/// session's Hello the agent asks about all that it has.
fn missed_events() -> Failure {
    Failure::Unavailable {
        reason: "this session missed entries of the log".to_owned(),
        hint: "open another session".to_owned(),
        retry_after_ms: 100,
    }
}

impl Session {
    async fn serve(
        mut self,
        mut up: Streaming<pb::AgentMessage>,
        mut events: Events,
        source: Option<String>,
    ) -> End {
        let (grants, mut granted) = mpsc::channel(GRANTS_MAX);
        let (batches, batch_inbox) = mpsc::channel(observer::BATCHES_MAX);
        let (outcomes, mut observed) = mpsc::channel(observer::BATCHES_MAX);
        let mut look = tokio::time::interval(LOOK_PERIOD);
        let shutdown = self.member.shutdown.clone();
        let observe = observer::run(
            self.member.clone(),
            self.node.clone(),
            self.registration,
            source,
            batch_inbox,
            outcomes,
        );
        let _observer = AbortOnDrop(tokio::spawn(observe));
        tracing::info!(node = %self.node, registration = %self.registration, "agent connected");
        self.member.metrics.catalogue.sessions.inc();
        let end = loop {
            let step = tokio::select! {
                message = up.message() => self.handle_up(message, &grants, &batches).await,
                Some(grant) = granted.recv() => self.send(Down::Lease(grant)).await,
                Some(outcome) = observed.recv() => self.handle_observed(outcome).await,
                entry = events.recv() => self.handle_applied(entry).await,
                () = self.peers.due() => self.send_changes().await,
                _ = look.tick() => self.look_again().await,
                () = shutdown.cancelled() => Err(stopping().into()),
                () = self.down.closed() => Err(End::Closed),
            };
            if let Err(end) = step {
                break end;
            }
        };
        self.member.metrics.catalogue.sessions.dec();
        tracing::info!(node = %self.node, registration = %self.registration, "agent disconnected");
        end
    }

    async fn handle_up(
        &self,
        message: Result<Option<pb::AgentMessage>, Status>,
        grants: &mpsc::Sender<pb::LeaseGrant>,
        batches: &mpsc::Sender<observer::Batch>,
    ) -> Result<(), End> {
        let Ok(Some(message)) = message else { return Err(End::Closed) };
        match message.message {
            Some(Up::Heartbeat(heartbeat)) => self.handle_heartbeat(heartbeat, grants).await,
            Some(Up::Observations(observations)) => self.handle_observations(observations, batches),
            Some(Up::Hello(_)) => Err(rejected("message", "a session has one Hello").into()),
            // A newer agent may say things that this build does not know.
            None => Ok(()),
        }
    }

    async fn handle_heartbeat(
        &self,
        heartbeat: pb::Heartbeat,
        grants: &mpsc::Sender<pb::LeaseGrant>,
    ) -> Result<(), End> {
        let over = self.over(&heartbeat.receipts);
        let relayed = RelayedHeartbeat {
            node: self.node.to_string(),
            registration: self.registration.0,
            heartbeat: Some(heartbeat),
        };
        if let Err(failure) = self.member.heartbeats.send(relayed, grants.clone()) {
            tracing::debug!(node = %self.node, %failure, "a heartbeat was dropped");
        }
        // After the heartbeat is on its way: a lease waits for nothing.
        self.send_pages(&over).await
    }

    /// Receipts that the agent would repeat for ever: the leader passes over what is over, and what it has no record of.
    fn over(&self, receipts: &[pb::Receipt]) -> Vec<(JobId, CheckpointSeq)> {
        if receipts.is_empty() {
            return Vec::new();
        }
        self.member.state(|state| checkpoints::over(state, receipts)).into_iter().collect()
    }

    fn handle_observations(
        &self,
        observations: pb::Observations,
        batches: &mpsc::Sender<observer::Batch>,
    ) -> Result<(), End> {
        let parsed: Result<Vec<Observation>, _> =
            observations.observations.into_iter().map(Observation::try_from).collect();
        let observations_read = parsed.map_err(super::service::rejected)?;
        let batch = observer::Batch { first: observations.first, observations: observations_read };
        if batches.try_send(batch).is_err() {
            tracing::debug!(node = %self.node, "observations wait at the agent");
        }
        Ok(())
    }

    async fn handle_observed(&self, outcome: observer::Outcome) -> Result<(), End> {
        match outcome {
            observer::Outcome::Applied(number) => self.send(Down::Observed(pb::Observed { number })).await,
            observer::Outcome::Stale(reason) => {
                self.check_registration()?;
                Err(End::Refused { reason, word: LastWord::GiveUp })
            }
        }
    }

    async fn handle_applied(
        &mut self,
        entry: Result<Arc<AppliedEntry>, broadcast::error::RecvError>,
    ) -> Result<(), End> {
        match entry {
            Ok(entry) => {
                if entry.replaced {
                    return Err(missed_events().into());
                }
                self.look_after(&entry.events).await?;
                self.send_checkpoints(&entry.events).await
            }
            Err(broadcast::error::RecvError::Lagged(_)) => Err(missed_events().into()),
            Err(broadcast::error::RecvError::Closed) => Err(stopping().into()),
        }
    }

    /// Looks at what this node should run where the events may have changed it. Cheap: every session does it with every
    /// entry, so a node that runs nothing does not look at all, and changes among the peers are looked at together.
    async fn look_after(&mut self, events: &[Event]) -> Result<(), End> {
        let changed_at =
            |state: &ClusterState| state.nodes.get(&self.node).map(|node| node.assignments_changed_at);
        if self.member.state(changed_at) > self.sent_index {
            return self.send_changes().await;
        }
        match Concern::of(&self.node, &self.sent_jobs, events) {
            Concern::Own => return self.send_changes().await,
            Concern::Peers if !(self.sent.is_empty() && self.sent_orders.is_empty()) => {
                self.peers.want(Instant::now())
            }
            Concern::Peers | Concern::Nothing => {}
        }
        Ok(())
    }

    /// Where nothing was applied since the last look there is nothing to see.
    async fn look_again(&mut self) -> Result<(), End> {
        let is_old = self.member.state(|state| state.applied > self.looked_index);
        if is_old { self.send_changes().await } else { Ok(()) }
    }

    /// Sends the desired state where it changed, and ends the session where its registration is over.
    async fn send_changes(&mut self) -> Result<(), End> {
        self.peers.done();
        self.check_registration()?;
        let (wanted, changed_at) = self.desired_now();
        let has_moved = self.sent_index.is_none_or(|sent| changed_at > sent);
        if has_moved || wanted.workers != self.sent || wanted.orders != self.sent_orders {
            return self.send_wanted(wanted).await;
        }
        Ok(())
    }

    async fn send_desired(&mut self) -> Result<(), End> {
        let (wanted, _) = self.desired_now();
        self.send_wanted(wanted).await
    }

    /// What the node should do, and the index of the last change to its assignments.
    fn desired_now(&mut self) -> (pb::DesiredState, u64) {
        let (wanted, changed_at, jobs) = self.member.state(|state| {
            let changed_at = state.nodes.get(&self.node).map_or(0, |node| node.assignments_changed_at);
            let jobs = state.held_on(&self.node).map(|(job, ..)| job.id).collect();
            let mut workers = desired::desired_workers(state, &self.node);
            workers.extend(desired::orphans(state, &self.node, &self.adopted));
            let orders = orders::desired_orders(state, &self.node);
            (pb::DesiredState { index: state.applied, workers, orders }, changed_at, jobs)
        });
        (self.looked_index, self.sent_jobs) = (wanted.index, jobs);
        (wanted, changed_at)
    }

    async fn send_wanted(&mut self, wanted: pb::DesiredState) -> Result<(), End> {
        (self.sent, self.sent_orders) = (wanted.workers.clone(), wanted.orders.clone());
        self.sent_index = Some(wanted.index);
        self.send(Down::Desired(wanted)).await
    }

    fn check_registration(&self) -> Result<(), End> {
        let (node, registration) = (&self.node, self.registration);
        let (reason, word) = match self.member.state(|state| standing(state, node, registration)) {
            Standing::Current => return Ok(()),
            Standing::Lost => {
                let reason = format!("node {node} was declared lost under {registration}: register anew");
                (reason, LastWord::RegisterAnew)
            }
            Standing::ReplacedBy(newer) => {
                (format!("{registration} was replaced by {newer}"), LastWord::GiveUp)
            }
            Standing::Unknown => (format!("node {node} is not known any more"), LastWord::GiveUp),
        };
        Err(End::Refused { reason, word })
    }

    async fn send_checkpoints(&self, events: &[Event]) -> Result<(), End> {
        let concerned: Vec<_> = self.member.state(|state| {
            let of = |event| checkpoints::concerned(state, &self.node, &self.held_jobs, event);
            events.iter().filter_map(of).collect()
        });
        if concerned.is_empty() { Ok(()) } else { self.send_updates(&concerned).await }
    }

    async fn send_pages(&self, of: &[(JobId, CheckpointSeq)]) -> Result<(), End> {
        for page in of.chunks(UPDATES_A_MESSAGE) {
            self.send_updates(page).await?;
        }
        Ok(())
    }

    async fn send_updates(&self, of: &[(JobId, CheckpointSeq)]) -> Result<(), End> {
        let updates = self
            .member
            .state(|state| of.iter().map(|(job, seq)| checkpoints::update(state, *job, *seq)).collect());
        self.send(Down::Checkpoints(pb::CheckpointUpdates { updates })).await
    }

    async fn send(&self, message: Down) -> Result<(), End> {
        let message = Ok(pb::CoordinatorMessage { message: Some(message) });
        match tokio::time::timeout(SEND_DEADLINE, self.down.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::Closed),
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
