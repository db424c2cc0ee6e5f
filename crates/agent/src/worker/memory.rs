//! How much memory there is for staging, so that a lack of it is an answer and not somebody's death.

use std::fs;
use std::path::Path;

use rustix::fs::{statfs, statvfs};

/// What must stay for everybody else, the agent itself included.
const KEPT_FREE_BYTES: u64 = 256 << 20;
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Whether a file there is memory.
pub(crate) fn is_tmpfs(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|found| found.f_type as u64 == TMPFS_MAGIC)
}

/// All room of the file system; 0 where it cannot be asked.
pub(super) fn size_bytes(dir: &Path) -> u64 {
    statvfs(dir).map_or(0, |found| found.f_blocks.saturating_mul(found.f_frsize))
}

pub(super) fn free_bytes(dir: &Path) -> u64 {
    statvfs(dir).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize))
}

/// What may be taken of the machine's and the container's memory. `None`: nobody says.
pub(super) fn available_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| machine_available(&text));
    let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let container =
        read("memory.max").zip(read("memory.stat")).and_then(|(max, stat)| container_available(&max, &stat));
    let free = [machine, container].into_iter().flatten().min()?;
    Some(free.saturating_sub(KEPT_FREE_BYTES))
}

fn machine_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// Pages of files are given back when they are wanted; these are not.
fn container_available(max: &str, stat: &str) -> Option<u64> {
    let max: u64 = max.trim().parse().ok()?;
    let of = |name: &str| {
        let mut fields = stat.lines().filter_map(|line| line.split_once(' '));
        fields.find(|(field, _)| *field == name).and_then(|(_, bytes)| bytes.trim().parse::<u64>().ok())
    };
    Some(max.saturating_sub(of("anon")?.saturating_add(of("shmem").unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_of_machine_and_container_counts() {
        assert_eq!(machine_available("MemTotal: 9 kB\nMemAvailable:    4 kB\n"), Some(4_096));
        assert_eq!(container_available("1000\n", "anon 300\nfile 600\nshmem 100\n"), Some(600));
        assert_eq!(container_available("max\n", "anon 300\n"), None, "no limit");
        assert!(available_bytes().is_some());
    }
}
