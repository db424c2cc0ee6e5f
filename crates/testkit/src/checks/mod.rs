//! The invariants, by their numbers, each one function. Who looks knows everything: the log that was committed, every disk,
//! every process, true time. What an event touched is checked with the event; everything now and then, and at the end.
//!
//! | number | what | where |
//! |---|---|---|
//! | 1, 4, 5, 6, 7, 9, 10 | one leader a term; what is committed stays, is one, and is on a quorum's disks | `log` |
//! | 13 | `apply` is deterministic: replicas and a replay are one state | `log` |
//! | 14, 15, 17, 19 | answers that were given are kept; a request is one change | `api` |
//! | 20, 21, 22, 24, 30 | gangs, capacity, numbers, one current attempt | `attempts`; and `ClusterState::check_invariants` |
//! | 23, 25, 26, 27, 28, 29 | leases, fences, incarnations | `leases` |
//! | 32, 33, 34, 35, 36, 37, 38 | what was sealed is there, complete, newest first, and not deleted | `checkpoints` |
//! | 31 | doubled and late messages are harmless | all of the above, with a network that doubles and delays |
//! | 43 to 51 | after the faults everything ends well, in bounded time | `heal` |
//!
//! Elsewhere: 2, 3, 8, 11, 12 (openraft's own simulator, `crates/consensus/tests`), 16, 18 (`crates/coordinator/tests`),
//! 39 to 42 (not built yet), 47, 52, 53, 54 (`tests/cluster`).

mod api;
mod attempts;
mod checkpoints;
mod leases;
mod log;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use outlast_control::state::{ClusterState, Envelope};
use outlast_types::{AttemptId, BootTime, GroupId, JobId, NodeId, RegistrationId, RequestId};

use self::attempts::GroupSeen;
use self::checkpoints::CheckpointSeen;

/// A rule that did not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    pub invariant: &'static str,
    pub why: String,
    pub at_us: u64,
}

/// Cores (in thousandths) and GPUs of each rank that a node holds.
type Given = BTreeMap<(AttemptId, u32), (u64, Vec<u32>)>;

/// What the observers know.
pub(crate) struct Checks {
    /// What the committed entries make.
    pub(crate) state: ClusterState,
    /// Term and commands of each committed entry.
    log: Vec<(u64, Rc<Vec<Envelope>>)>,
    leaders: BTreeMap<u64, usize>,
    compared: BTreeMap<usize, u64>,
    /// When the newest barrier was committed, in true time.
    barrier_us: u64,
    groups: BTreeMap<GroupId, GroupSeen>,
    checkpoints: BTreeMap<(JobId, outlast_types::CheckpointSeq), CheckpointSeen>,
    /// What is given out of each node.
    held: BTreeMap<NodeId, Given>,
    /// The deadline that an agent believes in.
    deadlines: BTreeMap<usize, (RegistrationId, BootTime)>,
    submitted: BTreeMap<RequestId, JobId>,
    cancelled: BTreeSet<JobId>,
}

impl Checks {
    pub(crate) fn new() -> Self {
        Self {
            state: ClusterState::new(),
            log: Vec::new(),
            leaders: BTreeMap::new(),
            compared: BTreeMap::new(),
            barrier_us: 0,
            groups: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            held: BTreeMap::new(),
            deadlines: BTreeMap::new(),
            submitted: BTreeMap::new(),
            cancelled: BTreeSet::new(),
        }
    }
}
