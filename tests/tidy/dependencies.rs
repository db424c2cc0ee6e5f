//! Where dependencies come from and what their licences ask of us. `deny.toml` has the list of licences; cargo-deny reads it
//! too, where it is installed.

use std::process::Command;

use serde_json::Value;

use super::root;

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).current_dir(root()).output();
    let output = output.unwrap_or_else(|error| panic!("{program} does not run: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Everything that is built here, the workspace's own crates included. Of this platform only: what others need is not on
/// this machine.
fn packages() -> Vec<Value> {
    let version = output("rustc", &["-vV"]);
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc knows its host");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let args = ["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", host];
    let metadata: Value = serde_json::from_str(&output(&cargo, &args)).expect("cargo metadata is JSON");
    metadata["packages"].as_array().expect("packages").clone()
}

fn allowed() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml is there");
    let table: toml::Table = text.parse().expect("deny.toml is TOML");
    let allow = table["licenses"]["allow"].as_array().expect("a list of licences");
    allow.iter().map(|name| name.as_str().expect("a name").to_owned()).collect()
}

/// Whether one may choose so that only allowed licences bind: SPDX expressions, and `/` as older crates write "or".
fn is_satisfied(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let satisfied = any(&mut rest, allowed);
    satisfied && rest.is_empty()
}

fn take(rest: &mut &[&str], word: &str) -> bool {
    let found = rest.first() == Some(&word);
    if found {
        *rest = &rest[1..];
    }
    found
}

/// `AND` binds closer than `OR`.
fn any(rest: &mut &[&str], allowed: &[String]) -> bool {
    let mut satisfied = all(rest, allowed);
    while take(rest, "OR") {
        satisfied |= all(rest, allowed);
    }
    satisfied
}

fn all(rest: &mut &[&str], allowed: &[String]) -> bool {
    let mut satisfied = one(rest, allowed);
    while take(rest, "AND") {
        satisfied &= one(rest, allowed);
    }
    satisfied
}

fn one(rest: &mut &[&str], allowed: &[String]) -> bool {
    if take(rest, "(") {
        return any(rest, allowed) & take(rest, ")");
    }
    let Some((name, after)) = rest.split_first() else { return false };
    *rest = after;
    let mut name = (*name).to_owned();
    if take(rest, "WITH")
        && let Some((exception, after)) = rest.split_first()
    {
        *rest = after;
        name = format!("{name} WITH {exception}");
    }
    allowed.contains(&name)
}

#[test]
fn tidy_every_licence_can_be_met_by_the_allowed_ones() {
    let allowed = allowed();
    for package in packages() {
        let licence = package["license"].as_str().unwrap_or("(none named)");
        let (name, version) = (&package["name"], &package["version"]);
        assert!(is_satisfied(licence, &allowed), "{name} {version} asks for {licence}; allowed: {allowed:?}");
    }
}

#[test]
fn tidy_every_dependency_comes_from_crates_io() {
    for package in packages() {
        let is_ours = || {
            let manifest = package["manifest_path"].as_str().unwrap_or_default();
            package["source"].is_null() && std::path::Path::new(manifest).starts_with(root())
        };
        assert!(
            package["source"] == CRATES_IO || is_ours(),
            "{} comes from {}",
            package["id"],
            package["source"]
        );
    }
}

#[test]
fn tidy_licence_expressions_are_read_as_spdx_does() {
    let allowed = ["MIT", "Zlib"].map(str::to_owned);
    for (expression, satisfied) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("GPL-3.0 AND MIT OR Zlib", true),
        ("(MIT OR GPL-3.0) AND Zlib", true),
        ("MIT AND (GPL-3.0 OR BSL-1.0)", false),
        ("MIT WITH LLVM-exception", false),
        ("MIT WITH LLVM-exception OR Zlib", true),
        ("MIT MIT", false),
        ("(MIT", false),
        ("", false),
    ] {
        assert_eq!(is_satisfied(expression, &allowed), satisfied, "{expression:?}");
    }
}
