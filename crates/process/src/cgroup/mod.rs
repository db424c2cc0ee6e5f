//! Control groups: what this node can enforce, and one group per worker.
//!
//! ```text
//!  Cgroups::detect ──plan──► CgroupPlan (in the keeper's spec) ──► Cgroup: create, join, kill_all, is_empty, remove
//! ```
//! Version 2, version 1 and the mixture of both are known. The state is the kernel's; nothing is remembered here.

mod detect;
mod group;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use detect::Cgroups;
pub use group::Cgroup;

/// Which resources of a worker are limited. `None` and `false` limit nothing.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CgroupLimits {
    pub memory_bytes: Option<u64>,
    /// Thousandths of a core: a share when the node is busy, not a ceiling.
    pub cpu_millis: Option<u64>,
    /// Makes `cpu_millis` a ceiling too.
    pub cpu_hard: bool,
    pub pids: Option<u64>,
}

/// One worker's cgroup, before it exists: folders to make and limits to write. Absolute, so that it can be found again
/// by an agent that was started elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPlan {
    /// The folder whose members are counted and killed.
    pub track: CgroupDir,
    pub memory: Option<CgroupDir>,
    pub cpu: Option<CgroupDir>,
    pub pids: Option<CgroupDir>,
    pub limits: CgroupLimits,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CgroupDir {
    pub path: PathBuf,
    /// Version 2.
    pub unified: bool,
}

impl CgroupPlan {
    /// The folders, each once: with version 2 they are all the same.
    fn dirs(&self) -> Vec<&CgroupDir> {
        let mut dirs: Vec<&CgroupDir> = Vec::new();
        for dir in [Some(&self.track), self.memory.as_ref(), self.cpu.as_ref(), self.pids.as_ref()]
            .into_iter()
            .flatten()
        {
            if !dirs.contains(&dir) {
                dirs.push(dir);
            }
        }
        dirs
    }
}
