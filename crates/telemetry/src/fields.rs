//! The field names of log lines. One word for one thing, in every crate, so that one search finds everything.

pub const JOB: &str = "job";
pub const ATTEMPT: &str = "attempt";
pub const RANK: &str = "rank";
pub const NODE: &str = "node";
pub const TERM: &str = "term";
pub const INDEX: &str = "index";

/// All of them, for checks.
pub const ALL: [&str; 6] = [JOB, ATTEMPT, RANK, NODE, TERM, INDEX];
