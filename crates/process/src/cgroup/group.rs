//! One worker's cgroup while it exists.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::detect::{create_dir, enable};
use super::{CgroupDir, CgroupLimits, CgroupPlan};

/// How often a folder that the kernel still calls busy is tried again: 50 times 10 ms.
const REMOVE_TRIES: u32 = 50;

/// The folders of one worker's cgroup. Made from its plan alone, so that whoever comes later can kill and remove it.
#[derive(Clone, Debug)]
pub struct Cgroup {
    plan: CgroupPlan,
}

impl Cgroup {
    /// The cgroup of a plan that somebody else has made (or that never came to be).
    pub fn existing(plan: CgroupPlan) -> Self {
        Self { plan }
    }

    /// # Errors
    /// When a folder cannot be made or a limit cannot be set; what was made is removed again.
    pub fn create(plan: CgroupPlan) -> io::Result<Self> {
        let group = Self { plan };
        let made = group
            .plan
            .dirs()
            .into_iter()
            .try_for_each(|dir| create_leaf(dir, &group.plan))
            .and_then(|()| group.set_limits());
        if made.is_err() {
            group.remove();
        }
        made.map(|()| group)
    }

    fn set_limits(&self) -> io::Result<()> {
        let CgroupLimits { memory_bytes, cpu_millis, cpu_hard, pids } = self.plan.limits;
        if let (Some(dir), Some(bytes)) = (&self.plan.memory, memory_bytes) {
            set_memory(dir, bytes)?;
        }
        if let (Some(dir), Some(millis)) = (&self.plan.cpu, cpu_millis) {
            set_cpu(dir, millis.max(1), cpu_hard)?;
        }
        if let (Some(dir), Some(count)) = (&self.plan.pids, pids) {
            write(dir, "pids.max", count)?;
        }
        Ok(())
    }

    /// Files that a process joins by writing `0` to them; opened beforehand, so that the child does nothing but write.
    ///
    /// # Errors
    /// When the group is gone or may not be joined.
    pub fn join_files(&self) -> io::Result<Vec<File>> {
        self.plan
            .dirs()
            .into_iter()
            .map(|dir| OpenOptions::new().write(true).open(dir.path.join("cgroup.procs")))
            .collect()
    }

    /// SIGKILL to every member. Does not wait: see `is_empty`.
    pub fn kill_all(&self) {
        let dir = &self.plan.track;
        if dir.unified && fs::write(dir.path.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        // Without cgroup.kill: frozen processes cannot fork, so one pass reaches all. Where freezing does not work either,
        // the caller repeats until the group is empty.
        let (file, frozen, thawed) =
            if dir.unified { ("cgroup.freeze", "1", "0") } else { ("freezer.state", "FROZEN", "THAWED") };
        let is_frozen = fs::write(dir.path.join(file), frozen).is_ok();
        for pid in self.pids() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        if is_frozen {
            let _ = fs::write(dir.path.join(file), thawed);
        }
    }

    /// Members, zombies excluded by the kernel.
    pub fn pids(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.plan.track.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.pids().is_empty()
    }

    /// How many members the kernel has killed for lack of memory.
    pub fn oom_kills(&self) -> u64 {
        let Some(dir) = &self.plan.memory else { return 0 };
        let file = if dir.unified { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(dir.path.join(file)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }

    /// Removes the folders of an empty group. Whether they are gone; what is not is left to a later agent.
    pub fn remove(&self) -> bool {
        let gone = |path: &Path| {
            (0..REMOVE_TRIES).any(|_| match fs::remove_dir(path) {
                Ok(()) => true,
                Err(err) if err.kind() == io::ErrorKind::NotFound => true,
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(10));
                    false
                }
            })
        };
        self.plan.dirs().into_iter().filter(|dir| !gone(&dir.path)).count() == 0
    }
}

/// Makes the agent's folder and the worker's in it.
fn create_leaf(dir: &CgroupDir, plan: &CgroupPlan) -> io::Result<()> {
    if let Some(agent) = dir.path.parent() {
        create_dir(agent)?;
        for (name, wanted) in [("memory", &plan.memory), ("cpu", &plan.cpu), ("pids", &plan.pids)] {
            if dir.unified && wanted.as_ref() == Some(dir) {
                enable(agent, name)?;
            }
        }
    }
    create_dir(&dir.path)
}

fn set_memory(dir: &CgroupDir, bytes: u64) -> io::Result<()> {
    if dir.unified {
        write(dir, "memory.max", bytes)?;
        // Absent without swap; one killed process of a worker makes the rest of it useless.
        write_if_there(dir, "memory.swap.max", 0)?;
        return write_if_there(dir, "memory.oom.group", 1);
    }
    write(dir, "memory.limit_in_bytes", bytes)?;
    write_if_there(dir, "memory.memsw.limit_in_bytes", bytes)
}

fn set_cpu(dir: &CgroupDir, millis: u64, hard: bool) -> io::Result<()> {
    // 1024 shares are one core in version 1; version 2 maps 2..262144 shares to a weight of 1..10000.
    let shares = (millis * 1024 / 1000).clamp(2, 262_144);
    let quota_us = millis * 100;
    if dir.unified {
        write(dir, "cpu.weight", 1 + (shares - 2) * 9_999 / 262_142)?;
        return if hard { write(dir, "cpu.max", format!("{quota_us} 100000")) } else { Ok(()) };
    }
    write(dir, "cpu.shares", shares)?;
    if hard {
        write(dir, "cpu.cfs_period_us", 100_000)?;
        // The kernel's smallest quota is a millisecond.
        write(dir, "cpu.cfs_quota_us", quota_us.max(1_000))?;
    }
    Ok(())
}

fn write(dir: &CgroupDir, file: &str, value: impl ToString) -> io::Result<()> {
    let path = dir.path.join(file);
    fs::write(&path, value.to_string())
        .map_err(|err| io::Error::new(err.kind(), format!("{}: {err}", path.display())))
}

fn write_if_there(dir: &CgroupDir, file: &str, value: impl ToString) -> io::Result<()> {
    if dir.path.join(file).exists() { write(dir, file, value) } else { Ok(()) }
}

/// A folder instead of a cgroup of version 2: it keeps what is written, which is what the kernel would be told.
#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    struct Fake {
        folder: tempfile::TempDir,
        leaf: PathBuf,
    }

    impl Fake {
        /// With the files that the kernel would make, where the code asks whether they are there.
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("temp dir");
            let leaf = folder.path().join("agent/worker");
            fs::create_dir_all(&leaf).expect("made");
            for file in ["memory.swap.max", "memory.oom.group", "cgroup.procs"] {
                fs::write(leaf.join(file), "").expect("made");
            }
            Self { folder, leaf }
        }

        fn plan(&self, limits: CgroupLimits) -> CgroupPlan {
            let dir = CgroupDir { path: self.leaf.clone(), unified: true };
            CgroupPlan {
                track: dir.clone(),
                memory: limits.memory_bytes.map(|_| dir.clone()),
                cpu: limits.cpu_millis.map(|_| dir.clone()),
                pids: limits.pids.map(|_| dir),
                limits,
            }
        }

        fn read(&self, file: &str) -> String {
            fs::read_to_string(self.leaf.join(file)).unwrap_or_else(|err| panic!("{file}: {err}"))
        }
    }

    #[test]
    fn limits_of_version_two_are_written_to_its_files() {
        let fake = Fake::new();
        let limits = CgroupLimits {
            memory_bytes: Some(64 << 20),
            cpu_millis: Some(1_500),
            cpu_hard: true,
            pids: Some(100),
        };
        let group = Cgroup::create(fake.plan(limits)).expect("made");
        for (file, value) in [
            ("memory.max", "67108864"),
            ("memory.swap.max", "0"),
            ("memory.oom.group", "1"),
            ("cpu.weight", "59"),
            ("cpu.max", "150000 100000"),
            ("pids.max", "100"),
        ] {
            assert_eq!(fake.read(file), value, "{file}");
        }
        let handed_down = fake.folder.path().join("agent/cgroup.subtree_control");
        assert_eq!(fs::read_to_string(handed_down).expect("handed down"), "+pids", "the last one");
        assert_eq!(group.join_files().expect("joinable").len(), 1, "one folder for all controllers");
        fs::write(fake.leaf.join("memory.events"), "low 0\noom 3\noom_kill 2\n")
            .expect("as the kernel counts");
        assert_eq!(group.oom_kills(), 2);
    }

    #[test]
    fn nothing_is_written_for_what_is_not_limited() {
        let fake = Fake::new();
        Cgroup::create(fake.plan(CgroupLimits::default())).expect("made");
        for file in ["memory.max", "cpu.weight", "cpu.max", "pids.max"] {
            assert!(!fake.leaf.join(file).exists(), "{file}");
        }
    }

    #[test]
    fn version_two_kills_by_its_file_and_without_it_member_by_member_while_frozen() {
        let fake = Fake::new();
        let mut child = Command::new("sleep").arg("60").spawn().expect("a member");
        fs::write(fake.leaf.join("cgroup.procs"), format!("{}\n", child.id()))
            .expect("as the kernel lists it");
        let group = Cgroup::existing(fake.plan(CgroupLimits::default()));
        assert_eq!(group.pids(), [child.id()]);

        group.kill_all();
        assert_eq!(fake.read("cgroup.kill"), "1");
        assert!(!fake.leaf.join("cgroup.freeze").exists());
        assert!(child.try_wait().expect("ours").is_none(), "the file is left to the kernel");

        // A kernel before 5.14 has no such file: here nothing can be written to it.
        fs::remove_file(fake.leaf.join("cgroup.kill")).expect("removed");
        fs::create_dir(fake.leaf.join("cgroup.kill")).expect("in the way");
        group.kill_all();
        assert_eq!(child.wait().expect("ours").signal(), Some(Signal::KILL.as_raw()));
        assert_eq!(fake.read("cgroup.freeze"), "0", "thawed at the end: frozen members do not die");
        fs::write(fake.leaf.join("cgroup.procs"), "").expect("as the kernel lists it");
        assert!(group.is_empty());
    }
}
