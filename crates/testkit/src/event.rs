//! What can happen to whom. Every message and every timer of a run is one of these.

use std::rc::Rc;

use outlast_control::plan::SaveCost;
use outlast_control::state::{
    AdoptedWorker, CheckpointState, Envelope, Holder, Observation, Registration, Response,
};
use outlast_types::{AttemptId, CheckpointSeq, Digest, JobId, NodeId, RegistrationId};

use crate::assigned::{Desired, OrderKey, ShardKey, WorkerKey};
use crate::faults::Fault;
use crate::raft::RaftMsg;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    Coord(usize),
    Agent(usize),
    /// Clients and the world itself.
    World,
}

#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) to: Host,
    /// The run of the process that it is for; 0: whichever runs.
    pub(crate) run: u32,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Msg(Host, Msg),
    Coord(CoordTimer),
    Agent(AgentTimer),
    World(WorldTimer),
}

#[derive(Clone, Debug)]
pub(crate) enum CoordTimer {
    Election(u64),
    Beat(u64),
    Synced {
        upto: u64,
        version: u64,
    },
    Apply,
    Try(u64),
    TryOver(u64, u32),
    CallOver(u64),
    Flush,
    Lease,
    RoundOver(u64),
    Pass(u64),
    Look,
    PeersLook,
    /// Of the office with this incarnation.
    Lost(NodeId, RegistrationId, u64),
    /// A deposed leader has noticed.
    Leave(u64),
}

#[derive(Clone, Debug)]
pub(crate) enum AgentTimer {
    Tick,
    Connect,
    WelcomeOver(u64),
    HedgeOver,
    /// The next thing on a worker's way to its start.
    Start(WorkerKey),
    /// Of a process on the machine, whatever becomes of the agent.
    Step(u64),
    Killed(u64),
    Fence(u64),
    Save(u64),
    SaveOver(u64, u32),
    Copy(u64),
    CopyOver(u64, u32),
    OrderDone(OrderKey),
    FetchOver(u64, u32),
    Scrub,
}

#[derive(Clone, Debug)]
pub(crate) enum WorldTimer {
    Fault(Box<Fault>),
    NextFault,
    NextClient,
    ClientOver(u64, u32),
    Restart(Host),
    /// A cut link is whole again.
    Mend,
    Check,
}

#[derive(Clone, Debug)]
pub(crate) struct Receipt {
    pub(crate) shard: ShardKey,
    pub(crate) root: Option<Digest>,
    pub(crate) holders: Vec<Holder>,
    pub(crate) failed: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Heartbeat {
    pub(crate) seq: u64,
    pub(crate) progress: Vec<(AttemptId, u32, u64, Option<SaveCost>)>,
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) done: Vec<OrderKey>,
    pub(crate) disk_full: bool,
}

/// Where a grant goes back to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Route {
    Session(u64),
    Hedge,
}

#[derive(Clone, Debug)]
pub(crate) struct Beat {
    pub(crate) agent: usize,
    pub(crate) node: NodeId,
    pub(crate) registration: RegistrationId,
    pub(crate) heartbeat: Rc<Heartbeat>,
    pub(crate) route: Route,
}

#[derive(Clone, Debug)]
pub(crate) struct LeaseGrant {
    pub(crate) agent: usize,
    pub(crate) registration: RegistrationId,
    pub(crate) ack_seq: u64,
    pub(crate) incarnation: u64,
    pub(crate) assignments_index: u64,
    pub(crate) route: Route,
}

#[derive(Clone, Debug)]
pub(crate) struct Hello {
    pub(crate) registration: Registration,
    pub(crate) desired_index: u64,
    pub(crate) held: Vec<(JobId, CheckpointSeq)>,
}

#[derive(Clone, Debug)]
pub(crate) enum UpMsg {
    Hello(Box<Hello>),
    Heartbeat(Rc<Heartbeat>),
    Observations { first: u64, observations: Vec<Observation> },
}

/// What became of a checkpoint. `None`: its record is gone; not named where it is not known.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    pub(crate) job: JobId,
    pub(crate) seq: CheckpointSeq,
    pub(crate) state: Option<CheckpointState>,
    /// Of a sealed one: the roots of the ranks that this node should hold, and of all.
    pub(crate) here: Vec<(ShardKey, Digest)>,
    pub(crate) roots: Vec<Digest>,
}

#[derive(Clone, Debug)]
pub(crate) enum DownMsg {
    Welcome { index: u64 },
    Desired(Desired),
    Lease(LeaseGrant),
    Observed(u64),
    Updates(Vec<Update>),
    Refused { registration: RegistrationId, register_anew: bool, last: bool },
}

/// `None`: nobody knows, or not now.
pub(crate) type Answer = Option<(u64, Response)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    Yes(CheckpointSeq),
    Skipped,
    Fenced,
    Refused,
    Unavailable,
}

/// What a peer says to a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bytes {
    Good,
    Corrupt,
    Missing,
}

#[derive(Clone, Debug)]
pub(crate) enum Msg {
    Raft(RaftMsg),
    Relay { call: u64, tries: u32, envelope: Rc<Envelope> },
    Relayed { call: u64, tries: u32, answer: Answer },
    Beats(Vec<Beat>),
    Grants(Vec<LeaseGrant>),
    Up(u64, UpMsg),
    Down(u64, DownMsg),
    Closed(u64),
    Hedge(Beat),
    Open { save: u64, tries: u32, node: NodeId, registration: RegistrationId, attempt: AttemptId, step: u64 },
    OpenAnswer { save: u64, tries: u32, opened: Opened },
    Put { save: u64, tries: u32, shard: ShardKey, root: Digest },
    PutAnswer { save: u64, tries: u32, holder: Option<Holder> },
    Get { fetch: u64, tries: u32, shard: ShardKey, root: Digest },
    GetAnswer { fetch: u64, tries: u32, bytes: Bytes },
    Ask { call: u64, tries: u32, envelope: Rc<Envelope> },
    Asked { call: u64, tries: u32, answer: Answer },
}

/// What ran when a registration was made.
pub(crate) type Adopted = Vec<AdoptedWorker>;
