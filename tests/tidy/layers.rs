//! Which crate may use which: arrows point down only, and the dangerous dependencies have one user each.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use super::root;

/// The pure crates and all that they may use.
const PURE: &[(&str, &[&str])] = &[
    ("outlast-types", &["humantime", "serde", "serde_json", "strsim", "thiserror"]),
    ("outlast-control", &["outlast-types", "rmp-serde", "serde", "thiserror"]),
];

/// A dependency that only the named crates may have.
const ONLY: &[(&str, &[&str])] = &[
    ("openraft", &["outlast-consensus"]),
    ("sled", &["outlast-consensus"]),
    ("object_store", &["outlast-blobs"]),
    ("prost", &["outlast-proto", "outlast-coordinator"]),
    ("outlast-consensus", &["outlast-coordinator", "outlast"]),
    ("outlast-process", &["outlast-agent", "outlast"]),
    ("outlast-coordinator", &["outlast"]),
    ("outlast-agent", &["outlast"]),
    ("outlast-local", &["outlast", "outlast-tests"]),
];

/// Crate → what it depends on outside its tests.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().expect("packages").iter();
    let of = |package: &Value| {
        let all = package["dependencies"].as_array().expect("dependencies").iter();
        all.filter(|d| d["kind"].is_null()).map(|d| text(&d["name"])).collect::<BTreeSet<_>>()
    };
    packages.map(|package| (text(&package["name"]), of(package))).collect()
}

#[test]
fn tidy_pure_crates_use_nothing_that_could_do_io() {
    let all = dependencies();
    for (name, allowed) in PURE {
        let used = all.get(*name).unwrap_or_else(|| panic!("crate {name} is gone"));
        let foreign: Vec<&String> = used.iter().filter(|used| !allowed.contains(&used.as_str())).collect();
        assert!(foreign.is_empty(), "{name} is pure and must not use {foreign:?}");
    }
}

#[test]
fn tidy_dangerous_dependencies_have_only_their_users() {
    for (name, used) in dependencies() {
        for (dependency, users) in ONLY {
            let allowed = users.contains(&name.as_str()) || !used.contains(*dependency);
            assert!(allowed, "{name} must not use {dependency}; only {users:?} may");
        }
    }
}
