//! What happens to sealed checkpoints afterwards: copies that are replaced, proofs, the object store, and the checkpoint
//! that every attempt dies of.

use outlast_control::plan::{Plan, SaveCost};
use outlast_control::state::{CheckpointState, Command, Event, Observation, ShardTask};
use outlast_types::{CheckpointSeq, DiskId, Durability, ExitStatus, JobId, NodeId};
use serde_json::json;

use crate::world::{World, attempt, node, registration, root};

fn orders(plan: &Plan, wanted: ShardTask) -> Vec<(CheckpointSeq, u32, NodeId)> {
    let mut found = Vec::new();
    for planned in &plan.commands {
        if let Command::OrderShards { seq, task, orders, .. } = &planned.command
            && *task == wanted
        {
            found.extend(orders.iter().map(|(rank, node)| (*seq, *rank, node.clone())));
        }
    }
    found
}

fn holders(world: &World, seq: CheckpointSeq, rank: u32) -> Vec<NodeId> {
    let shard = world.state.jobs[&JobId(1)].checkpoints[&seq].shard(rank).expect("a shard");
    shard.holders.iter().map(|holder| holder.node.clone()).collect()
}

fn held(world: &mut World, n: u64, seq: CheckpointSeq, rank: u32) {
    let attempt = world.state.jobs[&JobId(1)].checkpoints[&seq].attempt;
    world.observe(n, Observation::ShardHeld { attempt, seq, rank, root: root(9) });
}

#[test]
fn invariant_50_a_lost_holder_is_replaced_in_another_failure_domain() {
    let mut world = World::new(4);
    let a = world.running_job("a", &json!({"workers": 1}));
    let seq = world.sealed(a, 1, &[1, 2]);
    assert_eq!(orders(&world.look(), ShardTask::Copy), [], "two domains have it");
    world.lose(2);
    let plan = world.pass();
    let [(_, _, target)] = orders(&plan, ShardTask::Copy).try_into().expect("one order");
    assert!(target != node(1) && target != node(2), "{target}");
    assert_eq!(orders(&world.look(), ShardTask::Copy), [], "one order is enough");
    let n = target.as_str()[1..].parse().expect("a number");
    held(&mut world, n, seq, 0);
    assert!(world.events.contains(&Event::ShardCopied { job: JobId(1), seq, rank: 0, node: target.clone() }));
    assert!(holders(&world, seq, 0).contains(&target));
    assert_eq!(orders(&world.look(), ShardTask::Copy), []);
}

#[test]
fn a_copy_that_failed_goes_to_another_node_and_comes_back_later() {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({"workers": 1, "checkpoint": {"durability": "replicated"}}));
    let seq = world.sealed(a, 1, &[1]);
    let told = |plan: &Plan| orders(plan, ShardTask::Copy).first().map(|(_, _, node)| node.clone());
    let first = told(&world.pass()).expect("an order");
    let n: u64 = first.as_str()[1..].parse().expect("a number");
    world.observe(n, Observation::CopyFailed { attempt: a, seq, rank: 0, reason: "disk full".to_owned() });
    let second = told(&world.pass()).expect("another order");
    assert_ne!(first, second);
    let n: u64 = second.as_str()[1..].parse().expect("a number");
    world.observe(n, Observation::CopyFailed { attempt: a, seq, rank: 0, reason: "disk full".to_owned() });
    let plan = world.pass();
    assert_eq!(told(&plan), None, "both are left alone for a while");
    world.wait(30_000);
    assert!(told(&world.pass()).is_some());
}

#[test]
fn a_degraded_seal_is_raised_when_a_second_domain_has_it() {
    let mut world = World::new(1);
    let a = world.running_job("a", &json!({"workers": 1, "checkpoint": {"durability": "replicated"}}));
    let seq = world.open(a, 1);
    let mut seal = world.seal_of(a, seq, &[1]);
    if let Command::SealCheckpoint { degraded, .. } = &mut seal {
        *degraded = true;
    }
    world.does(seal);
    assert_eq!(orders(&world.pass(), ShardTask::Copy), [], "there is no other node");
    world.register(registration(2, 1));
    assert_eq!(orders(&world.pass(), ShardTask::Copy), [(seq, 0, node(2))]);
    held(&mut world, 2, seq, 0);
    let checkpoint = &world.state.jobs[&JobId(1)].checkpoints[&seq];
    assert_eq!((checkpoint.durability, checkpoint.degraded), (Some(Durability::Replicated), false));
    assert_eq!(world.state.durability_now(checkpoint), Some(Durability::Replicated));
    world.lose(2);
    let checkpoint = &world.state.jobs[&JobId(1)].checkpoints[&seq];
    assert_eq!(world.state.durability_now(checkpoint), Some(Durability::Local), "what is true now");
}

#[test]
fn a_node_can_only_speak_of_the_sealed_bytes_and_of_its_own_copy() {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({"workers": 1}));
    let seq = world.sealed(a, 1, &[1, 2]);
    world.observe(3, Observation::ShardHeld { attempt: a, seq, rank: 0, root: root(8) });
    let lost = |root| Observation::ShardLost { attempt: a, seq, rank: 0, root, reason: "bit rot".to_owned() };
    world.observe(3, lost(root(9)));
    world.observe(2, lost(root(8)));
    let other = Observation::ShardHeld { attempt: attempt(1, 7), seq, rank: 0, root: root(9) };
    world.observe(3, other);
    assert_eq!(
        holders(&world, seq, 0),
        [node(1), node(2)],
        "other bytes, other attempts and other copies do not count"
    );
    world.observe(2, lost(root(9)));
    assert_eq!(holders(&world, seq, 0), [node(1)]);
    let plan = world.pass();
    assert_eq!(orders(&plan, ShardTask::Copy).len(), 1, "and a damaged copy is replaced");
}

#[test]
fn who_leaves_is_replaced_before_it_is_gone_and_what_a_lost_node_was_told_is_for_others() {
    let mut world = World::new(4);
    let a = world.running_job("a", &json!({"workers": 1}));
    let seq = world.sealed(a, 1, &[1, 2]);
    world.does(Command::DrainNode { node: node(2) });
    let first = orders(&world.pass(), ShardTask::Copy);
    let [(_, _, target)] = first.try_into().expect("one order");
    assert!(target == node(3) || target == node(4), "{target}");
    let n: u64 = target.as_str()[1..].parse().expect("a number");
    world.lose(n);
    let [(_, _, other)] = orders(&world.pass(), ShardTask::Copy).try_into().expect("another order");
    assert!(other != target && other != node(2) && other != node(1), "{other}");
    let mut wiped = registration(2, 2);
    wiped.disk = DiskId::new("new").expect("valid");
    world.lose(2);
    world.register(wiped);
    assert_eq!(holders(&world, seq, 0), [node(1)], "a new disk has nothing");
}

#[test]
fn proofs_go_to_the_newest_stay_with_what_was_begun_and_end_the_order() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"checkpoint": {"keep": 3}}));
    let first = world.sealed(a, 1, &[1, 2]);
    assert_eq!(orders(&world.pass(), ShardTask::Prove).len(), 2);
    let second = world.sealed(a, 2, &[1, 2]);
    let third = world.sealed(a, 3, &[1, 2]);
    assert_eq!(orders(&world.pass(), ShardTask::Prove), [], "the first one is being read");
    world.seen.note_done((JobId(1), first), 0, ShardTask::Prove, node(1));
    world.pass();
    assert!(!world.state.jobs[&JobId(1)].checkpoints[&first].proven, "one rank is not all");
    world.seen.note_done((JobId(1), first), 1, ShardTask::Prove, node(1));
    world.pass();
    assert!(!world.state.jobs[&JobId(1)].checkpoints[&first].proven, "who was not told proves nothing");
    world.seen.note_done((JobId(1), first), 1, ShardTask::Prove, node(2));
    world.pass();
    let checkpoints = &world.state.jobs[&JobId(1)].checkpoints;
    assert!(checkpoints[&first].proven && checkpoints[&first].shards.iter().all(|s| s.orders.is_empty()));
    let next = orders(&world.look(), ShardTask::Prove);
    assert!(next.iter().all(|(seq, ..)| *seq == third), "the newest, not {second}: {next:?}");
}

#[test]
fn a_prover_that_finds_damage_is_replaced() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"workers": 1}));
    let seq = world.sealed(a, 1, &[1, 2]);
    assert_eq!(orders(&world.pass(), ShardTask::Prove), [(seq, 0, node(1))]);
    let reason = "extent 3".to_owned();
    world.observe(1, Observation::ShardLost { attempt: a, seq, rank: 0, root: root(9), reason });
    let plan = world.pass();
    assert_eq!(orders(&plan, ShardTask::Prove), [(seq, 0, node(2))]);
    assert_eq!(orders(&plan, ShardTask::Copy), [(seq, 0, node(1))], "it gets good bytes again");
}

#[test]
fn a_proof_of_a_copy_that_was_lost_says_nothing_of_the_next_one_at_the_same_node() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"workers": 1}));
    let seq = world.sealed(a, 1, &[1, 2]);
    let proofs = |plan: &Plan| orders(plan, ShardTask::Prove);
    let lost =
        |rank| Observation::ShardLost { attempt: a, seq, rank, root: root(9), reason: "bit rot".to_owned() };
    assert_eq!(proofs(&world.pass()), [(seq, 0, node(1))]);
    world.seen.note_done((JobId(1), seq), 0, ShardTask::Prove, node(1));
    world.observe(1, lost(0));
    assert_eq!(proofs(&world.pass()), [(seq, 0, node(2))]);
    held(&mut world, 1, seq, 0);
    world.observe(2, lost(0));
    assert_eq!(proofs(&world.pass()), [(seq, 0, node(1))], "the same node, with a new copy");
    world.pass();
    assert!(!world.state.jobs[&JobId(1)].checkpoints[&seq].proven, "nobody has read the new copy");
}

#[test]
fn a_stored_job_is_stored_when_every_rank_is() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"checkpoint": {"durability": "stored"}}));
    let seq = world.sealed(a, 1, &[1, 2]);
    assert_eq!(orders(&world.pass(), ShardTask::Store).len(), 2);
    world.seen.note_done((JobId(1), seq), 0, ShardTask::Store, node(1));
    world.seen.note_done((JobId(1), seq), 1, ShardTask::Store, node(2));
    world.pass();
    let checkpoint = &world.state.jobs[&JobId(1)].checkpoints[&seq];
    assert_eq!(world.state.durability_now(checkpoint), Some(Durability::Stored));
    assert!(checkpoint.shards.iter().all(|shard| shard.ordered(ShardTask::Store).is_none()));
    assert_eq!(orders(&world.look(), ShardTask::Store), []);
}

#[test]
fn the_last_checkpoint_of_a_finished_job_is_looked_after_too() {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({"workers": 1}));
    let seq = world.sealed(a, 1, &[1, 2]);
    world.exited(a, 0, ExitStatus::Code(0));
    world.release_all(a);
    world.pass();
    world.lose(2);
    world.wait(5_000);
    assert_eq!(orders(&world.pass(), ShardTask::Copy), [(seq, 0, node(3))]);
}

#[test]
fn what_a_finished_job_has_beyond_keep_goes_once_its_last_checkpoint_is_proven() {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({"workers": 1, "checkpoint": {"keep": 1}}));
    let first = world.sealed(a, 1, &[1, 2]);
    let last = world.sealed(a, 2, &[1, 2]);
    world.exited(a, 0, ExitStatus::Code(0));
    world.release_all(a);
    world.pass();
    world.prove(last);
    world.wait(5_000);
    world.pass();
    let checkpoints = &world.state.jobs[&JobId(1)].checkpoints;
    let states = [first, last].map(|seq| checkpoints[&seq].state);
    assert_eq!(states, [CheckpointState::Retired, CheckpointState::Sealed]);
}

#[test]
fn bytes_that_do_not_change_from_seal_to_seal_are_told() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    let first = world.sealed(a, 1, &[1, 2]);
    let second = world.sealed(a, 2, &[1, 2]);
    assert!(world.events.contains(&Event::CheckpointStale { job: JobId(1), seq: second, step: 2 }));
    let seq = world.open(a, 3);
    let mut seal = world.seal_of(a, seq, &[1, 2]);
    if let Command::SealCheckpoint { shards, .. } = &mut seal {
        (shards[0].root, shards[1].root) = (root(5), root(6));
    }
    world.does(seal);
    let checkpoints = &world.state.jobs[&JobId(1)].checkpoints;
    let stale = [first, second, seq].map(|seq| checkpoints[&seq].stale);
    assert_eq!(stale, [false, true, false]);
}

/// Fails the current attempt and starts the next.
fn fail(world: &mut World, number: u64) {
    world.exited(attempt(1, number), 0, ExitStatus::Code(1));
    world.release_all(attempt(1, number));
    world.wait(120_000);
}

#[test]
fn a_checkpoint_that_every_attempt_dies_of_is_set_aside_once() {
    let mut world = World::new(1);
    let change = json!({"workers": 1, "checkpoint": {"keep": 3}, "recovery": {"max_user_failures": 3}});
    let a = world.running_job("a", &change);
    let old = world.sealed(a, 1, &[1]);
    let bad = world.sealed(a, 2, &[1]);
    for number in 1..=4 {
        fail(&mut world, number);
        if number < 4 {
            world.pass();
            world.started(attempt(1, number + 1));
        }
    }
    world.pass();
    let state = |world: &World, seq| world.state.jobs[&JobId(1)].checkpoints[&seq].state;
    assert_eq!(state(&world, bad), CheckpointState::Quarantined, "four deaths, three of them after it");
    world.pass();
    let restored =
        |world: &World, number| world.state.attempt(&attempt(1, number)).and_then(|a| a.restore.from);
    assert_eq!(restored(&world, 5), Some(old), "and the older one gets its chance");
    for number in 5..=8 {
        world.started(attempt(1, number));
        fail(&mut world, number);
        world.pass();
    }
    assert_eq!(state(&world, old), CheckpointState::Sealed, "a second one is the program's fault");
    assert!(world.state.jobs[&JobId(1)].failing || world.state.jobs[&JobId(1)].state.is_final());
}

#[test]
fn a_job_that_leaves_it_to_us_saves_as_often_as_its_cost_and_its_failures_say() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    let chosen = |world: &World| world.state.group(&a.group).and_then(|group| group.interval);
    world.pass();
    assert_eq!(chosen(&world), None, "nothing was measured yet");
    world.seen.note_save_cost(a, 1, SaveCost { stall_ms: 2_000, write_ms: 5_000 });
    world.pass();
    let first = chosen(&world).expect("chosen");
    assert_eq!((first.every_ms / 1_000, first.cost_ms, first.failures), (415, 2_000, 0));
    world.wait(60_000);
    assert!(world.look().commands.is_empty(), "a little more time changes nothing");
    world.seen.note_save_cost(a, 0, SaveCost { stall_ms: 20_000, write_ms: 50_000 });
    world.pass();
    assert!(chosen(&world).is_some_and(|now| now.every_ms > first.every_ms));

    let b = world.running_job("b", &json!({"checkpoint": {"every": "10s", "keep": 1}}));
    world.seen.note_save_cost(b, 0, SaveCost { stall_ms: 2_000, write_ms: 5_000 });
    world.pass();
    assert_eq!(
        world.state.group(&b.group).and_then(|group| group.interval),
        None,
        "who names a time keeps it"
    );
}

#[test]
fn a_proof_that_cannot_be_made_holds_no_other_one_up() {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({"workers": 2, "checkpoint": {"durability": "local"}}));
    let first = world.open(a, 1);
    let mut seal = world.seal_of(a, first, &[1]);
    if let Command::SealCheckpoint { shards, .. } = &mut seal {
        shards[1].holders = vec![crate::world::holder(3)];
    }
    world.does(seal);
    assert_eq!(orders(&world.pass(), ShardTask::Prove).len(), 2);
    world.lose(3);
    let next = world.sealed(a, 2, &[1]);
    let ordered = orders(&world.pass(), ShardTask::Prove);
    assert!(ordered.iter().any(|(seq, ..)| *seq == next), "{ordered:?}");
}

#[test]
fn a_source_that_serves_nobody_is_not_tried_with_node_after_node_for_ever() {
    let mut world = World::new(12);
    let a = world.running_job("a", &json!({"workers": 1, "checkpoint": {"durability": "replicated"}}));
    let seq = world.sealed(a, 1, &[1]);
    let mut tries = 0;
    while let Some((_, _, node)) = orders(&world.pass(), ShardTask::Copy).pop() {
        tries += 1;
        assert!(tries <= 8, "as many as are remembered, then a pause");
        let n = node.as_str()[1..].parse().expect("a number");
        world.observe(n, Observation::CopyFailed { attempt: a, seq, rank: 0, reason: "no route".to_owned() });
    }
    world.wait(30_000);
    assert_eq!(orders(&world.pass(), ShardTask::Copy).len(), 1, "and then again");
}

#[test]
fn a_proof_that_is_not_made_goes_to_another_holder_after_a_while_and_ever_later() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"workers": 1}));
    let seq = world.sealed(a, 1, &[1, 2]);
    assert_eq!(orders(&world.pass(), ShardTask::Prove), [(seq, 0, node(1))]);
    world.pass();
    world.wait(119_000);
    assert_eq!(orders(&world.pass(), ShardTask::Prove), [], "not yet");
    world.wait(1_000);
    assert_eq!(orders(&world.pass(), ShardTask::Prove), [(seq, 0, node(2))], "the other one");
    world.pass();
    world.wait(239_000);
    assert_eq!(orders(&world.pass(), ShardTask::Prove), [], "twice as long");
    world.wait(1_000);
    assert_eq!(orders(&world.pass(), ShardTask::Prove), [(seq, 0, node(1))], "and back");
    world.pass();
    // Who has done it is only waited for with the other ranks.
    world.seen.note_done((JobId(1), seq), 0, ShardTask::Prove, node(1));
    world.pass();
    assert!(world.state.jobs[&JobId(1)].checkpoints[&seq].proven);
}

#[test]
fn a_proof_stays_with_the_only_holder() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"workers": 1, "checkpoint": {"durability": "local"}}));
    let seq = world.sealed(a, 1, &[1]);
    assert_eq!(orders(&world.pass(), ShardTask::Prove), [(seq, 0, node(1))]);
    world.pass();
    world.wait(3_600_000);
    assert_eq!(orders(&world.pass(), ShardTask::Prove), []);
}

#[test]
fn copies_that_fail_round_after_round_wait_twice_as_long_each_time_up_to_a_cap() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"workers": 1, "checkpoint": {"durability": "replicated"}}));
    let seq = world.sealed(a, 1, &[1]);
    let mut waits = Vec::new();
    for _ in 0..7 {
        assert_eq!(orders(&world.pass(), ShardTask::Copy), [(seq, 0, node(2))]);
        let reason = "no route".to_owned();
        world.observe(2, Observation::CopyFailed { attempt: a, seq, rank: 0, reason });
        let mut waited_s = 0;
        while orders(&world.look(), ShardTask::Copy).is_empty() {
            world.wait(10_000);
            waited_s += 10;
        }
        waits.push(waited_s);
    }
    assert_eq!(waits, [30, 60, 120, 240, 480, 960, 960]);
    // One that is made ends it.
    world.pass();
    held(&mut world, 2, seq, 0);
    let shard = &world.state.jobs[&JobId(1)].checkpoints[&seq].shards[0];
    assert_eq!((shard.copies_failed, shard.failed_copies.len()), (0, 0));
}

#[test]
fn one_slow_save_does_not_change_how_often_a_job_saves() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    let every_s = |world: &World| {
        world.state.group(&a.group).and_then(|group| group.interval).map(|chosen| chosen.every_ms / 1_000)
    };
    let save = |world: &mut World, stall_ms| {
        // Told with every heartbeat until the next save.
        for _ in 0..10 {
            world.seen.note_save_cost(a, 0, SaveCost { stall_ms, write_ms: 5_000 });
        }
        world.pass();
        every_s(world)
    };
    assert_eq!(save(&mut world, 2_000), Some(415));
    assert_eq!(save(&mut world, 20_000), Some(415), "the disk was busy for a moment");
    assert_eq!(save(&mut world, 2_100), Some(415));
    for _ in 0..2 {
        save(&mut world, 20_000);
        save(&mut world, 20_001);
    }
    assert!(every_s(&world) > Some(1_000), "what stays so counts: {:?}", every_s(&world));
}

#[test]
fn invariant_36_a_checkpoint_that_lost_a_holder_since_its_seal_justifies_retiring_none() {
    let (mut world, old, new) = thinned();
    let incarnation = Some(world.incarnation());
    let refusal = world.refused(Command::RetireCheckpoint { job: JobId(1), seq: old, incarnation });
    assert!(refusal.to_string().contains("0 good checkpoints are newer"), "{refusal}");
    // With a second copy it counts again.
    held_by_another(&mut world, new);
    world.does(Command::RetireCheckpoint { job: JobId(1), seq: old, incarnation });
}

/// Otherwise a replayed log and a snapshot taken since would differ, and bytes that are gone would be counted on.
#[test]
fn a_log_from_before_leaders_named_themselves_retires_what_it_did_then() {
    let (mut world, old, _) = thinned();
    world.does(Command::RetireCheckpoint { job: JobId(1), seq: old, incarnation: None });
}

/// Two sealed checkpoints, the newer one proven and with one holder left.
fn thinned() -> (World, CheckpointSeq, CheckpointSeq) {
    let mut world = World::new(3);
    let a =
        world.running_job("a", &json!({"workers": 1, "checkpoint": {"keep": 1, "durability": "replicated"}}));
    let old = world.sealed(a, 1, &[1, 2]);
    let new = world.sealed(a, 2, &[2, 3]);
    world.prove(new);
    world.does(Command::CancelJob { job: JobId(1), reason: None });
    world.lose(3);
    (world, old, new)
}

/// A copy at node 1.
fn held_by_another(world: &mut World, seq: CheckpointSeq) {
    let incarnation = world.incarnation();
    let orders = vec![(0, node(1))];
    world.does(Command::OrderShards { job: JobId(1), seq, task: ShardTask::Copy, orders, incarnation });
    held(world, 1, seq, 0);
}
