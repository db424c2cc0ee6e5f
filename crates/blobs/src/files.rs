//! Private files and folders whose existence survives a power cut.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A file in `tmp/` that goes away with this value unless it was renamed to its place.
pub(crate) struct TmpFile {
    pub(crate) file: File,
    path: PathBuf,
    is_placed: bool,
}

impl TmpFile {
    pub(crate) fn create(tmp: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        // Unique while this process lives; what an earlier one left is removed when a store is opened.
        let name = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = tmp.join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { file, path, is_placed: false })
    }

    /// Renames the file to where it belongs. The caller has synced it, and syncs the folder after.
    pub(crate) fn place(mut self, at: &Path) -> io::Result<()> {
        fs::rename(&self.path, at)?;
        self.is_placed = true;
        Ok(())
    }
}

impl Drop for TmpFile {
    fn drop(&mut self) {
        if !self.is_placed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes a folder that only its user can enter, and its missing parents, each durable in its parent.
pub(crate) fn create_dir_durable(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_dir_durable(parent)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => Err(err),
        _ => sync_dir(parent),
    }
}

pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Replaces a small file as a whole, durably.
pub(crate) fn write_durable(tmp: &Path, at: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = TmpFile::create(tmp)?;
    file.file.write_all(bytes)?;
    file.file.sync_all()?;
    file.place(at)?;
    sync_dir(at.parent().expect("a file in a folder"))
}

/// Removes a file; whether it was there.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(err) => Err(err),
    }
}

/// Empties a folder of plain files: what a dead process was writing.
pub(crate) fn empty_dir(path: &Path) -> io::Result<()> {
    fs::read_dir(path)?.try_for_each(|entry| fs::remove_file(entry?.path()))
}

pub(crate) fn is_full(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
