//! Uploads to an S3 server, by agents that die in the middle.

#[path = "../../crates/blobs/tests/objects/proxy.rs"]
#[expect(dead_code, reason = "the store's own tests use all of it")]
mod proxy;
#[path = "../../crates/blobs/tests/objects/s3.rs"]
mod s3;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use outlast_local::Builder;
use proxy::Fault;
use s3::S3;
use serde_json::Value;

use super::harness::{Outlast, exe, wait_for};
use super::saver::{Saver, check_all, checkpoints, files};

/// Five parts of 16 MiB and a little.
const BYTES: usize = (80 << 20) + 5;

/// The numbers (from one) of the parts that the store was given as a whole since the proxy's record began.
fn parts_sent(s3: &S3) -> Vec<u64> {
    let number = |line: &String| line.split_once("partNumber=")?.1.split('&').next()?.parse().ok();
    s3.proxy.forwarded().iter().filter(|line| line.starts_with("PUT")).filter_map(number).collect()
}

/// The parts that the note beside the shard has, by their numbers from one.
fn parts_noted(agent: &Path) -> BTreeSet<u64> {
    let all = files(&agent.join("shards/blobs"));
    let note = all.iter().find(|path| path.extension().is_some_and(|suffix| suffix == "upload"));
    let text = note.and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
    let note: Value = serde_json::from_slice(&text).unwrap_or_default();
    let numbers = note["parts"].as_object().into_iter().flat_map(|parts| parts.keys());
    numbers.filter_map(|number| Some(number.parse::<u64>().ok()? + 1)).collect()
}

#[test]
fn uploads_go_on_where_they_were_when_an_agent_was_killed_in_the_middle() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let Some(s3) = runtime.block_on(S3::start()) else { return };
    let builder = Builder::new(exe()).coordinators(1).agents(1);
    let mut outlast =
        Outlast::start_with(builder.agent_args(&["--cpus", "4", "--store", "s3://bucket/kept"]));
    let folder = outlast.cluster.folder().to_owned();
    let agent = &mut outlast.cluster.agents[0];
    let variables = s3.vars().into_iter().map(|(name, value)| format!("{name}={value}"));
    agent.kill();
    agent.set_prefix(["env".to_owned()].into_iter().chain(variables).collect());
    agent.start().expect("it starts");

    // The store has all parts but the third, whose answer never comes.
    s3.proxy.add(&["PUT ", "partNumber=3&"], Fault::Slow(Duration::from_secs(3_600)), 1_000);
    let saver = Saver {
        durability: "stored",
        way: "folder",
        steps: Some(1),
        size_bytes: BYTES,
        ..Saver::new("uploaded", &folder)
    };
    let job = outlast.submit(&saver.spec());
    let node = outlast.cluster.agents[0].folder.clone();
    wait_for("parts in the store", || (parts_noted(&node).len() >= 4).then_some(()));
    outlast.cluster.agents[0].kill();
    let noted = parts_noted(&node);
    assert!(!noted.contains(&3), "{noted:?}");

    s3.proxy.heal();
    outlast.cluster.agents[0].start().expect("it starts");
    wait_for("the checkpoint in the store", || {
        let all = checkpoints(&outlast, &job);
        all.iter().any(|one| one["durability_now"] == "stored").then_some(())
    });
    let again: Vec<u64> = parts_sent(&s3).into_iter().filter(|part| noted.contains(part)).collect();
    assert_eq!(again, [] as [u64; 0], "the store had them: {noted:?}");
    assert!(parts_sent(&s3).contains(&3));
    outlast.wait_success(&job);
    check_all(&outlast, &job, &saver);
    outlast.assert_nothing_left();
}
