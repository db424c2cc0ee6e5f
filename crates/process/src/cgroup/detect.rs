//! Finds out what cgroups this process may make: by looking at the mounts, then by trying.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use outlast_types::AttemptId;

use super::{CgroupDir, CgroupLimits, CgroupPlan};

const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// What this node can enforce, and where.
#[derive(Clone, Debug)]
pub struct Cgroups {
    /// Everything of a worker can be found and killed, whatever it does. Needed for `exclusive` jobs.
    pub can_fence: bool,
    pub can_limit_memory: bool,
    pub can_limit_cpu: bool,
    /// What cannot be enforced and why, a sentence for people; empty when everything can.
    pub why_not: String,
    track: Option<CgroupDir>,
    limits: BTreeMap<&'static str, CgroupDir>,
}

impl Cgroups {
    /// Looks and tries; makes (and leaves) a folder `outlast` below the own cgroup.
    pub fn detect() -> Self {
        let mounts = read("/proc/self/mountinfo");
        let own = read("/proc/self/cgroup");
        Self::from_mounts(&parse_mounts(&mounts, &own))
    }

    /// Nothing to enforce with, for a reason. The process group and the keeper's descendants remain.
    pub fn none(why_not: impl Into<String>) -> Self {
        Self {
            can_fence: false,
            can_limit_memory: false,
            can_limit_cpu: false,
            why_not: why_not.into(),
            track: None,
            limits: BTreeMap::new(),
        }
    }

    fn from_mounts(own: &[OwnCgroup]) -> Self {
        if own.is_empty() {
            return Self::none(
                "no cgroup file system is mounted, so workers can neither be limited nor fenced",
            );
        }
        let mut problems = Vec::new();
        let (mut track, mut limits) = (None, BTreeMap::new());
        // Version 2 first: its cgroup.kill is the surest way; then the freezer of version 1; then any other.
        let mut ordered: Vec<&OwnCgroup> = own.iter().collect();
        ordered.sort_by_key(|group| if group.unified { 0 } else { 1 + u8::from(!group.has("freezer")) });
        for group in ordered {
            let wanted: Vec<_> =
                CONTROLLERS.into_iter().filter(|name| group.unified || group.has(name)).collect();
            if !group.unified && wanted.is_empty() && !group.has("freezer") {
                continue;
            }
            match group.prepare() {
                Ok(dir) => {
                    for name in wanted.into_iter().filter(|name| group.can_use(name, &dir)) {
                        limits.entry(name).or_insert_with(|| dir.clone());
                    }
                    if group.unified || group.has("freezer") {
                        track.get_or_insert(dir);
                    }
                }
                Err(err) => problems.push(format!("{}: {err}", group.path.display())),
            }
        }
        let limits_of = |name: &str| limits.contains_key(name);
        Self {
            can_fence: track.is_some(),
            can_limit_memory: limits_of("memory"),
            can_limit_cpu: limits_of("cpu"),
            why_not: why_not(track.is_some(), &CONTROLLERS.map(limits_of), &problems),
            track,
            limits,
        }
    }

    /// The cgroup of one worker, `outlast/AGENT/ATTEMPT-RANK`; `None` where there are none. `agent` must be unique among
    /// the agents of this machine and usable as a file name.
    pub fn plan(
        &self,
        agent: &str,
        attempt: &AttemptId,
        rank: u32,
        limits: CgroupLimits,
    ) -> Option<CgroupPlan> {
        let leaf = format!("{}-{rank}", attempt.file_name());
        let below =
            |dir: &CgroupDir| CgroupDir { path: dir.path.join(agent).join(&leaf), unified: dir.unified };
        let limit = |name: &str, wanted: bool| self.limits.get(name).filter(|_| wanted).map(below);
        Some(CgroupPlan {
            track: below(self.track.as_ref()?),
            memory: limit("memory", limits.memory_bytes.is_some()),
            cpu: limit("cpu", limits.cpu_millis.is_some()),
            pids: limit("pids", limits.pids.is_some()),
            limits,
        })
    }
}

fn why_not(can_fence: bool, can_limit: &[bool; 3], problems: &[String]) -> String {
    let mut missing = Vec::new();
    if !can_fence {
        missing.push("workers that leave their process group cannot be fenced".to_owned());
    }
    for (name, can) in CONTROLLERS.iter().zip(can_limit) {
        if !can {
            missing.push(format!("the {name} limit is not enforced"));
        }
    }
    if missing.is_empty() {
        return String::new();
    }
    let reason = if problems.is_empty() {
        "the controllers are not available here".to_owned()
    } else {
        problems.join("; ")
    };
    format!("{} ({reason}); run the agent as root, or delegate a cgroup to it", missing.join(", "))
}

/// The cgroup that this process is in, in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OwnCgroup {
    path: PathBuf,
    unified: bool,
    controllers: Vec<String>,
}

impl OwnCgroup {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// Makes `outlast` below it and checks that groups can be made and joined there.
    fn prepare(&self) -> io::Result<CgroupDir> {
        let path = self.path.join("outlast");
        create_dir(&path)?;
        let probe = path.join(format!("probe-{}", std::process::id()));
        create_dir(&probe)?;
        let joinable = fs::OpenOptions::new().write(true).open(probe.join("cgroup.procs")).map(drop);
        fs::remove_dir(&probe)?;
        joinable?;
        if self.unified {
            self.delegate(&path);
        }
        Ok(CgroupDir { path, unified: self.unified })
    }

    /// Version 2: controllers must be handed down level by level, and a level that does so may have no processes of its
    /// own (the root excepted), so this process moves to a leaf first where it is in the way.
    fn delegate(&self, below: &Path) {
        for name in CONTROLLERS {
            if enable(&self.path, name).is_err_and(|err| err.raw_os_error() == Some(EBUSY)) {
                let leaf = self.path.join("outlast-agent");
                if create_dir(&leaf).and_then(|()| fs::write(leaf.join("cgroup.procs"), "0")).is_ok() {
                    let _ = enable(&self.path, name);
                }
            }
            let _ = enable(below, name);
        }
    }

    fn can_use(&self, controller: &str, dir: &CgroupDir) -> bool {
        !self.unified
            || read(dir.path.join("cgroup.subtree_control")).split_whitespace().any(|name| name == controller)
    }
}

const EBUSY: i32 = 16;

pub(super) fn enable(dir: &Path, controller: &str) -> io::Result<()> {
    fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"))
}

pub(super) fn create_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Joins `/proc/self/mountinfo` with `/proc/self/cgroup`.
fn parse_mounts(mountinfo: &str, own: &str) -> Vec<OwnCgroup> {
    let mut found: Vec<OwnCgroup> = Vec::new();
    for line in mountinfo.lines() {
        let Some((front, back)) = line.split_once(" - ") else { continue };
        let front: Vec<&str> = front.split(' ').collect();
        let back: Vec<&str> = back.split(' ').collect();
        let (Some(root), Some(point), Some(kind)) = (front.get(3), front.get(4), back.first()) else {
            continue;
        };
        let unified = *kind == "cgroup2";
        if !unified && *kind != "cgroup" {
            continue;
        }
        let options: Vec<&str> = back.get(2).map_or_else(Vec::new, |text| text.split(',').collect());
        let Some((controllers, path)) = own_path(own, unified, &options) else { continue };
        // In a container the mount may show only a part of the hierarchy.
        let relative = path.strip_prefix(root.trim_end_matches('/')).unwrap_or("").trim_start_matches('/');
        let group = OwnCgroup { path: Path::new(point).join(relative), unified, controllers };
        if !found.iter().any(|other| other.unified == unified && other.controllers == group.controllers) {
            found.push(group);
        }
    }
    found
}

/// Controllers and path of this process in the hierarchy with these mount options.
fn own_path<'a>(own: &'a str, unified: bool, options: &[&str]) -> Option<(Vec<String>, &'a str)> {
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next()?, fields.next()?);
        let controllers: Vec<&str> = names.split(',').filter(|name| !name.is_empty()).collect();
        let matches = if unified {
            controllers.is_empty()
        } else {
            !controllers.is_empty() && controllers.iter().all(|name| options.contains(name))
        };
        matches.then(|| (controllers.into_iter().map(str::to_owned).collect(), path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_both_versions_are_understood() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw shared:1 - cgroup2 cgroup2 rw,nsdelegate\n\
            32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            33 30 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
        let own = "9:name=systemd:/\n4:memory:/a/b\n3:cpu,cpuacct:/docker/abc/x\n0::/\n";
        let found = parse_mounts(mounts, own);
        let paths: Vec<_> = found.iter().map(|group| group.path.to_str().expect("text")).collect();
        assert_eq!(
            paths,
            ["/sys/fs/cgroup/unified/", "/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/cpu,cpuacct/x"]
        );
        assert!(found[0].unified && found[2].has("cpu") && !found[1].has("cpu"));
        assert!(parse_mounts("rubbish\n1 2 - cgroup", "x:y").is_empty());
    }

    #[test]
    fn a_machine_with_version_two_alone_is_understood() {
        let mounts = "25 1 0:22 / / rw - ext4 /dev/vda rw\n\
            35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        let found = parse_mounts(mounts, "0::/system.slice/outlast.service\n");
        let path = PathBuf::from("/sys/fs/cgroup/system.slice/outlast.service");
        assert_eq!(found, [OwnCgroup { path, unified: true, controllers: Vec::new() }]);
        // In a container that sees only its own part.
        let part = "35 24 0:30 /../.. /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        assert_eq!(parse_mounts(part, "0::/\n")[0].path, Path::new("/sys/fs/cgroup/"));
    }

    /// A folder instead of a cgroup: it keeps what is written instead of acting on it.
    #[test]
    fn controllers_of_version_two_are_handed_down_and_believed_only_when_the_kernel_shows_them() {
        let folder = tempfile::tempdir().expect("temp dir");
        let below = folder.path().join("outlast");
        create_dir(&below).expect("made");
        create_dir(&below).expect("there already");
        let own = OwnCgroup { path: folder.path().to_owned(), unified: true, controllers: Vec::new() };
        own.delegate(&below);
        for level in [folder.path(), below.as_path()] {
            assert_eq!(read(level.join("cgroup.subtree_control")), "+pids", "the last of {CONTROLLERS:?}");
        }
        let dir = CgroupDir { path: below.clone(), unified: true };
        fs::write(below.join("cgroup.subtree_control"), "cpu memory\n").expect("as the kernel shows it");
        assert_eq!(CONTROLLERS.map(|name| own.can_use(name, &dir)), [true, true, false]);
        fs::remove_file(below.join("cgroup.subtree_control")).expect("removed");
        assert_eq!(CONTROLLERS.map(|name| own.can_use(name, &dir)), [false; 3]);
    }

    #[test]
    fn what_cannot_be_enforced_is_said_in_a_sentence() {
        let none = Cgroups::from_mounts(&[]);
        assert!(!none.can_fence && none.why_not.contains("no cgroup file system"));
        let locked = OwnCgroup { path: "/proc/nowhere".into(), unified: true, controllers: Vec::new() };
        let locked = Cgroups::from_mounts(&[locked]);
        assert!(!locked.can_fence && locked.why_not.contains("as root"), "{}", locked.why_not);
        assert_eq!(locked.plan("a", &"j1/0@1.1".parse().expect("valid"), 0, CgroupLimits::default()), None);
    }
}
