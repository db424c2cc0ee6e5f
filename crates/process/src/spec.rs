//! What a keeper is told at its start: `DIR/spec.json`, private to the user because the environment may hold secrets.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use outlast_types::{AttemptId, BootTime};
use serde::{Deserialize, Serialize};

use crate::cgroup::CgroupPlan;
use crate::files;

/// Bumped when an old keeper could not run a new spec. A keeper and its spec are always of one binary, except when an
/// agent was upgraded and adopts: it then reads only `attempt`, `rank` and `cgroup`.
const SPEC_VERSION: u32 = 1;

/// What a worker gets from its surroundings where its spec says nothing.
pub(crate) const INHERITED: [&str; 4] = ["PATH", "HOME", "LANG", "TMPDIR"];

/// Everything a keeper needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperSpec {
    pub attempt: AttemptId,
    pub rank: u32,
    /// Program and arguments; a program without a slash is looked up in the worker's `PATH`.
    pub command: Vec<String>,
    /// The worker's whole environment; only `PATH`, `HOME`, `LANG` and `TMPDIR` are inherited where absent. The keeper
    /// adds `OUTLAST_KEEPER`, by which it is known later which processes are its own.
    pub env: BTreeMap<String, String>,
    pub cwd: PathBuf,
    /// `None`: no cgroup; the process group and the keeper's descendants are all there is.
    pub cgroup: Option<CgroupPlan>,
    /// The worker must be dead before `lease_deadline` (A4 of the lease protocol).
    pub exclusive: bool,
    /// On `CLOCK_BOOTTIME`; counted for `exclusive` only, and required there.
    #[serde(with = "optional_boot_time")]
    pub lease_deadline: Option<BootTime>,
    /// How long before the deadline the killing starts.
    pub kill_budget_ms: u64,
    pub log_segment_bytes: u64,
    /// Newest segments kept; older ones are dropped, which shows as a jump of `seq`.
    pub log_segments_max: u32,
}

impl KeeperSpec {
    /// 8 MiB, so that one segment is a handful of network messages when it leaves the node.
    pub const LOG_SEGMENT_BYTES: u64 = 8 << 20;
    pub const LOG_SEGMENTS_MAX: u32 = 16;

    /// A spec with an empty environment, no cgroup, no lease and the default log sizes.
    pub fn new(attempt: AttemptId, rank: u32, command: Vec<String>, cwd: impl Into<PathBuf>) -> Self {
        Self {
            attempt,
            rank,
            command,
            env: BTreeMap::new(),
            cwd: cwd.into(),
            cgroup: None,
            exclusive: false,
            lease_deadline: None,
            kill_budget_ms: 500,
            log_segment_bytes: Self::LOG_SEGMENT_BYTES,
            log_segments_max: Self::LOG_SEGMENTS_MAX,
        }
    }

    /// Why no keeper could run this, if so.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        if self.command.is_empty() {
            return Some("the command is empty");
        }
        if self.exclusive && self.lease_deadline.is_none() {
            return Some("an exclusive worker needs a lease deadline");
        }
        let nul = |text: &str| text.contains('\0');
        if self.command.iter().any(|arg| nul(arg)) || self.env.iter().any(|(k, v)| nul(k) || nul(v)) {
            return Some("the command or its environment contains a NUL byte");
        }
        if self.env.keys().any(|name| name.is_empty() || name.contains('=')) {
            return Some("a name in the environment is empty or contains '='");
        }
        None
    }
}

/// `spec.json` as it is on the disk.
#[derive(Serialize, Deserialize)]
pub(crate) struct SpecFile {
    version: u32,
    /// The value of `OUTLAST_KEEPER` in every process of the worker: unique on this machine.
    pub(crate) mark: String,
    pub(crate) spec: KeeperSpec,
}

impl SpecFile {
    pub(crate) fn new(spec: KeeperSpec, mark: String) -> Self {
        Self { version: SPEC_VERSION, mark, spec }
    }

    /// Durably, before anything is started: without it nobody could tell later which processes are the worker's.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        files::write_json(&dir.join("spec.json"), self)
    }

    pub(crate) fn read(dir: &Path) -> io::Result<Option<Self>> {
        let Some(file) = files::read_json::<Self>(&dir.join("spec.json"))? else { return Ok(None) };
        if file.version > SPEC_VERSION {
            let text = format!("spec.json has version {}, this program knows {SPEC_VERSION}", file.version);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Some(file))
    }
}

mod optional_boot_time {
    use outlast_types::BootTime;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        time: &Option<BootTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(|time| time.0).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<BootTime>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(BootTime))
    }
}
