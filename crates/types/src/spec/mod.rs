//! What the user wants: a checked job specification.
//!
//! A job file (YAML, TOML or JSON) becomes a `serde_json::Value` at the edge; [`parse`] turns that into a [`JobSpec`]
//! or into an error that names the key, what is wrong with it, and what to write instead.

mod parse;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Resources, Span};

pub use parse::{SpecError, parse};

/// The most workers that one job may ask for; a gang is one entry in the log and has to stay small.
pub const WORKERS_MAX: u32 = 4_096;
/// The most bytes of command, environment and labels together; a command in the log stays below 1 MiB.
pub const SPEC_SIZE_MAX: usize = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// One group; done when all ranks exit with 0.
    Training,
    /// Each worker is a replica and a group of its own; restarted whenever it ends.
    Service,
    /// Each worker is a group of its own; done when all have exited with 0.
    Batch,
}

impl JobKind {
    pub fn as_str(self) -> &'static str {
        match self {
            JobKind::Training => "training",
            JobKind::Service => "service",
            JobKind::Batch => "batch",
        }
    }
}

/// How many workers: a fixed number where `min == max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workers {
    pub min: u32,
    pub max: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Durable on the node's own disk.
    Local,
    /// Durable in at least two failure domains.
    Replicated,
    /// In the object store.
    Stored,
}

impl Durability {
    pub fn as_str(self) -> &'static str {
        match self {
            Durability::Local => "local",
            Durability::Replicated => "replicated",
            Durability::Stored => "stored",
        }
    }
}

/// When the worker is told that a checkpoint is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Every {
    Time(Span),
    Steps(u64),
    /// Chosen by us from what a checkpoint costs and how often things fail.
    Auto,
}

/// What happens to a checkpoint that comes while earlier ones of the attempt are still being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBusy {
    /// It is skipped, by all ranks of the gang: training never waits for a disk.
    #[default]
    Skip,
    /// The save waits for its turn.
    Wait,
}

impl OnBusy {
    pub fn as_str(self) -> &'static str {
        match self {
            OnBusy::Skip => "skip",
            OnBusy::Wait => "wait",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPolicy {
    /// Default `auto`.
    pub every: Every,
    /// How many good checkpoints stay; default 3, at least 1.
    pub keep: u32,
    /// `None`: `replicated` where two or more failure domains are registered, else `local`.
    pub durability: Option<Durability>,
    /// Default `skip`.
    #[serde(default)]
    pub on_busy: OnBusy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HangAfter {
    /// Learned from the steps seen so far, at least a minute.
    Auto,
    After(Span),
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryPolicy {
    /// Failures of the program itself, without a new checkpoint in between, after which the job fails; default 3.
    pub max_user_failures: u32,
    pub hang_after: HangAfter,
    /// From SIGTERM to SIGKILL when a worker is asked to stop; default 10 s.
    pub stop_grace: Span,
    /// How long holders that are merely away are waited for before an older checkpoint is taken; default 60 s.
    pub restore_wait: Span,
}

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Placement {
    /// The label over whose values ranks are spread, for example `zone`.
    pub spread: Option<String>,
    /// Labels that a node must have.
    pub require: BTreeMap<String, String>,
    /// Labels that make a node the better choice.
    pub prefer: BTreeMap<String, String>,
}

/// How a service replica shows that it can serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadyCheck {
    /// The worker says so through its socket.
    Worker,
    /// A TCP connection to this port on the node succeeds.
    Tcp { port: u16 },
    /// `GET path` on this port answers 2xx.
    Http { port: u16, path: String },
}

/// A checked job specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    pub name: String,
    pub kind: JobKind,
    /// Program and arguments; never empty.
    pub command: Vec<String>,
    pub workers: Workers,
    /// Of each worker.
    pub resources: Resources,
    pub env: BTreeMap<String, String>,
    pub checkpoint: CheckpointPolicy,
    pub recovery: RecoveryPolicy,
    pub placement: Placement,
    /// `None`: ready as soon as it runs.
    pub ready: Option<ReadyCheck>,
    /// Two attempts of a group never run at one time; the workers stop when their node loses its lease.
    pub exclusive: bool,
    /// Length of time that the record stays after the job's end; default 7 days.
    pub retention: Span,
}

impl JobSpec {
    /// How many groups the job has, and how many ranks each.
    pub fn shape(&self) -> (u32, u32) {
        match self.kind {
            JobKind::Training => (1, self.workers.max),
            JobKind::Service | JobKind::Batch => (self.workers.max, 1),
        }
    }
}
