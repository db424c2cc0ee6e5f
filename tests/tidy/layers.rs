//! Which crate may use which: arrows point down only, and the dangerous dependencies have one user each.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

use super::root;

/// The pure crates and all that they may use.
const PURE: &[(&str, &[&str])] = &[
    ("outlast-types", &["humantime", "serde", "serde_json", "strsim", "thiserror"]),
    ("outlast-control", &["outlast-types", "rmp-serde", "serde", "thiserror"]),
    ("outlast-testkit", &["outlast-control", "outlast-types"]),
];

/// A dependency that only the named crates may have.
const ONLY: &[(&str, &[&str])] = &[
    ("openraft", &["outlast-consensus"]),
    ("sled", &["outlast-consensus"]),
    ("object_store", &["outlast-blobs"]),
    ("prost", &["outlast-proto", "outlast-coordinator"]),
    ("outlast-consensus", &["outlast-coordinator", "outlast", "outlast-cluster-sim"]),
    ("outlast-process", &["outlast-agent", "outlast"]),
    ("outlast-mapping", &["outlast-staging"]),
    ("outlast-coordinator", &["outlast", "outlast-cluster-sim"]),
    ("outlast-agent", &["outlast"]),
    ("outlast-testkit", &[]),
    ("turmoil", &["outlast-host", "outlast-cluster-sim"]),
    ("outlast-local", &["outlast", "outlast-tests", "outlast-chaos"]),
];

/// Crate → what it depends on outside its tests.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of = |package: &Value| {
        let all = package["dependencies"].as_array().expect("dependencies").iter();
        all.filter(|d| d["kind"].is_null()).map(|d| text(&d["name"])).collect::<BTreeSet<_>>()
    };
    packages().iter().map(|package| (text(&package["name"]), of(package))).collect()
}

/// The workspace's own, as cargo describes them.
fn packages() -> Vec<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    metadata["packages"].as_array().expect("packages").clone()
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

/// The simulators' planted bugs, and the machine that is simulated, are behind features that only a simulator can ask for,
/// and does not by itself.
#[test]
fn tidy_no_build_has_the_planted_bugs_or_the_simulated_machine_unasked() {
    let is_reserved = |text: &str| text.contains("planted") || text.contains("simulated");
    for package in packages() {
        let name = package["name"].as_str().expect("a name");
        let asked = package["dependencies"].as_array().expect("dependencies").iter().any(|dependency| {
            let features = dependency["features"].as_array().expect("features");
            features.iter().filter_map(Value::as_str).any(is_reserved)
        });
        assert!(!asked, "{name} asks for planted bugs or for a simulated machine");
        for (feature, enables) in package["features"].as_object().expect("features") {
            let enables = enables.as_array().expect("a list").iter().filter_map(Value::as_str);
            let enables: Vec<&str> = enables.collect();
            let plants = enables.iter().any(|enabled| enabled.contains("planted"));
            let simulates =
                enables.iter().any(|enabled| enabled.contains("simulated") || *enabled == "dep:turmoil");
            let is_testkit = name == "outlast-testkit" && feature == "planted";
            let is_sim = name == "outlast-cluster-sim" && feature == "simulated";
            assert!(is_testkit || is_sim || !plants, "the feature {feature} of {name} brings planted bugs");
            assert!(
                feature == "simulated" || !simulates,
                "the feature {feature} of {name} simulates the machine"
            );
            assert!(feature != "default" || enables.is_empty(), "{name} has features by default");
        }
    }
}
