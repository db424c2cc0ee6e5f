//! An agent's folders outside its data folder: for slots, in shared memory; for sockets, where the data folder's own path
//! is too long for them. Beside each lies a link to the data folder, made first and named as the folder with `.owner`
//! behind. So those who come later know which ones nobody needs any more: the next agent of this user, a test.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

const MARK: &str = "owner";

/// Says of a folder that is about to be made whose it is.
///
/// # Errors
/// What the file system says; or the place is taken by somebody else's mark.
pub fn mark_outside(dir: &Path, owner: &Path) -> io::Result<()> {
    let link = dir.with_extension(MARK);
    match symlink(owner, &link) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists && fs::read_link(&link)? == owner => Ok(()),
        made => made,
    }
}

/// This user's folders whose owners fit, with their marks. Never another user's: in a place that belongs to everybody
/// they could be put there to have ours removed.
pub fn find_outside(fits: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let places = ["/dev/shm", "/tmp"].map(PathBuf::from).into_iter().chain(runtime);
    places.flat_map(|place| find_in(&place, &fits)).collect()
}

fn find_in(place: &Path, fits: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let (Ok(entries), Ok(me)) = (fs::read_dir(place), fs::metadata("/proc/self")) else { return Vec::new() };
    let links = entries.flatten().map(|entry| entry.path());
    let links = links.filter(|path| path.extension().is_some_and(|end| end == MARK));
    let is_mine = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|link| link.uid() == me.uid());
    let has_name =
        |path: &PathBuf| path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"outlast-"));
    let of_ours = links.filter(|path| has_name(path) && is_mine(path));
    of_ours
        .filter(|path| fs::read_link(path).is_ok_and(|owner| fits(&owner)))
        .map(|p| p.with_extension(""))
        .collect()
}

/// Removes such a folder and its mark; the mark last, so that a removal that was cut short is gone on with.
///
/// # Errors
/// What the file system says.
pub fn remove_outside(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    fs::remove_file(dir.with_extension(MARK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_outside_is_found_by_its_owner_and_removed_with_its_mark() {
        let tmp = tempfile::tempdir().expect("a folder");
        let (gone, here) = (tmp.path().join("outlast-1-gone"), tmp.path().join("outlast-1-here"));
        mark_outside(&gone, &tmp.path().join("no-such")).expect("marked");
        mark_outside(&here, tmp.path()).expect("marked");
        mark_outside(&here, tmp.path()).expect("the same again");
        assert!(mark_outside(&here, Path::new("/other")).is_err(), "of somebody else");
        fs::create_dir(&gone).expect("made");
        fs::write(gone.join("slot"), b"x").expect("written");
        symlink("/no-such", tmp.path().join("stranger.owner")).expect("made");
        assert_eq!(find_in(tmp.path(), |owner| !owner.exists()), vec![gone.clone()]);
        remove_outside(&gone).expect("removed");
        assert!(!gone.exists() && find_in(tmp.path(), |owner| !owner.exists()).is_empty());
        assert_eq!(find_in(tmp.path(), |owner| owner == tmp.path()), vec![here.clone()]);
        remove_outside(&here).expect("one that was marked and never made");
    }
}
