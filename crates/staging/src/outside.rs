//! An agent's folders outside its data folder: for slots, in shared memory; for sockets, where the data folder's own path
//! is too long for them. Beside each lies a file with the data folder's path, made first and named as the folder with
//! `.owner` behind, and locked while the agent runs. So those who come later know which ones nobody needs any more: the
//! next agent of this user, a test.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

const MARK: &str = "owner";
/// Longer paths cannot be opened.
const OWNER_BYTES_MAX: u64 = 4_096;
/// Each is lost only to another agent that starts at the same moment.
const TRIES_MAX: u32 = 1_000;

/// Says of a folder that is about to be made whose it is, as long as the answer is kept.
///
/// # Errors
/// What the file system says; or the place is taken by somebody else's mark.
pub fn mark_outside(dir: &Path, owner: &Path) -> io::Result<File> {
    let path = dir.with_extension(MARK);
    let taken = |said: String| io::Error::new(io::ErrorKind::AlreadyExists, said);
    let mut opened = None;
    // Without its text a mark looks like one that nobody needs: another agent that starts just now may take it away.
    for _ in 0..TRIES_MAX {
        opened = open_mark(&path)?;
        if opened.is_some() {
            break;
        }
    }
    let mut file =
        opened.ok_or_else(|| taken(format!("{} is taken away again and again", path.display())))?;
    if file.metadata()?.uid() != own_uid()? {
        return Err(taken(format!("{} is not ours", path.display())));
    }
    match read_owner(&file)? {
        known if known.as_os_str().is_empty() => file.write_all(owner.as_os_str().as_bytes())?,
        known if known == owner => {}
        known => {
            let said = format!("{} says that it is for {}", path.display(), known.display());
            return Err(taken(said));
        }
    }
    Ok(file)
}

/// Opened and locked. `None`: it was taken away before it was locked.
fn open_mark(path: &Path) -> io::Result<Option<File>> {
    let mut open = OpenOptions::new();
    open.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = open.custom_flags(OFlags::NOFOLLOW.bits() as i32).open(path)?;
    flock(&file, FlockOperation::LockShared)?;
    Ok(is_at(path, &file)?.then_some(file))
}

/// Whether it is still this file that has the name.
fn is_at(path: &Path, file: &File) -> io::Result<bool> {
    let inode = file.metadata()?.ino();
    Ok(fs::symlink_metadata(path).is_ok_and(|there| there.ino() == inode))
}

fn own_uid() -> io::Result<u32> {
    Ok(fs::metadata("/proc/self")?.uid())
}

fn read_owner(file: &File) -> io::Result<PathBuf> {
    let mut bytes = Vec::new();
    file.take(OWNER_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

/// This user's folders whose owners fit. Never another user's: in a place that belongs to everybody they could be put
/// there to have ours removed.
pub fn find_outside(fits: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let places = ["/dev/shm", "/tmp"].map(PathBuf::from).into_iter().chain(runtime);
    places.flat_map(|place| find_in(&place, &fits)).collect()
}

fn find_in(place: &Path, fits: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let (Ok(entries), Ok(me)) = (fs::read_dir(place), own_uid()) else { return Vec::new() };
    let marks = entries.flatten().map(|entry| entry.path());
    let marks = marks.filter(|path| path.extension().is_some_and(|end| end == MARK));
    let is_mine = |path: &PathBuf| {
        let has_name = path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"outlast-"));
        has_name && fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.uid() == me)
    };
    let owner = |path: &PathBuf| read_owner(&File::open(path).ok()?).ok();
    let fitting = marks.filter(is_mine).filter(|path| owner(path).is_some_and(|owner| fits(&owner)));
    fitting.map(|path| path.with_extension("")).collect()
}

/// Removes such a folder and its mark, unless its agent runs: it may have a file system of its own, where its data folder
/// is. The mark goes last, so that a removal that was cut short is gone on with. Answers whether it was removed.
///
/// # Errors
/// What the file system says.
pub fn remove_outside(dir: &Path) -> io::Result<bool> {
    let path = dir.with_extension(MARK);
    let mark = File::open(&path)?;
    if flock(&mark, FlockOperation::NonBlockingLockExclusive).is_err() || !is_at(&path, &mark)? {
        return Ok(false);
    }
    match fs::remove_dir_all(dir) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    fs::remove_file(path)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As two agents do that start together on one machine: one makes its mark, and the other takes it for one of nobody.
    #[test]
    fn a_mark_that_is_taken_away_before_it_is_locked_is_made_again() {
        let tmp = tempfile::tempdir().expect("a folder");
        let dir = tmp.path().join("outlast-1");
        for _ in 0..20 {
            let path = dir.with_extension(MARK);
            let other = File::create(&path).expect("made");
            flock(&other, FlockOperation::LockExclusive).expect("locked");
            std::thread::scope(|scope| {
                let marking = scope.spawn(|| mark_outside(&dir, tmp.path()));
                // For the mark to be opened; without that there is nothing to see, and nothing fails.
                std::thread::sleep(std::time::Duration::from_millis(5));
                fs::remove_file(&path).expect("removed");
                drop(other);
                drop(marking.join().expect("no panic").expect("marked"));
            });
            assert_eq!(fs::read(&path).expect("there"), tmp.path().as_os_str().as_bytes());
            fs::remove_file(&path).expect("removed");
        }
    }

    #[test]
    fn a_folder_outside_is_found_by_its_owner_and_removed_with_its_mark_when_that_is_gone() {
        let tmp = tempfile::tempdir().expect("a folder");
        let (gone, here) = (tmp.path().join("outlast-1-gone"), tmp.path().join("outlast-1-here"));
        let runs = mark_outside(&gone, &tmp.path().join("no-such")).expect("marked");
        drop(mark_outside(&here, tmp.path()).expect("marked"));
        drop(mark_outside(&here, tmp.path()).expect("the same again"));
        assert!(mark_outside(&here, Path::new("/other")).is_err(), "of somebody else");
        fs::create_dir(&gone).expect("made");
        fs::write(gone.join("slot"), b"x").expect("written");
        fs::write(tmp.path().join("stranger.owner"), b"/no-such").expect("written");
        std::os::unix::fs::symlink("/no-such", tmp.path().join("outlast-2.owner")).expect("made");
        assert!(mark_outside(&tmp.path().join("outlast-2"), tmp.path()).is_err(), "a link leads elsewhere");
        assert_eq!(find_in(tmp.path(), |owner| !owner.exists()), vec![gone.clone()]);
        assert!(!remove_outside(&gone).expect("looked at"), "its agent runs");
        assert!(gone.join("slot").exists());
        drop(runs);
        assert!(remove_outside(&gone).expect("removed"));
        assert!(!gone.exists() && find_in(tmp.path(), |owner| !owner.exists()).is_empty());
        assert_eq!(find_in(tmp.path(), |owner| owner == tmp.path()), vec![here.clone()]);
        assert!(remove_outside(&here).expect("one that was marked and never made"));
    }
}
