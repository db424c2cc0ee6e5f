//! Failpoints: each is placed in the code, and no build that is given to anybody has them.

use std::fs;
use std::path::PathBuf;

use outlast_failpoint::ALL;

use super::root;

/// The sources of the crates, but the one that defines the failpoints.
fn sources() -> Vec<PathBuf> {
    let crates = fs::read_dir(root().join("crates")).expect("listed").flatten();
    let mut folders: Vec<PathBuf> = crates
        .filter(|entry| entry.file_name() != "failpoint")
        .map(|entry| entry.path().join("src"))
        .collect();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => found.push(path),
            }
        }
    }
    found
}

/// The other direction is the compiler's: a name that is not in the table cannot be placed.
#[test]
fn tidy_every_failpoint_is_placed_in_the_code() {
    let all: String = sources().iter().map(|path| fs::read_to_string(path).expect("text")).collect();
    let is_placed = |name: &str| {
        all.match_indices(&format!("Failpoint::{name}"))
            .any(|(at, found)| !all[at + found.len()..].starts_with(|c: char| c.is_alphanumeric()))
    };
    let missing: Vec<_> = ALL.iter().filter(|at| !is_placed(&format!("{at:?}"))).collect();
    assert!(missing.is_empty(), "listed, and placed nowhere: {missing:?}");
}

/// They are compiled in by debug assertions, which no profile for release builds may turn on for the crate that asks.
#[test]
fn tidy_a_release_build_has_no_failpoints() {
    let text = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace's Cargo.toml");
    let table: toml::Table = text.parse().expect("TOML");
    let profiles = table["profile"].as_table().expect("profiles");
    for (name, profile) in profiles.iter().filter(|(name, _)| *name != "dev") {
        let asserts =
            |of: &toml::Value| of.get("debug-assertions").and_then(toml::Value::as_bool) == Some(true);
        assert!(!asserts(profile), "profile {name} has debug assertions");
        for (package, of) in profile.get("package").and_then(toml::Value::as_table).into_iter().flatten() {
            let is_ours = package.starts_with("outlast") || package == "*";
            assert!(!(is_ours && asserts(of)), "profile {name} has debug assertions in {package}");
        }
    }
    // And the crate asks for nothing else.
    let crate_text = fs::read_to_string(root().join("crates/failpoint/src/lib.rs")).expect("the crate");
    assert!(crate_text.contains("pub const STEERABLE: bool = cfg!(debug_assertions);"));
}
