//! What the cluster wants of this node, as checked types: the wire's `DesiredState` stops here.

use std::collections::BTreeMap;
use std::fmt;

use outlast_blobs::ShardKey;
use outlast_proto::FieldError;
use outlast_proto::convert::{parse, shard_task};
use outlast_proto::node::v1 as pb;
use outlast_types::{AttemptId, CheckpointSeq, Digest, Millis};
use serde::{Deserialize, Serialize};

use crate::upkeep::OrderKey;

/// One worker of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct WorkerKey {
    pub(crate) attempt: AttemptId,
    pub(crate) rank: u32,
}

impl WorkerKey {
    /// As a name of a folder or socket.
    pub(crate) fn file_name(&self) -> String {
        format!("{}-{}", self.attempt.file_name(), self.rank)
    }
}

impl fmt::Display for WorkerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rank {}", self.attempt, self.rank)
    }
}

/// Another agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) node: String,
    /// `host:port`
    pub(crate) address: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BundleRef {
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
    pub(crate) holders: Vec<Peer>,
}

/// The rank's part of the checkpoint that its attempt starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RestoreFrom {
    pub(crate) seq: CheckpointSeq,
    pub(crate) step: u64,
    /// The attempt that wrote it.
    pub(crate) attempt: AttemptId,
    pub(crate) root: Digest,
    pub(crate) size_bytes: u64,
    pub(crate) holders: Vec<Peer>,
    /// The object store has it too.
    #[serde(default)]
    pub(crate) stored: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Readiness {
    /// The worker says so itself, or nobody asks.
    Worker,
    Tcp {
        port: u16,
    },
    Http {
        port: u16,
        path: String,
    },
}

/// One worker that the cluster has placed here. Written beside the worker, so that a restarted agent knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Assigned {
    pub(crate) key: WorkerKey,
    pub(crate) world_size: u32,
    pub(crate) local_rank: u32,
    pub(crate) local_world_size: u32,
    /// `Some(grace)`: stop it, and never start it.
    pub(crate) stop: Option<Millis>,
    pub(crate) job_name: String,
    pub(crate) command: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) cpu_millis: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) gpus: Vec<u32>,
    pub(crate) exclusive: bool,
    pub(crate) rendezvous: Option<String>,
    pub(crate) bundle: Option<BundleRef>,
    pub(crate) restore: Option<RestoreFrom>,
    /// 0: not by time.
    pub(crate) checkpoint_every_ms: Millis,
    /// 0: not by steps.
    pub(crate) checkpoint_every_steps: u64,
    pub(crate) checkpoint_now: bool,
    pub(crate) replica_peers: Vec<Peer>,
    pub(crate) replicas: u32,
    pub(crate) readiness: Readiness,
    pub(crate) may_start: bool,
}

/// What is to be done with one shard of a sealed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShardOrder {
    pub(crate) key: OrderKey,
    pub(crate) size_bytes: u64,
    /// Who has the bytes.
    pub(crate) holders: Vec<Peer>,
    /// The object store has them too.
    pub(crate) stored: bool,
    /// For the object store: what goes there with them.
    pub(crate) bundle: Option<BundleRef>,
}

/// All that the cluster wants here, as of a log index.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Desired {
    pub(crate) index: u64,
    pub(crate) workers: Vec<Assigned>,
    pub(crate) orders: Vec<ShardOrder>,
}

impl Desired {
    /// What cannot be understood is left out and named: absence does no harm, a wrong start would.
    pub(crate) fn from_wire(state: pb::DesiredState) -> (Self, Vec<FieldError>) {
        let pb::DesiredState { index, workers, orders } = state;
        let mut refused = Vec::new();
        let workers = understood(workers, &mut refused);
        let orders = understood(orders, &mut refused);
        (Self { index, workers, orders }, refused)
    }
}

fn understood<W, T: TryFrom<W, Error = FieldError>>(wire: Vec<W>, refused: &mut Vec<FieldError>) -> Vec<T> {
    let one = |item: W| T::try_from(item).map_err(|err| refused.push(err)).ok();
    wire.into_iter().filter_map(one).collect()
}

fn peers(peers: Vec<pb::Peer>) -> Vec<Peer> {
    peers.into_iter().map(|pb::Peer { node, address }| Peer { node, address }).collect()
}

fn digest(field: &'static str, bytes: &[u8]) -> Result<Digest, FieldError> {
    Digest::try_from(bytes).map_err(|error| FieldError::new(field, error))
}

impl TryFrom<pb::Bundle> for BundleRef {
    type Error = FieldError;

    fn try_from(bundle: pb::Bundle) -> Result<Self, FieldError> {
        let pb::Bundle { digest: bytes, size_bytes, holders } = bundle;
        Ok(Self { digest: digest("bundle.digest", &bytes)?, size_bytes, holders: peers(holders) })
    }
}

impl TryFrom<pb::Restore> for RestoreFrom {
    type Error = FieldError;

    fn try_from(restore: pb::Restore) -> Result<Self, FieldError> {
        let pb::Restore { checkpoint, step, attempt, root, size_bytes, holders, stored } = restore;
        Ok(Self {
            seq: parse("restore.checkpoint", &checkpoint)?,
            step,
            attempt: parse("restore.attempt", &attempt)?,
            root: digest("restore.root", &root)?,
            size_bytes,
            holders: peers(holders),
            stored,
        })
    }
}

impl TryFrom<pb::ShardOrder> for ShardOrder {
    type Error = FieldError;

    fn try_from(order: pb::ShardOrder) -> Result<Self, FieldError> {
        let pb::ShardOrder { task, attempt, checkpoint, rank, root, size_bytes, holders, stored, bundle } =
            order;
        let attempt: AttemptId = parse("order.attempt", &attempt)?;
        let seq = parse("order.checkpoint", &checkpoint)?;
        let shard = ShardKey { job: attempt.group.job, attempt, seq, rank };
        let key = OrderKey { task: shard_task(&task)?, shard, root: digest("order.root", &root)? };
        let bundle = bundle.map(TryInto::try_into).transpose()?;
        Ok(Self { key, size_bytes, holders: peers(holders), stored, bundle })
    }
}

impl TryFrom<Option<pb::ReadyCheck>> for Readiness {
    type Error = FieldError;

    fn try_from(check: Option<pb::ReadyCheck>) -> Result<Self, FieldError> {
        let Some(pb::ReadyCheck { kind, port, path }) = check else { return Ok(Readiness::Worker) };
        let port = || u16::try_from(port).map_err(|error| FieldError::new("ready.port", error));
        match kind.as_str() {
            "tcp" => Ok(Readiness::Tcp { port: port()? }),
            "http" => Ok(Readiness::Http { port: port()?, path }),
            "worker" | "" => Ok(Readiness::Worker),
            other => Err(FieldError::new("ready.kind", format!("{other:?} is not worker, tcp or http"))),
        }
    }
}

impl TryFrom<pb::DesiredWorker> for Assigned {
    type Error = FieldError;

    fn try_from(worker: pb::DesiredWorker) -> Result<Self, FieldError> {
        let pb::DesiredWorker {
            attempt,
            rank,
            world_size,
            local_rank,
            local_world_size,
            stop,
            stop_grace_ms,
            job_name,
            kind: _,
            command,
            env,
            cpu_millis,
            memory_bytes,
            gpus,
            exclusive,
            rendezvous,
            bundle,
            restore,
            checkpoint_every_ms,
            checkpoint_every_steps,
            checkpoint_now,
            replica_peers,
            replicas,
            ready,
            may_start,
        } = worker;
        Ok(Self {
            key: WorkerKey { attempt: parse("attempt", &attempt)?, rank },
            world_size,
            local_rank,
            local_world_size,
            stop: stop.then_some(stop_grace_ms),
            job_name,
            command,
            env: env.into_iter().collect(),
            cpu_millis,
            memory_bytes,
            gpus,
            exclusive,
            rendezvous: (!rendezvous.is_empty()).then_some(rendezvous),
            bundle: bundle.map(TryInto::try_into).transpose()?,
            restore: restore.map(TryInto::try_into).transpose()?,
            checkpoint_every_ms,
            checkpoint_every_steps,
            checkpoint_now,
            replica_peers: peers(replica_peers),
            replicas,
            readiness: ready.try_into()?,
            may_start,
        })
    }
}

#[cfg(test)]
pub(crate) fn sample(attempt: &str, rank: u32) -> Assigned {
    let worker = pb::DesiredWorker {
        attempt: attempt.to_owned(),
        rank,
        world_size: 1,
        local_world_size: 1,
        job_name: "sample".to_owned(),
        command: vec!["true".to_owned()],
        may_start: true,
        ..Default::default()
    };
    worker.try_into().expect("a valid worker")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_is_not_understood_is_left_out_and_its_field_named() {
        let good = pb::DesiredWorker { attempt: "j1/0@1.1".into(), ..Default::default() };
        let bad = pb::DesiredWorker { attempt: "j1/0@1.2".into(), ..Default::default() };
        let bad = pb::DesiredWorker {
            restore: Some(pb::Restore { checkpoint: "7".into(), ..Default::default() }),
            ..bad
        };
        let (desired, refused) =
            Desired::from_wire(pb::DesiredState { index: 3, workers: vec![good, bad], orders: Vec::new() });
        assert_eq!((desired.index, desired.workers.len()), (3, 1));
        assert_eq!(refused[0].field, "restore.checkpoint");
    }
}
