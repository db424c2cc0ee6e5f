//! One test a rule of the planner.

use outlast_control::plan::Plan;
use outlast_control::state::{AttemptPhase, Command, JobState, Observation, Rung};
use outlast_types::{BootTime, Cause, Durability, ExitStatus, JobId};
use serde_json::json;

use crate::world::{World, attempt, ck, group, node, registration};

/// The rung and the places of the one start in a plan.
fn start_of(plan: &Plan) -> Option<(Rung, Vec<u64>, Option<u64>)> {
    let number =
        |placed: &outlast_control::state::Placed| placed.node.as_str()[1..].parse().expect("a number");
    plan.commands.iter().find_map(|planned| match &planned.command {
        Command::StartAttempt { rung, placed, restore, .. } => {
            Some((*rung, placed.iter().map(number).collect(), restore.from.map(|seq| seq.0)))
        }
        _ => None,
    })
}

fn waiting(plan: &Plan, job: u64) -> &str {
    plan.waiting.get(&group(job)).map_or("", String::as_str)
}

#[test]
fn ranks_are_spread_over_failure_domains_and_the_same_state_gives_the_same_plan() {
    let mut world = World::new(3);
    world.submit("a", &json!({"workers": 3}));
    let plan = world.look();
    assert_eq!(start_of(&plan), Some((Rung::First, vec![1, 2, 3], None)));
    assert_eq!(world.look(), plan);
}

#[test]
fn rung_1_restarts_where_it_was_as_soon_as_all_is_released() {
    let mut world = World::new(4);
    let a = world.running_job("a", &json!({}));
    world.exited(a, 0, ExitStatus::Code(1));
    let plan = world.look();
    assert_eq!(start_of(&plan), None);
    assert!(waiting(&plan, 1).contains("not released"), "{}", waiting(&plan, 1));
    world.release_all(a);
    assert_eq!(start_of(&world.look()), Some((Rung::InPlace, vec![1, 2], None)));
}

#[test]
fn rung_2_moves_only_the_rank_whose_node_was_lost() {
    let mut world = World::new(4);
    world.running_job("a", &json!({}));
    world.lose(1);
    assert_eq!(
        start_of(&world.look()),
        Some((Rung::RankMoved, vec![3, 2], None)),
        "at once: there is room beside it"
    );
    let mut full = World::new(4);
    let a = full.running_job("a", &json!({"resources": {"cpus": 3}}));
    full.lose(1);
    assert_eq!(start_of(&full.look()), None, "rank 1 has to be released first");
    full.released(a, 1);
    assert_eq!(start_of(&full.look()), Some((Rung::RankMoved, vec![3, 2], None)));
}

#[test]
fn a_suspect_node_of_the_same_attempt_is_waited_for_when_another_was_lost() {
    let mut world = World::new(4);
    world.running_job("a", &json!({}));
    world.seen.suspects.insert(node(2));
    world.lose(1);
    assert_eq!(start_of(&world.look()), None);
    world.lose(2);
    assert_eq!(start_of(&world.look()), Some((Rung::Replaced, vec![3, 4], None)));
}

#[test]
fn rung_2_moves_a_rank_that_failed_twice_at_one_place() {
    let mut world = World::new(4);
    world.running_job("a", &json!({}));
    for number in 1..=2 {
        world.exited(attempt(1, number), 1, ExitStatus::Code(1));
        world.release_all(attempt(1, number));
        world.wait(60_000);
        let expected =
            if number == 1 { (Rung::InPlace, vec![1, 2], None) } else { (Rung::RankMoved, vec![1, 3], None) };
        assert_eq!(start_of(&world.pass()), Some(expected));
        world.started(attempt(1, number + 1));
    }
}

#[test]
fn rung_3_places_anew_what_no_longer_fits_beside_what_stays() {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({"resources": {"cpus": 3}}));
    world.exited(a, 0, ExitStatus::Code(1));
    world.release_all(a);
    // Somebody takes the place of rank 1 in between.
    world.does(Command::CordonNode { node: node(1) });
    world.does(Command::CordonNode { node: node(3) });
    let b = world.submit("b", &json!({"workers": 1, "resources": {"cpus": 3}}));
    world.does(Command::CancelJob { job: JobId(1), reason: None });
    world.pass();
    assert_eq!(world.place(attempt(b.0, 1), 0), 2);
    world.does(Command::UncordonNode { node: node(1) });
    world.does(Command::UncordonNode { node: node(3) });
    let c = world.submit("c", &json!({"resources": {"cpus": 3}}));
    assert_eq!(start_of(&world.pass()), Some((Rung::First, vec![1, 3], None)));
    world.started(attempt(c.0, 1));
    world.lose(1);
    world.released(attempt(c.0, 1), 1);
    assert!(waiting(&world.look(), c.0).contains("3 cpus"));
    world.started(attempt(b.0, 1));
    world.exited(attempt(b.0, 1), 0, ExitStatus::Code(0));
    world.released(attempt(b.0, 1), 0);
    world.pass();
    assert_eq!(world.places(attempt(c.0, 2)), [2, 3]);
}

#[test]
fn a_rank_that_is_never_released_is_waited_for_thirty_seconds() {
    let mut world = World::new(4);
    let a = world.running_job("a", &json!({}));
    world.exited(a, 0, ExitStatus::Code(1));
    world.released(a, 0);
    assert_eq!(start_of(&world.look()), None);
    world.wait(29_999);
    assert_eq!(start_of(&world.look()), None);
    world.wait(1);
    assert_eq!(start_of(&world.look()), Some((Rung::RankMoved, vec![1, 3], None)));
}

#[test]
fn suspects_get_nothing_new() {
    let mut world = World::new(2);
    world.submit("a", &json!({"workers": 1}));
    world.seen.suspects.insert(node(1));
    assert_eq!(start_of(&world.look()), Some((Rung::First, vec![2], None)));
    world.seen.suspects.insert(node(2));
    assert!(waiting(&world.look(), 1).contains("no node takes new work"));
}

#[test]
fn a_node_that_ails_gets_nothing_new_and_the_reason_names_it() {
    let mut world = World::new(2);
    world.submit("a", &json!({"workers": 1}));
    world.seen.ailing.insert(node(1), "its disk is full".to_owned());
    assert_eq!(start_of(&world.look()), Some((Rung::First, vec![2], None)));
    world.seen.suspects.insert(node(2));
    let plan = world.look();
    let why = waiting(&plan, 1);
    assert!(why.contains(&format!("{}: its disk is full", node(1))), "{why}");
    world.seen.ailing.clear();
    assert_eq!(start_of(&world.look()), Some((Rung::First, vec![1], None)));
}

#[test]
fn what_runs_on_a_node_that_ails_goes_on() {
    let mut world = World::new(2);
    world.running_job("a", &json!({"workers": 1}));
    world.seen.ailing.extend([node(1), node(2)].map(|node| (node, "its disk is full".to_owned())));
    assert_eq!(world.look().commands, []);
}

#[test]
fn the_fourth_failure_in_a_row_gives_up_where_three_are_allowed() {
    let mut world = World::new(2);
    world.running_job("a", &json!({"recovery": {"max_user_failures": 3}}));
    for number in 1..=3 {
        world.exited(attempt(1, number), 0, ExitStatus::Code(1));
        world.release_all(attempt(1, number));
        world.wait(60_000);
        world.pass();
        world.started(attempt(1, number + 1));
    }
    world.exited(attempt(1, 4), 0, ExitStatus::Code(9));
    assert!(waiting(&world.look(), 1).contains("still to be heard"), "its node may turn out to be the cause");
    world.release_all(attempt(1, 4));
    world.pass();
    let job = &world.state.jobs[&JobId(1)];
    assert_eq!(job.state, JobState::Failed);
    let reason = job.reason.clone().unwrap_or_default();
    assert!(reason.starts_with("4 failures of the program") && reason.ends_with("exit code 9"), "{reason}");
}

#[test]
fn the_second_failure_waits_a_second() {
    let mut world = World::new(2);
    world.running_job("a", &json!({}));
    for number in 1..=2 {
        world.exited(attempt(1, number), number as u32 - 1, ExitStatus::Code(1));
        world.release_all(attempt(1, number));
        if number == 1 {
            assert!(start_of(&world.pass()).is_some(), "the first is retried at once");
            world.started(attempt(1, 2));
        }
    }
    let plan = world.look();
    assert_eq!((start_of(&plan), plan.next_check_ms), (None, Some(1_000)));
    assert!(waiting(&plan, 1).contains("2 times in a row"), "{}", waiting(&plan, 1));
    world.pass();
    assert_eq!(
        world.state.attempt(&attempt(1, 2)).map(|a| a.phase),
        Some(AttemptPhase::Ended),
        "it does not linger"
    );
    world.wait(1_000);
    assert_eq!(start_of(&world.look()).map(|(rung, ..)| rung), Some(Rung::InPlace));
}

#[test]
fn impossible_wants_wait_and_say_why() {
    let mut world = World::new(2);
    world.submit("a", &json!({"workers": 1, "resources": {"cpus": 1, "gpus": 8}}));
    world.submit("b", &json!({"workers": 1, "placement": {"require": {"disk": "nvme"}}}));
    world.submit("c", &json!({"workers": 9, "resources": {"cpus": 1, "gpus": 1}}));
    let plan = world.look();
    assert!(plan.commands.is_empty());
    assert!(waiting(&plan, 1).contains("most GPUs that a node has is 2"), "{}", waiting(&plan, 1));
    assert!(waiting(&plan, 2).contains("disk=nvme"), "{}", waiting(&plan, 2));
    assert!(
        waiting(&plan, 3).contains("n1 has 2 of 4 cpus") && waiting(&plan, 3).contains("0 of 2 GPUs"),
        "{}",
        waiting(&plan, 3)
    );
}

#[test]
fn salvage_waits_up_to_a_second_for_what_is_staged_everywhere() {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({}));
    let seq = world.open(a, 7);
    for rank in 0..2 {
        world.seen.note_staged(JobId(1), seq, rank);
    }
    world.exited(a, 0, ExitStatus::Code(1));
    world.release_all(a);
    let plan = world.look();
    assert_eq!((start_of(&plan), plan.next_check_ms), (None, Some(500)));
    world.wait(500);
    let plan = world.look();
    assert_eq!((start_of(&plan), plan.next_check_ms), (None, Some(500)), "a second in all");
    world.receive(a, seq, &[1, 2]);
    assert_eq!(world.pass().seals.len(), 1);
    assert_eq!(start_of(&world.pass()), Some((Rung::InPlace, vec![1, 2], Some(seq.0))), "no step is lost");
}

/// A worker's end is told by another way than what it had staged, and was heard first when this was missing.
#[test]
fn salvage_hears_the_agents_out_before_silence_is_an_answer() {
    let stopped = || {
        let mut world = World::new(3);
        let a = world.running_job("a", &json!({}));
        let seq = world.open(a, 7);
        world.exited(a, 0, ExitStatus::Code(1));
        world.release_all(a);
        assert_eq!(start_of(&world.look()), None, "receipts may be on their way");
        (world, a, seq)
    };
    let (mut heard, a, seq) = stopped();
    heard.wait(300);
    for rank in 0..2 {
        heard.seen.note_staged(JobId(1), seq, rank);
    }
    heard.wait(300);
    assert_eq!(start_of(&heard.look()), None, "it is staged everywhere");
    heard.receive(a, seq, &[1, 2]);
    assert_eq!(heard.pass().seals.len(), 1);
    let (mut silent, _, seq) = stopped();
    silent.seen.note_staged(JobId(1), seq, 0);
    silent.wait(500);
    assert!(start_of(&silent.look()).is_some(), "rank 1 has staged nothing");
    let (mut failed, _, seq) = stopped();
    failed.seen.note_failed(JobId(1), seq, 0, "the worker ended before its bytes were staged".to_owned());
    assert!(start_of(&failed.look()).is_some(), "there is nothing to wait for");
}

#[test]
fn a_seal_goes_before_the_start_that_would_fence_it_but_not_for_ever() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    let seq = world.open(a, 7);
    world.exited(a, 0, ExitStatus::Code(1));
    world.release_all(a);
    world.seen.suspects.extend([node(1), node(2)]);
    world.look();
    world.seen.suspects.clear();
    world.wait(1_500);
    world.receive(a, seq, &[1, 2]);
    let plan = world.look();
    assert_eq!((plan.seals.len(), start_of(&plan), plan.next_check_ms), (1, None, Some(500)));
    world.wait(500);
    let plan = world.look();
    assert_eq!(plan.seals.len(), 0, "its manifest does not come to be written");
    assert!(start_of(&plan).is_some());
}

#[test]
fn salvage_gives_up_after_a_second_and_does_not_wait_for_a_lost_node() {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({}));
    let seq = world.open(a, 7);
    for rank in 0..2 {
        world.seen.note_staged(JobId(1), seq, rank);
    }
    world.exited(a, 0, ExitStatus::Code(1));
    world.release_all(a);
    world.look();
    world.wait(1_000);
    assert!(start_of(&world.look()).is_some());
    let mut lost = World::new(3);
    let a = lost.running_job("a", &json!({}));
    let seq = lost.open(a, 7);
    for rank in 0..2 {
        lost.seen.note_staged(JobId(1), seq, rank);
    }
    lost.lose(1);
    lost.released(a, 1);
    assert!(start_of(&lost.look()).is_some(), "rank 0's bytes are gone with its node");
}

#[test]
fn a_seal_waits_for_the_second_domain_while_one_is_there_and_is_degraded_otherwise() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"checkpoint": {"durability": "replicated"}}));
    let seq = world.open(a, 1);
    world.receive(a, seq, &[1]);
    assert_eq!(world.look().seals.len(), 0);
    world.seen.suspects.insert(node(2));
    let seals = world.look().seals;
    assert_eq!(seals.first().map(|seal| (seal.durability, seal.degraded)), Some((Durability::Local, true)));
    world.seen.suspects.clear();
    world.wait(30_000);
    assert_eq!(world.look().seals.len(), 1, "a peer that takes nothing does not keep it unsealed");
    world.receive(a, seq, &[2]);
    let seals = world.look().seals;
    assert_eq!(
        seals.first().map(|seal| (seal.durability, seal.degraded)),
        Some((Durability::Replicated, false))
    );
}

#[test]
fn where_one_domain_is_alive_local_is_what_is_wanted() {
    let mut world = World::new(1);
    let a = world.running_job("a", &json!({}));
    let seq = world.open(a, 1);
    world.receive(a, seq, &[1]);
    let seals = world.pass().seals;
    assert_eq!(seals.first().map(|seal| (seal.durability, seal.degraded)), Some((Durability::Local, false)));
}

#[test]
fn retention_keeps_what_the_job_asked_for() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"checkpoint": {"keep": 2}}));
    for step in 1..=6 {
        let seq = world.sealed(a, step, &[1, 2]);
        world.prove(seq);
    }
    world.pass();
    let sealed: Vec<u64> = world.state.jobs[&JobId(1)].sealed_of(0).iter().map(|c| c.step).collect();
    assert_eq!(sealed, [6, 5]);
}

#[test]
fn invariant_35_a_checkpoint_that_is_away_is_waited_for_then_passed_over_with_the_reason() {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({"checkpoint": {"durability": "local", "keep": 5}}));
    let (old, new) = (world.sealed(a, 1, &[3]), world.sealed(a, 2, &[1]));
    world.lose(1);
    world.release_all(a);
    let plan = world.look();
    assert!(
        start_of(&plan).is_none() && waiting(&plan, 1).contains("cannot be read now"),
        "{}",
        waiting(&plan, 1)
    );
    world.wait(59_999);
    assert!(start_of(&world.look()).is_none());
    world.wait(1);
    let plan = world.pass();
    assert_eq!(start_of(&plan).and_then(|(_, _, from)| from), Some(old.0));
    let decided =
        world.state.attempt(&attempt(1, 2)).map(|b| b.restore.passed_over.clone()).unwrap_or_default();
    assert!(decided.len() == 1 && decided[0].0 == new && decided[0].1.contains("n1"), "{decided:?}");
}

#[test]
fn invariant_35_step_zero_is_never_chosen_while_a_sealed_checkpoint_may_come_back() {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({"checkpoint": {"durability": "local"}}));
    world.sealed(a, 2, &[1]);
    world.lose(1);
    world.release_all(a);
    world.look();
    world.wait(3_600_000);
    let plan = world.pass();
    assert!(
        start_of(&plan).is_none() && waiting(&plan, 1).contains("quarantine them"),
        "{}",
        waiting(&plan, 1)
    );
    world.register(registration(1, 2));
    assert_eq!(start_of(&world.look()).and_then(|(_, _, from)| from), Some(1), "its holder is back");
    world.does(Command::QuarantineCheckpoint {
        job: JobId(1),
        seq: ck(1),
        reason: "mine".to_owned(),
        incarnation: None,
    });
    assert_eq!(start_of(&world.look()).map(|(_, _, from)| from), Some(None), "an operator said so");
}

#[test]
fn bytes_that_nobody_has_any_more_are_not_waited_for() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"checkpoint": {"durability": "local"}}));
    world.sealed(a, 2, &[1]);
    let mut replaced = registration(1, 2);
    replaced.disk = outlast_types::DiskId::new("fresh").expect("valid");
    world.lose(1);
    world.register(replaced);
    world.release_all(a);
    world.pass();
    assert_eq!(start_of(&world.look()).map(|(_, _, from)| from), Some(None));
}

#[test]
fn a_hang_is_seen_after_the_learned_time_and_not_before_two_steps() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    world.look();
    world.wait(10_000_000);
    assert!(world.look().commands.is_empty(), "nothing was learned");
    let start = world.boot_ms;
    for step in 0..3 {
        for rank in 0..2 {
            world.seen.note_step(a, rank, step, BootTime(start + step * 20_000));
        }
    }
    // Five times twenty seconds after the last step.
    world.wait(40_000 + 100_000);
    assert!(world.look().commands.is_empty());
    world.wait(1);
    world.pass();
    let cause = world.state.attempt(&a).and_then(|a| a.cause.clone());
    assert_eq!(cause, Some(Cause::Hang { rank: 0, silent_ms: 100_001 }));
}

#[test]
fn a_hang_time_of_the_users_counts_from_the_leaders_start_and_never_means_never() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"recovery": {"hang_after": "10s"}}));
    world.look();
    world.wait(9_000);
    world.seen.leader_since = BootTime(world.boot_ms);
    world.wait(10_000);
    assert!(world.look().commands.is_empty());
    world.wait(1);
    world.pass();
    assert_eq!(world.state.attempt(&a).map(|a| a.phase), Some(AttemptPhase::Stopping));
    let mut never = World::new(2);
    never.running_job("a", &json!({"recovery": {"hang_after": "never"}}));
    never.look();
    never.wait(100_000_000);
    assert!(never.look().commands.is_empty());
}

/// What the newest plan stops, with its cause.
fn stop_of(plan: &Plan) -> Option<Cause> {
    plan.commands.iter().find_map(|planned| match &planned.command {
        Command::StopAttempt { cause, graceful: false, .. } => Some(cause.clone()),
        _ => None,
    })
}

#[test]
fn an_attempt_that_does_not_start_in_ten_minutes_is_stopped_and_names_who_did_not() {
    let mut world = World::new(3);
    let job = world.submit("a", &json!({"workers": 3}));
    world.pass();
    let a = attempt(job.0, 1);
    assert_eq!(world.look().next_check_ms, Some(600_000));
    world.observe(2, Observation::Started { attempt: a, rank: 1 });
    world.wait(599_999);
    assert_eq!(stop_of(&world.look()), None);
    world.wait(1);
    let plan = world.pass();
    let ranks = vec![(0, node(1)), (2, node(3))];
    assert_eq!(stop_of(&plan), Some(Cause::StartTimeout { ranks, others: 0, waited_ms: 600_000 }));
    let evidence = plan.commands[0].cause.clone().unwrap_or_default();
    assert_eq!(evidence, "rank 0 on n1, rank 2 on n3 did not start within 600 s");
    let group = world.state.group(&a.group).expect("kept");
    assert_eq!((group.user_failures.total, group.infrastructure_failures.total), (0, 1));
    world.release_all(a);
    assert_eq!(start_of(&world.pass()).map(|(rung, ..)| rung), Some(Rung::InPlace));
    assert_eq!(stop_of(&world.look()), None, "the next one has its own time");
}

#[test]
fn a_running_attempt_and_a_new_leader_have_nothing_to_do_with_the_time_to_start() {
    let mut running = World::new(2);
    running.running_job("a", &json!({}));
    running.look();
    running.wait(10_000_000);
    assert_eq!(stop_of(&running.look()), None);
    let mut world = World::new(2);
    world.submit("a", &json!({}));
    world.pass();
    world.look();
    world.wait(599_999);
    world.seen = outlast_control::plan::Observations::new(BootTime(world.boot_ms));
    world.look();
    world.wait(599_999);
    assert_eq!(stop_of(&world.look()), None, "a new leader begins to count anew");
    world.wait(1);
    assert!(stop_of(&world.look()).is_some());
}

#[test]
fn a_large_checkpoint_has_room_to_be_restored() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"resources": {"cpus": 1}}));
    let seq = world.open(a, 1);
    let mut seal = world.seal_of(a, seq, &[1, 2]);
    if let Command::SealCheckpoint { shards, .. } = &mut seal {
        // 100 GB: 10,000 s at 10 MB/s.
        shards[1].size_bytes = 100_000_000_000;
    }
    world.does(seal);
    world.exited(a, 0, ExitStatus::Code(1));
    world.release_all(a);
    world.pass();
    world.look();
    world.wait(10_599_999);
    assert_eq!(stop_of(&world.look()), None);
    world.wait(1);
    assert!(matches!(stop_of(&world.look()), Some(Cause::StartTimeout { .. })));
}

#[test]
fn a_cause_names_a_bounded_number_of_ranks() {
    let mut world = World::new(5);
    world.submit("a", &json!({"workers": 20}));
    world.pass();
    world.look();
    world.wait(600_000);
    let Some(Cause::StartTimeout { ranks, others, .. }) = stop_of(&world.look()) else {
        panic!("it is late")
    };
    assert_eq!((ranks.len(), others), (16, 4));
}

#[test]
fn a_drain_asks_for_a_checkpoint_waits_for_its_seal_and_moves() {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({}));
    world.sealed(a, 1, &[1, 2]);
    world.does(Command::DrainNode { node: node(1) });
    world.pass();
    assert!(world.state.attempt(&a).is_some_and(|a| a.checkpoint_requested));
    world.wait(1_000);
    assert!(world.look().commands.is_empty());
    world.sealed(a, 2, &[1, 2]);
    world.pass();
    assert_eq!(world.state.attempt(&a).and_then(|a| a.cause.clone()), Some(Cause::Drained { node: node(1) }));
    world.released(a, 1);
    assert_eq!(start_of(&world.look()), Some((Rung::RankMoved, vec![3, 2], Some(2))));
    let group = world.state.group(&a.group).expect("kept");
    assert_eq!(group.user_failures.total + group.infrastructure_failures.total, 0, "charged to nobody");
}

#[test]
fn a_drain_moves_at_once_what_never_saves_and_after_thirty_seconds_what_does_not_answer() {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({}));
    world.does(Command::DrainNode { node: node(1) });
    world.pass();
    assert_eq!(world.state.attempt(&a).map(|a| a.phase), Some(AttemptPhase::Stopping));
    let mut slow = World::new(3);
    let a = slow.running_job("a", &json!({}));
    slow.sealed(a, 1, &[1, 2]);
    slow.does(Command::DrainNode { node: node(1) });
    slow.pass();
    slow.look();
    slow.wait(29_999);
    assert!(slow.look().commands.is_empty());
    slow.wait(1);
    slow.pass();
    assert_eq!(slow.state.attempt(&a).map(|a| a.phase), Some(AttemptPhase::Stopping));
}

#[test]
fn a_node_that_fails_several_jobs_is_quarantined_with_the_evidence_until_an_operator_looks() {
    let mut world = World::new(3);
    let spec = json!({"workers": 1, "placement": {"prefer": {"disk": "nvme"}}, "recovery": {"max_user_failures": 90}});
    let label = [("disk".to_owned(), "nvme".to_owned())].into();
    world.does(Command::LabelNode { node: node(1), set: label, remove: Vec::new() });
    for name in ["a", "b"] {
        world.running_job(name, &spec);
    }
    for number in 1..=3 {
        for job in 1..=2 {
            world.wait(60_000);
            let current = attempt(job, number);
            if world.state.attempt(&current).is_none() {
                continue;
            }
            let n = world.place(current, 0);
            if n == 1 {
                world.exited(current, 0, ExitStatus::KeeperLost);
                world.released(current, 0);
                world.pass();
                world.started(attempt(job, number + 1));
            }
        }
    }
    let reason = world.state.nodes[&node(1)].quarantined.clone().unwrap_or_default();
    assert!(reason.contains("3 failures") && reason.contains("j1, j2"), "{reason}");
    world.does(Command::UncordonNode { node: node(1) });
    assert!(!world.look().commands.iter().any(|p| matches!(p.command, Command::QuarantineNode { .. })));
}

#[test]
fn failures_of_jobs_that_are_over_count_within_the_hour() {
    // One short job after the other fails at node 1, and none of them lives to fail twice.
    let after = |gap_ms: u64| {
        let mut world = World::new(2);
        let spec = json!({"workers": 1, "recovery": {"max_user_failures": 0}});
        for name in ["a", "b", "c", "d", "e"] {
            world.does(Command::CordonNode { node: node(2) });
            let job = world.running_job(name, &spec);
            world.does(Command::UncordonNode { node: node(2) });
            world.exited(job, 0, ExitStatus::Code(1));
            world.release_all(job);
            world.pass();
            assert_eq!(world.state.jobs[&job.group.job].state, JobState::Failed);
            world.wait(gap_ms);
        }
        assert_eq!(world.state.active_jobs().count(), 0);
        world.pass();
        world.state.nodes[&node(1)].quarantined.clone()
    };
    let reason = after(60_000).unwrap_or_default();
    assert!(reason.starts_with("5 failures here within an hour, 0 of them of the machine"), "{reason}");
    assert_eq!(after(3_600_000), None, "what is longer ago is no evidence");
}

#[test]
fn the_loss_of_a_node_with_many_jobs_is_one_failure() {
    let mut world = World::new(3);
    for name in ["a", "b", "c", "d"] {
        world.running_job(name, &json!({"workers": 2, "resources": {"cpus": 1}}));
    }
    world.lose(1);
    world.register(registration(1, 2));
    assert!(!world.look().commands.iter().any(|p| matches!(p.command, Command::QuarantineNode { .. })));
}

#[test]
fn replicas_of_a_service_are_spread_by_label() {
    let mut world = World::new(4);
    for n in 1..=4 {
        let set = [("zone".to_owned(), if n < 4 { "a" } else { "b" }.to_owned())].into();
        world.does(Command::LabelNode { node: node(n), set, remove: Vec::new() });
    }
    world.submit("s", &json!({"kind": "service", "workers": 2, "placement": {"spread": "zone"}}));
    world.pass();
    world.pass();
    let zones: Vec<&str> = (0..2)
        .filter_map(|index| {
            let group = outlast_types::GroupId { job: JobId(1), index };
            let seat = &world.state.group(&group)?.current()?.assignments[0];
            world.state.nodes[&seat.node].label("zone")
        })
        .collect();
    assert_eq!(zones, ["a", "b"]);
}
