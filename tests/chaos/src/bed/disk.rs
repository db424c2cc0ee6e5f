//! A small disk for each daemon: ext4 in a file on a loop device, so that it can be full, slow, broken or without power
//! while the others are well.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::shell::run;
use crate::rng::Rng;

/// Sparse: what is not written costs nothing.
const SIZE_BYTES: u64 = 384 << 20;
const FILLER: &str = "filler";
/// `EXT4_IOC_SHUTDOWN` is `_IOR('X', 125, __u32)`; 2 is `NOLOGFLUSH`. Python makes the one call that Rust could make only
/// with unsafe code.
const CUT: &str = "import fcntl, os, struct, sys; \
    fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";
const UMOUNT_MAX: Duration = Duration::from_secs(10);
const THROTTLE: &str = "/sys/fs/cgroup/blkio/blkio.throttle.write_iops_device";
/// Writes a second: an fsync takes some of them.
const SLOW_IOPS: u32 = 20;

/// A mounted file system; gone when dropped.
pub(crate) struct Disk {
    image: PathBuf,
    pub(crate) folder: PathBuf,
}

impl Disk {
    /// # Errors
    /// What this machine lacks.
    pub(crate) fn make(image: PathBuf, folder: PathBuf) -> Result<Self> {
        let file = File::create(&image).with_context(|| format!("could not make {}", image.display()))?;
        file.set_len(SIZE_BYTES).context("could not size the image")?;
        fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
        run(&["mkfs.ext4", "-qF", "-E", "lazy_itable_init=1,lazy_journal_init=1", &text(&image)])?;
        let disk = Self { image, folder };
        disk.mount()?;
        // A daemon's folder is its own.
        fs::remove_dir(disk.folder.join("lost+found")).context("could not empty the new disk")?;
        Ok(disk)
    }

    fn mount(&self) -> Result<()> {
        run(&["mount", "-o", "loop", &text(&self.image), &text(&self.folder)]).map(|_| ())
    }

    /// What is not on the disk now never will be, and the file system answers everything with an I/O error.
    ///
    /// # Errors
    /// When the file system does not know the call.
    pub(crate) fn cut(&self) -> Result<()> {
        run(&["python3", "-c", CUT, &text(&self.folder)]).map(|_| ())
    }

    /// Power is back. Nobody may have anything open there.
    ///
    /// # Errors
    /// When it stays busy, or the file system does not mount again.
    pub(crate) fn restart(&self) -> Result<()> {
        let began = Instant::now();
        while let Err(err) = run(&["umount", &text(&self.folder)]) {
            if began.elapsed() > UMOUNT_MAX {
                return Err(err);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.mount()
    }

    /// Whether a small write gets through to the disk, and how long it took.
    pub(crate) fn try_write(&self) -> io::Result<Duration> {
        let began = Instant::now();
        let path = self.folder.join("probe");
        let mut file = File::create(&path)?;
        file.write_all(&[1; 4_096])?;
        file.sync_all()?;
        fs::remove_file(&path)?;
        Ok(began.elapsed())
    }

    /// Takes all the room that there is.
    ///
    /// # Errors
    /// When the filler cannot be made.
    pub(crate) fn fill(&self) -> Result<()> {
        let mut file = File::create(self.folder.join(FILLER)).context("no filler can be made")?;
        for block in [1 << 20, 4_096] {
            let bytes = vec![0_u8; block];
            // The error that ends it is that there is no room.
            while file.write_all(&bytes).is_ok() {}
        }
        Ok(())
    }

    pub(crate) fn empty(&self) {
        // It may be gone with a power cut.
        let _ = fs::remove_file(self.folder.join(FILLER));
    }

    /// Writes wait for their turn until `hurry`.
    ///
    /// # Errors
    /// When there is no such control group here.
    pub(crate) fn slow(&self) -> Result<()> {
        let line = format!("{} {SLOW_IOPS}", self.device()?);
        fs::write(THROTTLE, line).with_context(|| format!("{THROTTLE} does not take it"))
    }

    /// # Errors
    /// As [`Disk::slow`].
    pub(crate) fn hurry(&self) -> Result<()> {
        let line = format!("{} 0", self.device()?);
        fs::write(THROTTLE, line).with_context(|| format!("{THROTTLE} does not take it"))
    }

    /// major:minor of the loop device.
    fn device(&self) -> Result<String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("the mounts cannot be read")?;
        let folder = text(&self.folder);
        let line = mounts.lines().rev().find(|line| line.split(' ').nth(4) == Some(folder.as_str()));
        let device = line.and_then(|line| line.split(' ').nth(2)).map(str::to_owned);
        device.with_context(|| format!("{folder} is not mounted"))
    }

    /// Whether this machine can slow a disk down.
    pub(crate) fn can_be_slow() -> bool {
        Path::new(THROTTLE).exists()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A limit would stay for the next one that gets the same device.
        let _ = self.hurry();
        if run(&["umount", &text(&self.folder)]).is_err() {
            // Lazily: a process that is still ending may have files open.
            let _ = run(&["umount", "-l", &text(&self.folder)]);
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Flips one bit each in some places of the largest file that `wanted` takes; answers which file.
///
/// # Errors
/// When there is none, or it cannot be written.
pub(crate) fn flip_bits(folder: &Path, rng: &mut Rng, wanted: impl Fn(&Path) -> bool) -> Result<PathBuf> {
    let mut files = Vec::new();
    collect(folder, &mut files);
    files.retain(|(path, size)| *size > 0 && wanted(path));
    files.sort();
    let Some((path, size)) = rng.pick(&files).cloned() else { bail!("there is no file to damage") };
    let file = OpenOptions::new().read(true).write(true).open(&path).context("could not open it")?;
    for _ in 0..FLIPS {
        let at = rng.between(0, size);
        let mut byte = [0_u8];
        file.read_exact_at(&mut byte, at).context("could not read it")?;
        byte[0] ^= 1 << rng.between(0, 8);
        file.write_all_at(&byte, at).context("could not write it")?;
    }
    file.sync_all().context("could not write it")?;
    Ok(path)
}

/// Enough that a log with much dead space is hit where it lives.
const FLIPS: u32 = 24;

fn collect(folder: &Path, files: &mut Vec<(PathBuf, u64)>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => collect(&path, files),
            Ok(meta) if meta.is_file() => files.push((path, meta.len())),
            _ => {}
        }
    }
}
