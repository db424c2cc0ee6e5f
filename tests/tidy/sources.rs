//! What every source file keeps to.

use std::fs;
use std::path::{Path, PathBuf};

use super::root;

/// No file is longer than this, tests left out. May only ever fall.
const LINES_MAX: usize = 420;

fn rust_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = ["crates", "examples", "tests", "xtask"].map(|name| root().join(name)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder can be read").flatten() {
            let path = entry.path();
            if path.is_dir() && entry.file_name() != "target" {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

fn short(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The lines before the file's own tests.
fn production(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

#[test]
fn tidy_every_file_opens_by_saying_what_it_is() {
    let silent: Vec<String> = rust_files()
        .iter()
        .filter(|path| !fs::read_to_string(path).expect("readable").starts_with("//!"))
        .map(|path| short(path))
        .collect();
    assert!(silent.is_empty(), "these files do not open with `//!`: {silent:?}");
}

#[test]
fn tidy_no_file_grows_beyond_the_limit() {
    let lines = |path: &PathBuf| production(&fs::read_to_string(path).expect("readable")).lines().count();
    let is_test = |path: &PathBuf| short(path).split('/').any(|part| part == "tests");
    let mut sizes: Vec<(usize, String)> =
        rust_files().iter().filter(|path| !is_test(path)).map(|path| (lines(path), short(path))).collect();
    sizes.sort();
    sizes.reverse();
    for (lines, path) in sizes.iter().take(5) {
        println!("{lines:5} {path}");
    }
    let (longest, path) = &sizes[0];
    assert!(
        *longest <= LINES_MAX,
        "{path} has {longest} lines; split it (the limit is {LINES_MAX} and only falls)"
    );
}

#[test]
fn tidy_nothing_is_left_to_do_later() {
    // Put together here, so that this file does not hold them.
    let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()];
    for path in rust_files() {
        let text = fs::read_to_string(&path).expect("readable");
        for mark in &marks {
            assert!(!text.contains(mark.as_str()), "{} holds {mark}", short(&path));
        }
    }
}

#[test]
fn tidy_unsafe_stays_in_two_files() {
    const MAY: [&str; 2] = ["crates/mapping/src/lib.rs", "crates/process/src/keeper/launch.rs"];
    let words = [" {", " impl", " fn"].map(|next| ["unsafe", next].concat());
    for path in rust_files().iter().filter(|path| !MAY.contains(&short(path).as_str())) {
        let text = fs::read_to_string(path).expect("readable");
        let has = words.iter().any(|word| text.contains(word));
        assert!(!has, "{} uses unsafe code; only {MAY:?} may", short(path));
    }
}
