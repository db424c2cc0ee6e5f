//! Heartbeats on their way to the leader: collected for a moment, sent together, answered one by one.
//!
//! Nothing is retried and nothing is queued for long: an agent whose heartbeat is not answered sends the next one, and
//! asks another coordinator. A coordinator that is cut off from the leader therefore grants nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use outlast_proto::node::v1::LeaseGrant;
use outlast_proto::relay::v1::{RelayHeartbeatsRequest, RelayedGrant, RelayedHeartbeat};
use outlast_proto::status::Failure;
use outlast_types::{Millis, Pace};
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc};

use crate::clock::boot_now;
use crate::member::{Member, no_leader};
use crate::peers::{Peers, call};

/// Heartbeats that wait for the next batch; agents that find it full send again half a second later.
const WAITING_MAX: usize = 8_192;
/// In one batch (the protocol's bound), and its bytes: well below the message limit.
const BATCH_MAX: usize = 1_024;
const BATCH_BYTES_MAX: usize = 2 << 20;
/// A follower's batches: a few at once after a pause (a seal may wait for them), then so far apart that the heartbeats of a
/// thousand agents are two hundred messages a second at most; small against a heartbeat interval.
const COLLECT_MS: Millis = 5;
const COLLECT_BURST: u32 = 4;
/// Batches that are under way; a leader that does not answer must not hold memory.
const BATCHES_MAX: usize = 32;
const RELAY_DEADLINE: Duration = Duration::from_millis(1_000);

/// A heartbeat, and where its grant goes.
pub(crate) struct PendingHeartbeat {
    pub(crate) heartbeat: RelayedHeartbeat,
    pub(crate) grant: mpsc::Sender<LeaseGrant>,
}

/// The handle; the actor is [`serve_heartbeats`].
pub(crate) struct HeartbeatRelay {
    waiting: mpsc::Sender<PendingHeartbeat>,
}

pub(crate) struct HeartbeatInbox(mpsc::Receiver<PendingHeartbeat>);

impl HeartbeatRelay {
    pub(crate) fn new() -> (Self, HeartbeatInbox) {
        let (waiting, inbox) = mpsc::channel(WAITING_MAX);
        (Self { waiting }, HeartbeatInbox(inbox))
    }

    /// The grant comes through `grant`, if it comes.
    pub(crate) fn send(
        &self,
        heartbeat: RelayedHeartbeat,
        grant: mpsc::Sender<LeaseGrant>,
    ) -> Result<(), Failure> {
        self.waiting.try_send(PendingHeartbeat { heartbeat, grant }).map_err(|_| Failure::Exhausted {
            reason: "too many heartbeats wait here".to_owned(),
            hint: "send it to another coordinator".to_owned(),
            retry_after_ms: 500,
        })
    }
}

/// Relays until the member is gone. Runs on the threads of Raft, with connections of its own.
pub(crate) async fn serve_heartbeats(member: Weak<Member>, HeartbeatInbox(mut inbox): HeartbeatInbox) {
    let peers = Arc::new(Peers::default());
    let under_way = Arc::new(Semaphore::new(BATCHES_MAX));
    let mut batches = Pace::new(COLLECT_MS, COLLECT_BURST);
    while let Some(first) = inbox.recv().await {
        let Some(member) = member.upgrade() else { return };
        if member.office().is_none() {
            tokio::time::sleep(Duration::from_millis(batches.wait_ms(boot_now()))).await;
        }
        // While all are under way the next batch grows: many small ones must not crowd out heartbeats, and a leader that
        // does not answer gives each slot back at its deadline.
        let Ok(permit) = under_way.clone().acquire_owned().await else { return };
        let batch = collect(first, &mut inbox);
        batches.take(boot_now());
        let peers = peers.clone();
        tokio::spawn(async move {
            if let Err(failure) = confirm(&member, &peers, batch).await {
                tracing::debug!(%failure, "heartbeats were not confirmed");
            }
            drop(permit);
        });
    }
}

fn collect(first: PendingHeartbeat, inbox: &mut mpsc::Receiver<PendingHeartbeat>) -> Vec<PendingHeartbeat> {
    let mut bytes = first.heartbeat.encoded_len();
    let mut batch = vec![first];
    while batch.len() < BATCH_MAX && bytes < BATCH_BYTES_MAX {
        let Ok(next) = inbox.try_recv() else { break };
        bytes += next.heartbeat.encoded_len();
        batch.push(next);
    }
    batch
}

async fn confirm(member: &Arc<Member>, peers: &Peers, batch: Vec<PendingHeartbeat>) -> Result<(), Failure> {
    let mut replies: BTreeMap<(String, u64), mpsc::Sender<LeaseGrant>> = BTreeMap::new();
    let mut heartbeats = Vec::with_capacity(batch.len());
    for PendingHeartbeat { heartbeat, grant } in batch {
        replies.insert((heartbeat.node.clone(), heartbeat.registration), grant);
        heartbeats.push(heartbeat);
    }
    for RelayedGrant { node, grant } in grants(member, peers, heartbeats).await? {
        let Some(grant) = grant else { continue };
        if let Some(reply) = replies.get(&(node, grant.registration)) {
            // A session that is gone or does not read needs no grant; its agent sends again.
            let _ = reply.try_send(grant);
        }
    }
    Ok(())
}

async fn grants(
    member: &Arc<Member>,
    peers: &Peers,
    heartbeats: Vec<RelayedHeartbeat>,
) -> Result<Vec<RelayedGrant>, Failure> {
    if let Some(office) = member.office() {
        return office.confirm(heartbeats).await;
    }
    let address = member.other_leader().ok_or_else(no_leader)?;
    let request = RelayHeartbeatsRequest { cluster_id: member.cluster_id.to_string(), heartbeats };
    Ok(call(RELAY_DEADLINE, peers.relay(&address)?.heartbeats(request)).await?.grants)
}
