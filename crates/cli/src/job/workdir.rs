//! What of a job's `workdir` travels: ignore files are respected, `.git` stays, and there is a limit.

use std::path::{Path, PathBuf};

use ignore::{DirEntry, WalkBuilder};

use crate::problem::{Exit, Problem};
use crate::term::size;

/// A bundle is stored on two nodes and unpacked for each attempt: data sets belong elsewhere.
pub(crate) const BUNDLE_SIZE_MAX: u64 = 256 << 20;
/// How many of the biggest are named when there is too much.
const BIGGEST_NAMED: usize = 5;

/// The files and folders of a workdir, relative to it, in order.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) root: PathBuf,
    pub(crate) entries: Vec<PathBuf>,
}

/// Walks the folder. Only ignore files inside it count, so that the same folder is the same bundle everywhere.
pub(crate) fn walk(root: &Path) -> Result<Contents, Problem> {
    let root = std::fs::canonicalize(root).ok().filter(|root| root.is_dir()).ok_or_else(|| {
        Problem::new(Exit::Usage, format!("the workdir {} cannot be packed", root.display()))
            .because("it is not a folder; a relative one starts at the job file's folder")
            .next("mend `workdir`, or leave it out when the job needs no files of yours")
    })?;
    let mut builder = WalkBuilder::new(&root);
    builder
        .standard_filters(false)
        .git_ignore(true)
        .require_git(false)
        .add_custom_ignore_filename(".outlastignore")
        .filter_entry(|entry| entry.file_name() != ".git")
        .sort_by_file_name(std::ffi::OsStr::cmp);
    let mut sizes = Vec::new();
    for entry in builder.build() {
        let entry = entry.map_err(|error| {
            Problem::new(Exit::Usage, format!("the workdir {} cannot be read", root.display()))
                .because_of(&error)
        })?;
        if entry.depth() > 0 {
            let relative = entry.path().strip_prefix(&root).unwrap_or(entry.path()).to_path_buf();
            sizes.push((relative, bytes(&entry)));
        }
    }
    let total = sizes.iter().map(|(_, bytes)| bytes).sum();
    if total > BUNDLE_SIZE_MAX {
        return Err(too_big(&root, total, sizes));
    }
    Ok(Contents { root, entries: sizes.into_iter().map(|(path, _)| path).collect() })
}

fn bytes(entry: &DirEntry) -> u64 {
    let is_file = entry.file_type().is_some_and(|kind| kind.is_file());
    if is_file { entry.metadata().map(|metadata| metadata.len()).unwrap_or(0) } else { 0 }
}

fn too_big(root: &Path, total: u64, mut sizes: Vec<(PathBuf, u64)>) -> Problem {
    sizes.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let what = format!(
        "the workdir {} has {}; at most {} are allowed",
        root.display(),
        size(total),
        size(BUNDLE_SIZE_MAX)
    );
    let problem =
        sizes.iter().take(BIGGEST_NAMED).fold(Problem::new(Exit::Usage, what), |problem, (path, bytes)| {
            problem.because(format!("{} has {}", path.display(), size(*bytes)))
        });
    problem.next("name what the job does not need in .outlastignore (same rules as .gitignore), and read big data from where it lies")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn ignored_files_and_git_stay_at_home() {
        let dir = tempfile::tempdir().expect("a folder");
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("has one")).expect("made");
            fs::write(path, text).expect("written");
        };
        put("train.py", "pass");
        put(".hidden", "kept");
        put("data/big.bin", "x");
        put("out/a.log", "x");
        put(".git/config", "x");
        put(".gitignore", "*.log\n");
        put(".outlastignore", "data/\n");
        let contents = walk(dir.path()).expect("small");
        let names: Vec<_> = contents.entries.iter().map(|path| path.display().to_string()).collect();
        assert_eq!(names, [".gitignore", ".hidden", ".outlastignore", "out", "train.py"]);
    }

    #[test]
    fn too_much_names_the_biggest() {
        let dir = tempfile::tempdir().expect("a folder");
        let big = fs::File::create(dir.path().join("weights.bin")).expect("made");
        big.set_len(BUNDLE_SIZE_MAX + 1).expect("sparse");
        let told = format!("{:?}", walk(dir.path()).expect_err("too big"));
        assert!(told.contains("weights.bin") && told.contains(".outlastignore"), "{told}");
        let told = format!("{:?}", walk(&dir.path().join("absent")).expect_err("no folder"));
        assert!(told.contains("not a folder"), "{told}");
    }
}
