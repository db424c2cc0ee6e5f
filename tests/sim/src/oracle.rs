//! What was asked, answered and seen, and what must hold of it.
//!
//! A call that timed out has an *unknown* outcome: it may have taken effect, may yet, or never. Nothing is concluded from it
//! until the same request, sent again, is answered.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use outlast_consensus::Consensus;
use outlast_control::state::{CheckpointState, ClusterState, encode_state};
use outlast_types::JobId;

/// A submission, by its request id.
#[derive(Clone, Debug, Default)]
pub(crate) struct Submission {
    pub(crate) name: String,
    /// Known once it was acknowledged.
    pub(crate) job: Option<String>,
    pub(crate) cancelled: bool,
}

#[derive(Default)]
pub(crate) struct Oracle {
    pub(crate) trace: Vec<String>,
    pub(crate) violation: Option<String>,
    pub(crate) submissions: BTreeMap<String, Submission>,
    /// Which request made a job.
    made_by: BTreeMap<String, String>,
    /// The highest index of a confirmed read that has been answered.
    read_floor: u64,
    /// Applied index → hash of the state there, of whichever coordinator came first.
    states: BTreeMap<u64, (String, blake3::Hash)>,
    leaders: BTreeMap<u64, String>,
    /// The newest sealed step of each job that any coordinator's state had.
    sealed: BTreeMap<JobId, u64>,
    pub(crate) calls: u64,
    pub(crate) unknown: u64,
}

pub(crate) type Shared = Rc<RefCell<Oracle>>;

fn now_ms() -> u64 {
    turmoil::sim_elapsed().map_or(0, |elapsed| elapsed.as_millis() as u64)
}

impl Oracle {
    pub(crate) fn note(&mut self, line: String) {
        self.trace.push(format!("{:>7} {line}", now_ms()));
    }

    pub(crate) fn note_at(&mut self, at_ms: u64, line: &str) {
        self.trace.push(format!("{at_ms:>7} {line}"));
    }

    /// The first one counts; what comes after may follow from it.
    pub(crate) fn broken(&mut self, why: String) {
        self.note(format!("BROKEN {why}"));
        self.violation.get_or_insert(why);
    }

    pub(crate) fn floor(&self) -> u64 {
        self.read_floor
    }

    /// Submissions that were acknowledged when this is called: each read that begins now must find them.
    pub(crate) fn acknowledged(&self) -> Vec<(String, Submission)> {
        let all = self.submissions.iter().filter(|(_, submission)| submission.job.is_some());
        all.map(|(request, submission)| (request.clone(), submission.clone())).collect()
    }

    pub(crate) fn acknowledge(&mut self, request: &str, job: &str) {
        if let Some(other) = self.made_by.insert(job.to_owned(), request.to_owned())
            && other != request
        {
            self.broken(format!("15: requests {other} and {request} were both answered with job {job}"));
        }
        let before = self.submissions.entry(request.to_owned()).or_default().job.replace(job.to_owned());
        if let Some(before) = before.filter(|before| before != job) {
            self.broken(format!("15: request {request} made job {before}, and now job {job}"));
        }
    }

    /// `floor`: [`Oracle::floor`] when the read began.
    pub(crate) fn read_at(&mut self, who: &str, index: u64, floor: u64) {
        if index < floor {
            self.broken(format!(
                "reads: {who} read at index {index}, though {floor} had been read before it asked"
            ));
        }
        self.read_floor = self.read_floor.max(index);
    }

    pub(crate) fn sealed_step(&self, job: JobId) -> u64 {
        self.sealed.get(&job).copied().unwrap_or_default()
    }

    /// A look at a coordinator's state.
    pub(crate) fn look(&mut self, who: &str, consensus: &Consensus) -> u64 {
        let leadership = consensus.leadership().borrow().clone();
        if leadership.is_self {
            let leader = self.leaders.entry(leadership.term).or_insert_with(|| who.to_owned()).clone();
            if leader != who {
                self.broken(format!("1: {leader} and {who} both led term {}", leadership.term));
            }
        }
        let applied = consensus.read(|state| state.applied);
        if self.states.get(&applied).is_some_and(|(first, _)| first == who) {
            return applied;
        }
        // Whoever is at an index first is looked at in full; the others are compared.
        let (hash, checked, sealed) = consensus.read(|state| {
            let hash = blake3::hash(&encode_state(state));
            let is_new = !self.states.contains_key(&state.applied);
            let checked = if is_new { state.check_invariants() } else { Ok(()) };
            (hash, checked, if is_new { sealed_steps(state) } else { BTreeMap::new() })
        });
        for (job, step) in sealed {
            let newest = self.sealed.entry(job).or_default();
            *newest = step.max(*newest);
        }
        if let Err(why) = checked {
            self.broken(format!("in the state of {who} at {applied}: {}", why.join("; ")));
        }
        match self.states.get(&applied).cloned() {
            None => {
                self.states.insert(applied, (who.to_owned(), hash));
                self.note(format!("{who} applied {applied} {}", &hash.to_hex()[..8]));
            }
            Some((first, other)) if other != hash => {
                self.broken(format!("4: {first} and {who} differ at index {applied}"));
            }
            Some(_) => {}
        }
        applied
    }
}

fn sealed_steps(state: &ClusterState) -> BTreeMap<JobId, u64> {
    let newest = |job: &outlast_control::state::Job| {
        let sealed =
            job.checkpoints.values().filter(|checkpoint| checkpoint.state == CheckpointState::Sealed);
        sealed.map(|checkpoint| checkpoint.step).max()
    };
    state.jobs.values().filter_map(|job| Some((job.id, newest(job)?))).collect()
}
