//! What is known of a run: one record for everything that was done and seen, in the order of one clock.

mod record;
mod recorder;

pub(crate) use record::{
    Answer, Call, FinalAttempt, FinalCheckpoint, FinalJob, Happened, JobSeen, Kept, Phase, Record, Usage,
    What, Work, WorkKind,
};
pub(crate) use recorder::{Recorder, now_ns};
