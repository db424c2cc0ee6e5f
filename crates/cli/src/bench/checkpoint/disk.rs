//! The shard store against plain files, on the same disk, in this process.

use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use outlast_blobs::{ShardKey, ShardStore};
use outlast_types::{AttemptId, CheckpointSeq};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, syncfs};

use super::super::figures::Figures;
use super::tensors::Tensors;

/// As large as the shard store's own writes.
const BUFFER_BYTES: usize = 1 << 20;

pub(super) const PLAIN_WRITE: &str = "plain write and fdatasync, s";
pub(super) const BARE_WRITE: &str = "shard write without hashing, s";
pub(super) const SHARD_WRITE: &str = "shard write with hashing, s";
pub(super) const PLAIN_READ: &str = "plain read, cache dropped, s";
pub(super) const SHARD_READ: &str = "verified read, cache dropped, s";
pub(super) const HASHING: &str = "hashing alone, one thread, s";

/// Blocks.
pub(super) fn measure(root: &Path, tensors: &Tensors, runs: u32, figures: &mut Figures) -> Result<()> {
    fs::create_dir_all(root).context("no folder for the files")?;
    let store = ShardStore::open(&root.join("store")).context("the shard store does not open")?;
    // The first files of a folder pay for its metadata.
    plain_write(&root.join("warm"), tensors)?;
    for run in 1..=runs {
        let (plain, bare, key) = (root.join("plain"), root.join("bare"), key(run)?);
        let mut shard_root = None;
        for write in turns([Write::Plain, Write::Shard, Write::Bare], run) {
            settle(root)?;
            match write {
                Write::Plain => figures.add(PLAIN_WRITE, plain_write(&plain, tensors)?),
                Write::Bare => figures.add(BARE_WRITE, bare_write(root, &bare, tensors)?),
                Write::Shard => {
                    let (took, found) = shard_write(&store, &key, tensors)?;
                    figures.add(SHARD_WRITE, took);
                    shard_root = Some(found);
                }
            }
        }
        let shard_root = shard_root.context("a shard is written in each run")?;
        for verified in turns([false, true], run) {
            if verified {
                forget_all(&root.join("store"))?;
                figures.add(SHARD_READ, verified_read(&store, &key, shard_root)?);
            } else {
                figures.add(PLAIN_READ, plain_read(&plain)?);
            }
        }
        figures.add(HASHING, hashing(tensors));
        store.remove(&key, shard_root).context("a shard cannot be removed")?;
        for file in [plain, bare] {
            fs::remove_file(file).context("a file cannot be removed")?;
        }
    }
    fs::remove_dir_all(root).context("the files cannot be removed")
}

enum Write {
    Plain,
    Shard,
    Bare,
}

/// Every second run the other way round, so that a disk that tires slows nobody more than the others. What stands in the
/// middle always has the two that it is compared with beside it.
fn turns<T, const N: usize>(mut what: [T; N], run: u32) -> [T; N] {
    if run.is_multiple_of(2) {
        what.reverse();
    }
    what
}

/// What others left to be written or thrown away is not waited for by what is measured next. And it finds memory as they
/// did: on a virtual machine, pages that nobody had before cost many times as much as those that a file has just given back.
fn settle(root: &Path) -> Result<()> {
    let folder = File::open(root).context("the folder cannot be opened")?;
    syncfs(&folder).context("the disk cannot be synced")?;
    forget_all(root)
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

fn key(run: u32) -> Result<ShardKey> {
    let attempt: AttemptId = "j1/0@1.1".parse().context("an attempt's name")?;
    Ok(ShardKey { job: attempt.group.job, attempt, seq: CheckpointSeq(u64::from(run)), rank: 0 })
}

fn plain_write(path: &Path, tensors: &Tensors) -> Result<f64> {
    let began = Instant::now();
    let mut file = File::create(path).context("a file cannot be made")?;
    for tensor in tensors.iter() {
        file.write_all(tensor).context("the disk refused bytes")?;
    }
    file.sync_data().context("the disk refused to sync")?;
    Ok(seconds(began))
}

/// The shard store's own steps (reserve, write, fsync, rename, fsync of the folder), without its hasher. There is no such
/// path in the product.
fn bare_write(root: &Path, path: &Path, tensors: &Tensors) -> Result<f64> {
    let began = Instant::now();
    let tmp = root.join("bare.tmp");
    let file = File::create(&tmp).context("a file cannot be made")?;
    // Where the file system cannot reserve, the store goes on without too.
    let _ = fallocate(&file, FallocateFlags::KEEP_SIZE, 0, tensors.size_bytes());
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
    for tensor in tensors.iter() {
        out.write_all(tensor).context("the disk refused bytes")?;
    }
    let file = out.into_inner().context("the disk refused bytes")?;
    file.set_len(tensors.size_bytes()).context("the file has no size")?;
    file.sync_all().context("the disk refused to sync")?;
    fs::rename(&tmp, path).context("a file cannot be renamed")?;
    File::open(root).and_then(|folder| folder.sync_all()).context("the folder cannot be synced")?;
    Ok(seconds(began))
}

fn shard_write(
    store: &ShardStore,
    key: &ShardKey,
    tensors: &Tensors,
) -> Result<(f64, outlast_types::Digest)> {
    let began = Instant::now();
    let mut writer = store.begin(Some(tensors.size_bytes())).context("the shard cannot be begun")?;
    for tensor in tensors.iter() {
        writer.write_all(tensor).context("the shard store refused bytes")?;
    }
    let meta = writer.finish(key).context("the shard cannot be finished")?;
    Ok((seconds(began), meta.root))
}

/// Reads from the disk, not from memory: the file's pages are given back first.
fn plain_read(path: &Path) -> Result<f64> {
    forget(path)?;
    let began = Instant::now();
    let mut file = File::open(path).context("the file cannot be opened")?;
    // As large as one verified extent.
    let mut buffer = vec![0; 16 << 20];
    while file.read(&mut buffer).context("the disk refused to read")? > 0 {}
    Ok(seconds(began))
}

fn verified_read(store: &ShardStore, key: &ShardKey, root: outlast_types::Digest) -> Result<f64> {
    let began = Instant::now();
    let mut reader = store.open_shard(key, root).context("the shard cannot be opened")?;
    while reader.next_extent().context("the shard cannot be read")?.is_some() {}
    Ok(seconds(began))
}

fn hashing(tensors: &Tensors) -> f64 {
    let began = Instant::now();
    let mut hasher = blake3::Hasher::new();
    for tensor in tensors.iter() {
        hasher.update(tensor);
    }
    std::hint::black_box(hasher.finalize());
    seconds(began)
}

fn forget(path: &Path) -> Result<()> {
    let file = File::open(path).context("a file cannot be opened")?;
    fadvise(&file, 0, None, Advice::DontNeed).context("the page cache cannot be dropped")
}

fn forget_all(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).context("a folder cannot be read")? {
        let path: PathBuf = entry.context("a folder cannot be read")?.path();
        if path.is_dir() {
            forget_all(&path)?;
        } else {
            forget(&path)?;
        }
    }
    Ok(())
}

/// `ext4 on /dev/vda`, as the kernel's table of mounts says.
pub(super) fn name_of(path: &Path) -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mounts = table.lines().filter_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let point = front.split(' ').nth(4)?;
        let mut back = back.split(' ');
        let name = format!("{} on {}", back.next()?, back.next()?);
        path.starts_with(point).then_some((point.len(), name))
    });
    // The longest one that fits; of several on one point the newest.
    mounts.max_by_key(|(length, _)| *length).map_or_else(|| "an unknown disk".to_owned(), |(_, name)| name)
}

/// What the kernel would give without swapping.
pub(super) fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compared_is_measured_side_by_side_and_in_either_order() {
        assert_eq!(turns([1, 2, 3], 1), [1, 2, 3]);
        assert_eq!(turns([1, 2, 3], 2), [3, 2, 1]);
    }

    #[test]
    fn every_measurement_of_the_disk_is_made_and_nothing_is_left() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path().join("alone");
        let mut figures = Figures::default();
        measure(&root, &Tensors::new(3 << 20), 2, &mut figures).expect("measures");
        for name in [PLAIN_WRITE, BARE_WRITE, SHARD_WRITE, PLAIN_READ, SHARD_READ, HASHING] {
            assert_eq!(figures.values(name).len(), 2, "{name}");
        }
        assert!(!root.exists());
        assert!(name_of(dir.path()).contains(" on "), "{}", name_of(dir.path()));
        assert!(available_memory().is_some_and(|bytes| bytes > 0));
    }
}
