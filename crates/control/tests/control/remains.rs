//! A state made of what outlived every coordinator: what is taken, what is left out and why, and that the cluster made of
//! it goes on from the newest sealed checkpoint.

use std::collections::BTreeSet;

use outlast_control::plan::PlannedCommand;
use outlast_control::state::{
    Checkpoint, Command, FoundNode, FoundSeal, JobState, Limits, Remains, Response, Restored, Rung,
    SealSource, decode_state, encode_state,
};
use outlast_types::{AttemptId, ClusterId, Digest, Durability, JobId, Profile, Timers, WallTime};
use serde_json::json;

use crate::world::{World, attempt, ck, group, holder, job_spec, node, registration, root};

const AT: WallTime = WallTime(5_000);

fn cluster(name: &str) -> ClusterId {
    ClusterId::new(name).expect("valid")
}

/// A checkpoint of two ranks of job 1, told by a bucket.
fn seal(seq: u64, step: u64) -> FoundSeal {
    FoundSeal {
        cluster: cluster("old"),
        predecessors: Vec::new(),
        profile: None,
        spec: job_spec("a", &json!({})),
        bundle: None,
        attempt: attempt(1, 2),
        seq: ck(seq),
        step,
        manifest_root: root(seq),
        shards: vec![(root(7), 10), (root(8), 20)],
        opened_at: Some(WallTime(100)),
        sealed_at: Some(WallTime(200)),
        source: SealSource::Store,
    }
}

/// The same, told by a node that has these ranks.
fn seal_at(n: u64, seq: u64, step: u64, ranks: &[u32]) -> FoundSeal {
    let source = SealSource::Node { holder: holder(n), ranks: ranks.to_vec() };
    FoundSeal { source, ..seal(seq, step) }
}

fn agent(n: u64) -> FoundNode {
    FoundNode {
        id: node(n),
        boot: holder(n).boot,
        disk: holder(n).disk,
        address: format!("127.0.0.1:{}", 7_000 + n),
        cluster: Some(cluster("old")),
        predecessors: Vec::new(),
        bundles: BTreeSet::new(),
    }
}

fn restore_with(remains: &Remains, ended: &[&str]) -> Restored {
    let lineages = remains.lineages();
    let [lineage] = lineages.as_slice() else { panic!("{lineages:?}") };
    let ended = ended.iter().map(ToString::to_string).collect();
    let restored = remains.restore(lineage, None, &ended, AT);
    restored.state.check_invariants().expect("a state like any other");
    assert!(decode_state(&encode_state(&restored.state)).expect("decodes") == restored.state);
    restored
}

fn restore(remains: &Remains) -> Restored {
    restore_with(remains, &[])
}

fn reasons(restored: &Restored) -> Vec<&str> {
    restored.left_out.iter().map(|one| one.reason.as_str()).collect()
}

fn checkpoint(restored: &Restored, seq: u64) -> &Checkpoint {
    &restored.state.jobs[&JobId(1)].checkpoints[&ck(seq)]
}

/// The cluster made of it, opened and led.
fn open(restored: &Restored) -> World {
    let mut world = World::new(0);
    world.state = restored.state.clone();
    world.index = restored.state.applied;
    world.log.clear();
    world.recover();
    world
}

#[test]
fn a_job_goes_on_from_its_newest_stored_checkpoint_under_a_newer_token() {
    let remains = Remains { seals: vec![seal(3, 30), seal(4, 40)], ..Remains::default() };
    let restored = restore(&remains);
    let [job] = restored.jobs.as_slice() else { panic!("{:?}", restored.jobs) };
    assert_eq!((job.newest, job.checkpoints, job.size_bytes), ((ck(4), 40), 2, 30));
    assert!(job.stored && job.nodes.is_empty() && job.cancelled.is_none());
    assert_eq!(reasons(&restored), Vec::<&str>::new());
    let newest = checkpoint(&restored, 4);
    assert_eq!((newest.stored_at, newest.durability), (Some(AT), Some(Durability::Stored)));
    assert!(!newest.degraded && !newest.proven && newest.sealed_at == Some(WallTime(200)));
    let mut world = open(&restored);
    let config = world.state.config.clone().expect("a cluster");
    assert_eq!(config.predecessors, [cluster("old")], "agents of the old one follow");
    let starts = |planned: &PlannedCommand| matches!(planned.command, Command::StartAttempt { .. });
    let plan = world.pass();
    assert!(!plan.commands.iter().any(starts), "no node reaches the store");
    let waiting = &plan.waiting[&group(1)];
    assert!(waiting.contains("only in the object store") && waiting.contains("--store"), "{waiting}");
    world.register(registration(1, 1));
    world.register(registration(2, 1));
    world.pass();
    let next = AttemptId { group: group(1), generation: 2, number: 3 };
    let started = world.state.attempt(&next).expect("the next attempt");
    assert_eq!((started.restore.from, started.rung), (Some(ck(4)), Rung::First));
    world.started(next);
    assert_eq!(world.open(next, 41), ck(5 + Limits::NUMBERS_SKIPPED), "invariant 37");
    let spec = Box::new(job_spec("b", &json!({})));
    let submitted = world.send(Command::SubmitJob { spec, bundle: None });
    assert_eq!(submitted, Response::JobSubmitted(JobId(2 + Limits::NUMBERS_SKIPPED)));
}

#[test]
fn what_agents_tell_is_put_together_and_a_rank_that_nobody_has_leaves_its_checkpoint_out() {
    let remains = Remains {
        seals: vec![
            seal_at(1, 3, 30, &[0, 1]),
            seal_at(2, 3, 30, &[0, 1]),
            seal_at(1, 4, 40, &[0]),
            seal_at(2, 4, 40, &[1]),
            seal_at(1, 5, 50, &[0]),
        ],
        nodes: vec![agent(1), agent(2)],
        ..Remains::default()
    };
    let restored = restore(&remains);
    assert_eq!(checkpoint(&restored, 3).durability, Some(Durability::Replicated));
    let newest = checkpoint(&restored, 4);
    assert_eq!(
        (newest.durability, newest.degraded),
        (Some(Durability::Local), true),
        "one copy of each rank"
    );
    assert_eq!((&newest.shards[0].holders, &newest.shards[1].holders), (&vec![holder(1)], &vec![holder(2)]));
    let [left] = restored.left_out.as_slice() else { panic!("{:?}", restored.left_out) };
    assert_eq!((left.job, left.checkpoint), (Some(JobId(1)), Some(ck(5))));
    assert!(left.reason.contains("bytes of rank 1"), "{left:?}");
    // Its number was given away all the same.
    assert_eq!(restored.state.jobs[&JobId(1)].next_checkpoint, 6);
    let mut world = open(&restored);
    // The same agents, under new registrations, on the same disks.
    world.register(registration(1, 1));
    world.register(registration(2, 1));
    world.pass();
    let next = AttemptId { group: group(1), generation: 2, number: 3 };
    assert_eq!(world.state.attempt(&next).expect("the next attempt").restore.from, Some(ck(4)));
}

#[test]
fn a_bucket_and_agents_together_know_more_than_each() {
    let remains = Remains {
        seals: vec![seal(3, 30), seal_at(1, 3, 30, &[0, 1]), seal_at(1, 4, 40, &[0, 1])],
        nodes: vec![agent(1)],
        ..Remains::default()
    };
    let restored = restore(&remains);
    let (older, newest) = (checkpoint(&restored, 3), checkpoint(&restored, 4));
    assert!(older.stored_at.is_some() && older.shards[0].holders == [holder(1)]);
    assert!(newest.stored_at.is_none() && newest.shards[1].holders == [holder(1)]);
}

#[test]
fn agents_that_never_come_back_are_lost_and_the_older_stored_checkpoint_is_waited_for_no_longer() {
    let remains = Remains {
        seals: vec![seal(3, 30), seal_at(1, 4, 40, &[0, 1])],
        nodes: vec![agent(1)],
        ..Remains::default()
    };
    let mut world = open(&restore(&remains));
    world.register(registration(2, 1));
    world.register(registration(3, 1));
    world.wait(Timers::of(Profile::Lan).leader_lease_ms());
    world.lose(1);
    let plan = world.pass();
    assert!(plan.waiting[&group(1)].contains("is away"), "{:?}", plan.waiting);
    world.wait(60_000);
    world.pass();
    let next = AttemptId { group: group(1), generation: 2, number: 3 };
    assert_eq!(world.state.attempt(&next).expect("the next attempt").restore.from, Some(ck(3)));
}

#[test]
fn numbers_of_bytes_that_were_never_sealed_are_not_given_again() {
    let later = AttemptId { generation: 4, number: 9, ..attempt(1, 1) };
    let stranger = AttemptId { generation: 3, ..attempt(12, 1) };
    let remains = Remains {
        seals: vec![seal(3, 30)],
        numbers: [(later, ck(90)), (stranger, ck(1))].into(),
        ..Remains::default()
    };
    let restored = restore(&remains);
    assert_eq!((restored.state.generation, restored.state.next_job), (4, 13));
    let job = &restored.state.jobs[&JobId(1)];
    assert_eq!((job.next_checkpoint, job.groups[0].next_number), (91, 10));
}

#[test]
fn a_cluster_that_went_on_from_another_is_one_and_strangers_are_told_apart() {
    let next = |seq, step| FoundSeal {
        cluster: cluster("next"),
        predecessors: vec![cluster("old")],
        profile: Some(Profile::Wan),
        attempt: AttemptId { generation: 2, ..attempt(1, 3) },
        ..seal(seq, step)
    };
    let mut remains = Remains { seals: vec![seal(3, 30), next(1_000_003, 35)], ..Remains::default() };
    let restored = restore(&remains);
    let config = restored.state.config.clone().expect("a cluster");
    assert_eq!((config.cluster_id, config.predecessors), (cluster("next"), vec![cluster("old")]));
    assert_eq!((config.profile, restored.state.generation), (Profile::Wan, 2));
    assert_eq!(restored.jobs[0].newest, (ck(1_000_003), 35));
    remains.seals.push(FoundSeal { cluster: cluster("other"), ..seal(8, 80) });
    let lineages = remains.lineages();
    let names: Vec<_> =
        lineages.iter().map(|one| (one.cluster.as_str(), one.jobs, one.checkpoints)).collect();
    assert_eq!(names, [("next", 1, 2), ("other", 1, 1)]);
    let restored = remains.restore(&lineages[1], None, &BTreeSet::new(), AT);
    assert_eq!(restored.jobs[0].newest, (ck(8), 80), "nothing of the other cluster is in it");
    // An agent that followed knows the newest name, though no seal has it yet.
    let followed =
        FoundNode { cluster: Some(cluster("next")), predecessors: vec![cluster("old")], ..agent(1) };
    let told = vec![seal_at(1, 3, 30, &[0, 1])];
    let remains = Remains { seals: told, nodes: vec![followed], ..Remains::default() };
    let restored = restore(&remains);
    let config = restored.state.config.clone().expect("a cluster");
    assert_eq!((config.cluster_id, config.predecessors), (cluster("next"), vec![cluster("old")]));
    // "next" ran under generation 2, though nothing of it was found: none of its numbers is given again.
    assert_eq!(restored.state.generation, 2);
    assert_eq!(restored.state.jobs[&JobId(1)].next_checkpoint, 4 + Limits::NUMBERS_SKIPPED);
    assert_eq!(restored.state.next_job, 2 + Limits::NUMBERS_SKIPPED);
}

#[test]
fn of_two_jobs_of_one_name_the_older_had_ended_and_so_had_those_that_somebody_names() {
    let of = |job, name: &str| FoundSeal {
        attempt: attempt(job, 1),
        spec: job_spec(name, &json!({})),
        ..seal(1, 10)
    };
    let seals = vec![of(1, "a"), of(2, "a"), of(3, "b"), of(4, "c")];
    let remains = Remains { seals, ..Remains::default() };
    let restored = restore_with(&remains, &["b", "j4"]);
    let states: Vec<JobState> = restored.state.jobs.values().map(|job| job.state).collect();
    assert_eq!(states, [JobState::Cancelled, JobState::Pending, JobState::Cancelled, JobState::Cancelled]);
    let cancelled = restored.jobs[0].cancelled.as_deref();
    assert!(cancelled.is_some_and(|why| why.contains("j2 has its name")), "{cancelled:?}");
    let mut world = open(&restored);
    world.register(registration(1, 1));
    world.pass();
    let attempts = |job: u64| world.state.jobs[&JobId(job)].groups[0].attempts.len();
    assert_eq!([1, 2, 3, 4].map(attempts), [0, 1, 0, 0]);
}

#[test]
fn a_job_whose_bundle_nobody_has_comes_back_without_running() {
    let with_bundle = |n| FoundSeal { bundle: Some((root(5), 99)), ..seal_at(n, 3, 30, &[0, 1]) };
    let mut remains = Remains { seals: vec![with_bundle(1)], nodes: vec![agent(1)], ..Remains::default() };
    let restored = restore(&remains);
    assert_eq!(restored.state.jobs[&JobId(1)].state, JobState::Cancelled);
    assert!(restored.jobs[0].cancelled.as_deref().is_some_and(|why| why.contains("were not found")));
    remains.stored_bundles.insert(root(5));
    assert_eq!(restore(&remains).jobs[0].cancelled, None);
    remains.stored_bundles.clear();
    remains.nodes[0].bundles.insert(root(5));
    let restored = restore(&remains);
    let bundle = restored.state.jobs[&JobId(1)].bundle.clone().expect("a bundle");
    assert_eq!((bundle.digest, bundle.size_bytes, bundle.holders), (root(5), 99, vec![node(1)]));
}

#[test]
fn what_makes_no_sense_is_left_out_and_the_rest_comes_back() {
    let other_bytes = FoundSeal { manifest_root: Digest([1; 32]), ..seal(3, 30) };
    let mut nameless = FoundSeal { attempt: attempt(2, 1), ..seal(1, 10) };
    nameless.spec.name.clear();
    let mut stray = FoundSeal { attempt: attempt(3, 1), ..seal(1, 10) };
    stray.attempt.group.index = 1;
    let impostor = FoundNode { disk: holder(9).disk, ..agent(1) };
    let remains = Remains {
        seals: vec![seal(3, 30), other_bytes, seal(4, 40), nameless, stray],
        nodes: vec![agent(1), impostor],
        ..Remains::default()
    };
    let restored = restore(&remains);
    let jobs: Vec<JobId> = restored.jobs.iter().map(|job| job.id).collect();
    assert_eq!(jobs, [JobId(1)]);
    assert_eq!(restored.jobs[0].checkpoints, 1);
    let reasons = reasons(&restored);
    for wanted in ["two seals", "a job's name", "of another one", "two agents are called n1"] {
        assert!(reasons.iter().any(|reason| reason.contains(wanted)), "{wanted}: {reasons:?}");
    }
}
