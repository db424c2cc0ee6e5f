//! One test a rule of `apply`: the state, the exact answer, the exact events.

use outlast_control::state::{
    AssignmentPhase, AttemptPhase, CheckpointState, Command, Envelope, Event, JobState, Limits,
    NodeCondition, Observation, Outcome, Placed, Refusal, Registration, Response, RestoreDecision, Rung,
    decode_state, encode_state,
};
use outlast_types::{
    Actor, AttemptId, Cause, CheckpointSeq, CoordinatorId, DiskId, Durability, ExitStatus, JobId,
    RegistrationId, RequestId, WallTime,
};
use serde_json::json;

use crate::world::{World, adopted, attempt, ck, exit, group, holder, job_spec, node, registration};

fn is_fenced(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Fenced { .. })
}
fn is_conflict(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Conflict { .. })
}

fn start(world: &World, job: u64, previous: u64, nodes: &[u64]) -> Command {
    let placed = |(rank, n): (usize, &u64)| Placed {
        rank: rank as u32,
        node: node(*n),
        registration: world.state.nodes[&node(*n)].registration,
        gpus: Vec::new(),
    };
    Command::StartAttempt {
        group: group(job),
        previous,
        rung: Rung::First,
        placed: nodes.iter().enumerate().map(placed).collect(),
        restore: RestoreDecision::default(),
        incarnation: world.incarnation(),
    }
}

#[test]
fn invariant_15_a_request_id_gets_one_answer_and_one_effect() {
    let mut world = World::new(1);
    let request = Some(RequestId::new("once").expect("valid"));
    let submit = Command::SubmitJob { spec: Box::new(job_spec("a", &json!({}))), bundle: None };
    let first = world.send_as(request.clone(), submit.clone());
    assert_eq!(first, Response::JobSubmitted(JobId(1)));
    assert_eq!(world.events, [Event::JobSubmitted { job: JobId(1) }]);
    let before = world.state.jobs.clone();
    assert_eq!(world.send_as(request, submit), first);
    assert!(world.events.is_empty() && world.state.jobs == before);
}

#[test]
fn remembered_requests_are_bounded_by_number_and_by_time() {
    let mut world = World::new(1);
    let cordon = |at: u64, n: usize| Envelope {
        request: Some(RequestId::new(format!("r{n}")).expect("valid")),
        actor: Actor::Operator("me".to_owned()),
        source: None,
        cause: None,
        at: WallTime(at),
        command: Command::CordonNode { node: node(1) },
    };
    for n in 0..Limits::REQUESTS_KEPT + 10 {
        world.state.apply(100, &cordon(0, n));
    }
    assert_eq!(world.state.requests.len(), Limits::REQUESTS_KEPT);
    world.state.apply(101, &cordon(Limits::REQUEST_WINDOW_MS + 1, Limits::REQUESTS_KEPT + 10));
    assert_eq!(world.state.requests.len(), 1, "older than the window");
}

#[test]
fn a_name_is_unique_among_unfinished_jobs() {
    let mut world = World::new(1);
    world.submit("a", &json!({}));
    let again = Command::SubmitJob { spec: Box::new(job_spec("a", &json!({}))), bundle: None };
    let refusal = world.refused(again.clone());
    assert!(is_conflict(&refusal) && refusal.to_string().contains("j1"), "{refusal}");
    world.does(Command::CancelJob { job: JobId(1), reason: None });
    assert_eq!(world.send(again), Response::JobSubmitted(JobId(2)));
    assert_eq!(world.state.job_by_name_or_id("a").map(|job| job.id), Some(JobId(2)));
    assert_eq!(world.state.job_by_name_or_id("j1").map(|job| job.id), Some(JobId(1)));
}

#[test]
fn invariant_28_a_stale_leader_causes_no_effect() {
    let mut world = World::new(2);
    let job = world.submit("a", &json!({}));
    let old = world.incarnation();
    let stale_start = start(&world, job.0, 0, &[1, 2]);
    world.does(Command::Barrier { coordinator: CoordinatorId(2) });
    let registration = RegistrationId(101);
    let lost = Command::NodeLost { node: node(1), registration, incarnation: old };
    for command in [
        stale_start,
        lost,
        Command::ExpireJob { job, incarnation: old },
        Command::GiveUp { group: group(1), reason: String::new(), incarnation: old },
        Command::EndAttempt { attempt: attempt(1, 1), incarnation: old },
        Command::RequestCheckpoint { attempt: attempt(1, 1), incarnation: old },
        Command::StopAttempt {
            attempt: attempt(1, 1),
            cause: Cause::Cancelled,
            graceful: true,
            incarnation: old,
        },
    ] {
        assert!(is_fenced(&world.refused(command)));
    }
}

#[test]
fn invariant_28_what_a_stale_leader_wants_of_checkpoints_and_nodes_is_refused_too() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"checkpoint": {"keep": 1}}));
    let (job, first) = (JobId(1), world.sealed(a, 1, &[1, 2]));
    let second = world.sealed(a, 2, &[1, 2]);
    world.prove(second);
    let open = world.open(a, 3);
    let old = Some(world.incarnation());
    world.does(Command::Barrier { coordinator: CoordinatorId(2) });
    let reason = || "late".to_owned();
    let commands = |incarnation| {
        [
            Command::AbortCheckpoint { job, seq: open, reason: reason(), incarnation },
            Command::RetireCheckpoint { job, seq: first, incarnation },
            Command::QuarantineCheckpoint { job, seq: second, reason: reason(), incarnation },
            Command::QuarantineNode { node: node(1), reason: reason(), incarnation },
        ]
    };
    for command in commands(old) {
        assert!(is_fenced(&world.refused(command)));
    }
    // The newest leader may; and so may an entry of a log from before the incarnation was named.
    for command in commands(Some(world.incarnation())).into_iter().chain(commands(None)) {
        assert_eq!(world.does(command), Response::Done);
    }
}

#[test]
fn coordinator_ids_come_from_the_log_and_never_twice() {
    let mut world = World::new(0);
    let add = |address: &str| Command::AddCoordinator { address: address.to_owned(), feature_level: 1 };
    let envelope = |command| Envelope {
        request: None,
        actor: Actor::System,
        source: None,
        cause: None,
        at: WallTime(0),
        command,
    };
    let (first, _) = world.state.apply(40, &envelope(add("b:1")));
    let (second, _) = world.state.apply(40, &envelope(add("c:1")));
    assert_eq!(first, Response::CoordinatorAdded(CoordinatorId(40)));
    assert!(matches!(second, Response::Refused(Refusal::Conflict { .. })));
    world.index = 40;
    world.does(Command::RemoveCoordinator { coordinator: CoordinatorId(40) });
    assert!(world.state.coordinators[&CoordinatorId(40)].removed);
    assert!(is_conflict(&world.refused(Command::RemoveCoordinator { coordinator: CoordinatorId(1) })));
}

#[test]
fn the_feature_level_rises_only_when_every_member_knows_it() {
    let mut world = World::new(1);
    assert!(is_conflict(&world.refused(Command::RaiseFeatureLevel { level: 2 })));
    world.does(Command::RaiseFeatureLevel { level: 1 });
}

/// A cluster of one coordinator and one node, then what their builds know.
fn world_of_levels(coordinator: u32, agent: u32) -> World {
    let mut world = World::new(0);
    let mut agent_of = registration(1, 1);
    agent_of.feature_level = agent;
    world.register(agent_of);
    let coordinator =
        Command::AnnounceCoordinator { coordinator: CoordinatorId(1), feature_level: coordinator };
    world.does(coordinator);
    world
}

#[test]
fn the_next_feature_level_is_the_highest_that_every_member_knows() {
    for (coordinator, agent, expected) in [(1, 1, None), (2, 2, Some(2)), (3, 2, Some(2)), (2, 9, Some(2))] {
        let mut world = world_of_levels(coordinator, agent);
        assert_eq!(world.state.next_feature_level(), Ok(expected), "{coordinator} and {agent}");
        let Some(level) = expected else { continue };
        world.does(Command::RaiseFeatureLevel { level });
        assert_eq!(
            (world.state.feature_level, &world.events[..]),
            (level, &[Event::FeatureLevelRaised { level }][..])
        );
        assert!(is_conflict(&world.refused(Command::RaiseFeatureLevel { level: 1 })), "it never goes back");
    }
    for (coordinator, agent, named) in [(1, 2, "c1 knows"), (2, 1, "node n1 knows")] {
        let refusal =
            world_of_levels(coordinator, agent).state.next_feature_level().expect_err("one is too old");
        assert!(refusal.to_string().contains(named), "{refusal}");
    }
}

#[test]
fn lost_nodes_and_removed_coordinators_keep_no_level_down() {
    let mut world = world_of_levels(2, 1);
    world.lose(1);
    assert_eq!(world.state.next_feature_level(), Ok(Some(2)));
    let added = world.does(Command::AddCoordinator { address: "b:1".to_owned(), feature_level: 1 });
    assert!(world.state.next_feature_level().is_err());
    let Response::CoordinatorAdded(coordinator) = added else { panic!("{added:?}") };
    world.does(Command::RemoveCoordinator { coordinator });
    assert_eq!(world.state.next_feature_level(), Ok(Some(2)));
    world.does(Command::RaiseFeatureLevel { level: 2 });
    let old = Command::RegisterNode(Box::new(registration(1, 2)));
    assert!(
        world.refused(old).to_string().contains("upgrade the agent first"),
        "it cannot come back as it was"
    );
    assert!(is_conflict(&world.refused(Command::AnnounceCoordinator { coordinator, feature_level: 2 })));
    let back = Command::AnnounceCoordinator { coordinator: CoordinatorId(1), feature_level: 1 };
    assert!(world.refused(back).to_string().contains("upgrade the coordinator first"));
}

#[test]
fn a_gang_starts_whole_runs_when_all_started_and_succeeds_when_all_exited_well() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    assert_eq!(world.state.attempt(&a).map(|a| a.phase), Some(AttemptPhase::Running));
    assert_eq!(world.state.jobs[&JobId(1)].state, JobState::Running);
    world.exited(a, 0, ExitStatus::Code(0));
    assert_eq!(world.state.attempt(&a).map(|a| a.phase), Some(AttemptPhase::Running), "one of two is done");
    world.exited(a, 1, ExitStatus::Code(0));
    let place = world.places(a)[1];
    assert_eq!(
        world.events,
        [
            Event::WorkerExited { attempt: a, rank: 1, node: node(place), status: ExitStatus::Code(0) },
            Event::AttemptEnded { attempt: a, outcome: Outcome::Succeeded },
            Event::JobChanged { job: JobId(1), state: JobState::Succeeded, reason: None },
        ]
    );
    world.release_all(a);
    assert_eq!(world.state.active_jobs().count(), 0);
}

#[test]
fn an_open_checkpoint_of_a_finished_run_may_still_be_sealed() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    let seq = world.open(a, 5);
    world.exited(a, 0, ExitStatus::Code(0));
    world.exited(a, 1, ExitStatus::Code(0));
    let stopping = world.state.attempt(&a).expect("kept");
    assert_eq!((stopping.phase, &stopping.cause), (AttemptPhase::Stopping, &Some(Cause::Completed)));
    world.receive(a, seq, &[1, 2]);
    world.pass();
    assert!(world.state.jobs[&JobId(1)].checkpoints[&seq].is_sealed());
    world.pass();
    assert_eq!(world.state.jobs[&JobId(1)].state, JobState::Succeeded);
}

#[test]
fn a_start_is_a_compare_and_set_and_takes_all_ranks_or_none() {
    let mut world = World::new(2);
    let job = world.submit("a", &json!({})).0;
    for (previous, nodes) in [(1, &[1, 2][..]), (0, &[1][..]), (0, &[1, 2, 1][..])] {
        let command = start(&world, job, previous, nodes);
        world.refused(command);
    }
    let good = start(&world, job, 0, &[1, 2]);
    assert_eq!(world.does(good.clone()), Response::AttemptStarted(attempt(1, 1)));
    assert!(is_conflict(&world.refused(good)), "a repeat");
    let over = start(&world, job, 1, &[1, 2]);
    assert!(is_conflict(&world.refused(over)), "the current one is not Stopping");
}

#[test]
fn invariant_20_capacity_counts_earlier_ranks_of_the_same_command() {
    let mut world = World::new(1);
    let job = world.submit("a", &json!({"workers": 2, "resources": {"cpus": 3}})).0;
    let command = start(&world, job, 0, &[1, 1]);
    assert!(is_conflict(&world.refused(command)));
    let gpus = world.submit("b", &json!({"workers": 2, "resources": {"cpus": 1, "gpus": 1}})).0;
    let Command::StartAttempt { mut placed, group, previous, rung, restore, incarnation } =
        start(&world, gpus, 0, &[1, 1])
    else {
        unreachable!("just made")
    };
    for (indices, fits) in [([0, 0], false), ([0, 7], false), ([0, 1], true)] {
        for (place, index) in placed.iter_mut().zip(indices) {
            place.gpus = vec![index];
        }
        let restore = restore.clone();
        let command =
            Command::StartAttempt { group, previous, rung, placed: placed.clone(), restore, incarnation };
        if fits {
            world.does(command);
        } else {
            world.refused(command);
        }
    }
    assert_eq!(world.state.free_resources(&node(1)).gpus, []);
}

#[test]
fn an_agent_restart_binds_records_and_releases_in_one_entry() {
    let mut world = World::new(1);
    let a = world.running_job("a", &json!({}));
    let b = world.running_job("b", &json!({}));
    let mut again = registration(1, 2);
    again.adopted = vec![adopted(a, 0), adopted(a, 1), adopted(b, 0)];
    again.exited = vec![(b, 1, exit(ExitStatus::Code(3)))];
    let before = world.state.nodes[&node(1)].assignments_changed_at;
    world.register(again.clone());
    assert_eq!(world.state.attempt(&a).map(|a| a.phase), Some(AttemptPhase::Running));
    let of_b = world.state.attempt(&b).expect("kept");
    let cause = Cause::WorkerExited { rank: 1, node: node(1), status: ExitStatus::Code(3) };
    assert_eq!((of_b.phase, &of_b.cause), (AttemptPhase::Stopping, &Some(cause)));
    assert_eq!(of_b.assignments[1].phase, AssignmentPhase::Released);
    assert!(of_b.assignments[0].registration == RegistrationId(102) && of_b.assignments[0].is_held());
    assert!(world.state.nodes[&node(1)].assignments_changed_at > before);
    let index = world.index;
    assert_eq!(world.send(Command::RegisterNode(Box::new(again))), Response::Registered { index });
    let late = world.send(Command::RegisterNode(Box::new(registration(1, 1))));
    assert!(
        matches!(late, Response::Refused(Refusal::Fenced { .. })),
        "a late repeat of the first registration"
    );
}

/// Two plans may each take another node out before either is applied.
#[test]
fn policy_does_not_quarantine_the_only_node_that_takes_work() {
    let mut world = World::new(2);
    let incarnation = Some(world.incarnation());
    let quarantine =
        |n: u64| Command::QuarantineNode { node: node(n), reason: "test".to_owned(), incarnation };
    world.does(quarantine(1));
    assert!(is_conflict(&world.refused(quarantine(2))));
    world.does(Command::UncordonNode { node: node(1) });
    world.does(quarantine(2));
}

/// The agent died before it could tell where rank 0 waits for the others, and the next one found rank 0 ended well.
#[test]
fn a_gang_that_cannot_meet_any_more_is_started_anew() {
    let mut world = World::new(2);
    let job = world.submit("a", &json!({})).0;
    let command = start(&world, job, 0, &[1, 2]);
    world.does(command);
    let a = attempt(1, 1);
    let mut again = registration(1, 2);
    again.exited = vec![(a, 0, exit(ExitStatus::Code(0)))];
    world.register(again);
    let stopped = world.state.attempt(&a).expect("kept");
    let cause = Cause::NodeRestarted { node: node(1) };
    assert_eq!((stopped.phase, &stopped.cause), (AttemptPhase::Stopping, &Some(cause)));

    // Not where the others know the place.
    let mut world = World::new(2);
    let job = world.submit("a", &json!({})).0;
    let command = start(&world, job, 0, &[1, 2]);
    world.does(command);
    world.observe(1, Observation::Rendezvous { attempt: a, address: "n1:9".to_owned() });
    let mut again = registration(1, 2);
    again.exited = vec![(a, 0, exit(ExitStatus::Code(0)))];
    world.register(again);
    assert_eq!(world.state.attempt(&a).map(|a| a.phase), Some(AttemptPhase::Starting));

    // Nor where they run already.
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    let mut again = registration(1, 2);
    again.exited = vec![(a, 0, exit(ExitStatus::Code(0)))];
    world.register(again);
    assert_eq!(world.state.attempt(&a).map(|a| a.phase), Some(AttemptPhase::Running));
}

#[test]
fn what_a_restarted_agent_does_not_have_is_released_and_charged_to_the_machine() {
    let mut world = World::new(1);
    let a = world.running_job("a", &json!({}));
    world.register(registration(1, 2));
    let attempt = world.state.attempt(&a).expect("kept");
    assert_eq!(attempt.cause, Some(Cause::NodeRestarted { node: node(1) }));
    assert!(attempt.assignments.iter().all(|seat| seat.phase == AssignmentPhase::Released));
    let group = world.state.group(&a.group).expect("kept");
    assert_eq!((group.user_failures.total, group.infrastructure_failures.total), (0, 1));
}

#[test]
fn two_agents_under_one_name_are_told_apart_from_one_that_restarts() {
    let mut world = World::new(1);
    let mut other = registration(1, 2);
    other.disk = DiskId::new("another").expect("valid");
    let refusal = world.refused(Command::RegisterNode(Box::new(other.clone())));
    assert!(refusal.to_string().contains("choose another --name"), "{refusal}");
    world.lose(1);
    world.register(other);
    let mut same_disk = registration(1, 3);
    same_disk.disk = DiskId::new("another").expect("valid");
    world.register(same_disk);
}

#[test]
fn a_rank_that_failed_because_another_ones_node_died_is_not_charged_to_the_program() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    world.exited(a, 1, ExitStatus::Code(1));
    assert_eq!(world.state.group(&a.group).map(|group| group.user_failures.since_progress), Some(1));
    world.lose(world.place(a, 0));
    let lost = Cause::NodeLost { node: node(1) };
    let attempt = world.state.attempt(&a).expect("kept");
    assert_eq!(attempt.cause, Some(lost.clone()));
    assert_eq!(attempt.later_causes.len(), 1, "what was seen first is kept");
    assert_eq!(world.events.last(), Some(&Event::AttemptStopping { attempt: a, cause: lost }));
    let group = world.state.group(&a.group).expect("kept");
    assert_eq!((group.user_failures.total, group.infrastructure_failures.since_progress), (0, 1));
}

#[test]
fn a_lost_nodes_registration_never_comes_back() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    world.lose(1);
    let record = &world.state.nodes[&node(1)];
    assert_eq!(record.condition, NodeCondition::Lost);
    let attempt = world.state.attempt(&a).expect("kept");
    assert_eq!(attempt.cause, Some(Cause::NodeLost { node: node(1) }));
    assert!(world.state.nodes[&node(2)].assignments_changed_at >= world.index, "the other rank has to stop");
    let registration_id = RegistrationId(101);
    let late = Command::Observe {
        node: node(1),
        registration: registration_id,
        first: 99,
        observations: vec![Observation::Started { attempt: a, rank: 0 }],
    };
    assert!(is_fenced(&world.refused(late)));
    assert!(is_fenced(&world.refused(Command::RegisterNode(Box::new(registration(1, 1))))));
    let mut anew = registration(1, 2);
    anew.adopted = vec![adopted(a, 0), adopted(a, 1)];
    world.register(anew);
    let rank = (0..2).find(|rank| world.place(a, *rank) == 1).expect("one rank was there");
    let seat = &world.state.attempt(&a).expect("kept").assignments[rank as usize];
    assert!(seat.is_held(), "a worker that outlived the lease holds its resources until it is stopped");
}

#[test]
fn observations_are_applied_once_in_order_and_stale_ones_are_only_counted() {
    let mut world = World::new(2);
    let job = world.submit("a", &json!({})).0;
    world.pass();
    let a = attempt(job, 1);
    let n = world.place(a, 0);
    let registration = RegistrationId(n * 100 + 1);
    let observe = |first, observations| Command::Observe { node: node(n), registration, first, observations };
    let started = Observation::Started { attempt: a, rank: 0 };
    assert!(is_conflict(&world.refused(observe(2, vec![started.clone()]))), "1 is missing");
    assert_eq!(world.send(observe(1, vec![started.clone()])), Response::Observed(1));
    assert_eq!(
        world.send(observe(1, vec![started, Observation::Ready { attempt: a, rank: 0 }])),
        Response::Observed(2)
    );
    assert_eq!(world.events, [Event::WorkerReady { attempt: a, rank: 0 }]);
    let elsewhere = Observation::Exited { attempt: a, rank: 1, exit: exit(ExitStatus::Code(1)) };
    let unknown = Observation::Started { attempt: attempt(77, 1), rank: 9 };
    assert_eq!(world.send(observe(3, vec![elsewhere, unknown])), Response::Observed(4));
    assert!(world.events.is_empty());
    assert_eq!(world.state.attempt(&a).map(|a| a.phase), Some(AttemptPhase::Starting));
}

#[test]
fn a_service_that_exits_well_has_failed() {
    let mut world = World::new(1);
    let s = world.running_job("s", &json!({"kind": "service", "workers": 1}));
    assert_eq!(world.state.attempt(&s).map(|s| s.assignments[0].phase), Some(AssignmentPhase::Ready));
    world.exited(s, 0, ExitStatus::Code(0));
    assert_eq!(world.state.attempt(&s).map(|s| s.phase), Some(AttemptPhase::Stopping));
    assert_eq!(world.state.group(&s.group).map(|group| group.user_failures.since_progress), Some(1));
}

#[test]
fn invariant_19_nothing_starts_after_a_cancel_and_it_settles_when_all_have_ended() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    world.does(Command::CancelJob { job: JobId(1), reason: Some("enough".to_owned()) });
    world.does(Command::CancelJob { job: JobId(1), reason: None });
    assert_eq!(world.state.jobs[&JobId(1)].state, JobState::Cancelling);
    assert!(world.state.attempt(&a).is_some_and(|a| a.graceful_stop));
    let restart = start(&world, 1, 1, &[1, 2]);
    assert!(is_conflict(&world.refused(restart)));
    world.release_all(a);
    world.pass();
    assert_eq!(world.state.jobs[&JobId(1)].state, JobState::Cancelled);
    let restart = start(&world, 1, 1, &[1, 2]);
    assert!(is_conflict(&world.refused(restart)));
}

#[test]
fn a_finished_job_cannot_be_cancelled_and_leaves_only_after_its_retention() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"retention": "1h"}));
    world.sealed(a, 1, &[1, 2]);
    world.exited(a, 0, ExitStatus::Code(0));
    world.exited(a, 1, ExitStatus::Code(0));
    assert!(is_conflict(&world.refused(Command::CancelJob { job: JobId(1), reason: None })));
    let expire = Command::ExpireJob { job: JobId(1), incarnation: world.incarnation() };
    assert!(is_conflict(&world.refused(expire.clone())));
    world.wait(3_600_000);
    assert!(is_conflict(&world.refused(expire)), "it still holds resources");
    world.release_all(a);
    world.pass();
    assert_eq!(
        world.events,
        [Event::CheckpointRetired { job: JobId(1), seq: ck(1) }, Event::JobExpired { job: JobId(1) }]
    );
    assert!(world.state.jobs.is_empty());
}

#[test]
fn invariant_24_only_the_current_attempt_opens_and_seals() {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({}));
    let seq = world.open(a, 10);
    assert_eq!(world.open(a, 10), seq, "idempotent by attempt and step");
    world.exited(a, 0, ExitStatus::Code(1));
    assert!(
        is_fenced(&world.refused(Command::OpenCheckpoint { attempt: a, step: 11, in_turn: false })),
        "Stopping opens nothing"
    );
    let seal = world.seal_of(a, seq, &[1, 2]);
    world.does(seal.clone());
    assert_eq!(world.does(seal.clone()), Response::Done, "the same root again");
    assert!(world.events.is_empty());
    let Command::SealCheckpoint { job, seq, attempt: of, shards, durability, degraded, .. } = seal else {
        unreachable!("just made")
    };
    let other = Command::SealCheckpoint {
        job,
        seq,
        attempt: of,
        manifest_root: crate::world::root(666),
        shards,
        durability,
        degraded,
    };
    assert!(is_conflict(&world.refused(other)), "other bytes");
    world.release_all(a);
    world.pass();
    let b = attempt(1, 2);
    assert_eq!(world.state.attempt(&b).and_then(|b| b.restore.from), Some(seq));
    assert!(is_fenced(&world.refused(Command::OpenCheckpoint { attempt: a, step: 20, in_turn: false })));
}

#[test]
fn invariant_24_a_zombies_seal_is_fenced_once_its_successor_is_in_the_log() {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({}));
    let seq = world.open(a, 10);
    let seal = world.seal_of(a, seq, &[1, 2]);
    world.exited(a, 0, ExitStatus::Code(1));
    world.release_all(a);
    world.pass();
    world.wait(500);
    world.pass();
    assert_eq!(world.state.jobs[&JobId(1)].checkpoints[&seq].state, CheckpointState::Aborted);
    let refusal = world.refused(seal);
    assert!(is_conflict(&refusal) || is_fenced(&refusal));
}

#[test]
fn invariants_32_33_a_seal_needs_every_rank_live_holders_and_the_claimed_domains() {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({}));
    let seq = world.open(a, 10);
    let good = world.seal_of(a, seq, &[1, 2]);
    let change = |edit: &dyn Fn(&mut Vec<outlast_control::state::SealedShard>)| {
        let mut changed = good.clone();
        if let Command::SealCheckpoint { shards, .. } = &mut changed {
            edit(shards);
        }
        changed
    };
    world.refused(change(&|shards| shards.truncate(1)));
    world.refused(change(&|shards| shards.swap(0, 1)));
    world.refused(change(&|shards| shards[1].holders.clear()));
    world.refused(change(&|shards| shards[1].holders.truncate(1)));
    world.refused(change(&|shards| shards[1].holders[0].disk = DiskId::new("old").expect("valid")));
    world.lose(2);
    assert!(is_conflict(&world.refused(good)), "a holder is lost");
    let local = world.seal_of(a, seq, &[2]);
    assert!(is_conflict(&world.refused(local)), "the only holder is lost");
    let seal = world.seal_of(a, seq, &[1, 3]);
    world.does(seal);
}

#[test]
fn invariant_34_a_seal_aborts_older_steps_and_forbids_them() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    let (old, new) = (world.open(a, 10), world.open(a, 20));
    let seal = world.seal_of(a, new, &[1, 2]);
    world.does(seal);
    assert_eq!(world.state.jobs[&JobId(1)].checkpoints[&old].state, CheckpointState::Aborted);
    assert!(is_conflict(&world.refused(Command::OpenCheckpoint { attempt: a, step: 20, in_turn: false })));
}

#[test]
fn a_third_checkpoint_at_a_time_is_skipped_by_the_whole_gang_or_waits_as_the_job_says() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    let first = world.open(a, 10);
    world.open(a, 20);
    let ask = |step| Command::OpenCheckpoint { attempt: a, step, in_turn: false };
    assert_eq!(world.does(ask(30)), Response::CheckpointSkipped { step: 30 });
    world.does(world.seal_of(a, first, &[1, 2]));
    assert_eq!(
        world.does(ask(30)),
        Response::CheckpointSkipped { step: 30 },
        "a rank that asks later skips too"
    );
    world.open(a, 40);
    world.wait(Limits::OPEN_CHECKPOINT_STUCK_MS);
    let open = |world: &World| {
        let open = world.state.jobs[&JobId(1)].checkpoints.values();
        open.filter(|c| c.state == CheckpointState::Open).map(|c| c.step).collect::<Vec<_>>()
    };
    world.open(a, 50);
    assert_eq!(open(&world), [40, 50], "what is stuck holds nothing up");

    let b = world.running_job("b", &json!({"checkpoint": {"keep": 1, "on_busy": "wait"}}));
    world.open(b, 10);
    world.open(b, 20);
    let busy = world.refused(Command::OpenCheckpoint { attempt: b, step: 30, in_turn: false });
    assert!(matches!(busy, Refusal::Exhausted { .. }), "{busy}");
}

#[test]
fn a_seal_forgives_earlier_failures() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    world.exited(a, 0, ExitStatus::Code(1));
    world.release_all(a);
    world.pass();
    let b = attempt(1, 2);
    world.started(b);
    assert_eq!(world.state.group(&b.group).map(|group| group.user_failures.since_progress), Some(1));
    world.sealed(b, 1, &[1, 2]);
    let group = world.state.group(&b.group).expect("kept");
    assert_eq!((group.user_failures.since_progress, group.user_failures.total), (0, 1));
}

#[test]
fn invariant_36_the_last_good_checkpoint_is_never_retired_nor_a_pinned_or_needed_one() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"checkpoint": {"keep": 2}}));
    let first = world.sealed(a, 1, &[1, 2]);
    let retire = |seq| Command::RetireCheckpoint { job: JobId(1), seq, incarnation: None };
    assert!(is_conflict(&world.refused(retire(first))));
    let second = world.sealed(a, 2, &[1, 2]);
    assert!(is_conflict(&world.refused(retire(first))), "keep is 2");
    let third = world.sealed(a, 3, &[1, 2]);
    assert!(is_conflict(&world.refused(retire(first))), "no newer one was read back");
    world.prove(third);
    world.does(Command::PinCheckpoint { job: JobId(1), seq: first, pinned: true });
    assert!(is_conflict(&world.refused(retire(first))), "pinned");
    world.does(Command::PinCheckpoint { job: JobId(1), seq: first, pinned: false });
    world.does(retire(first));
    assert_eq!(world.does(retire(first)), Response::Done, "Retired is terminal");
    assert!(is_conflict(&world.refused(retire(second))));
    assert!(world.state.newest_good(&a.group).is_some_and(|newest| newest.step == 3));
}

/// A checkpoint that only node 1 has, sealed below the wanted level.
fn sealed_degraded(world: &mut World, attempt: AttemptId, step: u64) -> CheckpointSeq {
    let seq = world.open(attempt, step);
    let mut seal = world.seal_of(attempt, seq, &[1]);
    if let Command::SealCheckpoint { degraded, .. } = &mut seal {
        *degraded = true;
    }
    world.does(seal);
    world.prove(seq);
    seq
}

#[test]
fn a_degraded_checkpoint_never_justifies_retiring_a_safer_one() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"checkpoint": {"keep": 1, "durability": "replicated"}}));
    let first = world.sealed(a, 1, &[1, 2]);
    for step in 2..14 {
        sealed_degraded(&mut world, a, step);
    }
    for incarnation in [None, Some(world.incarnation())] {
        let retire = Command::RetireCheckpoint { job: JobId(1), seq: first, incarnation };
        assert!(is_conflict(&world.refused(retire)), "{incarnation:?}");
    }
}

#[test]
fn where_the_wanted_level_stays_out_of_reach_a_bounded_number_is_kept() {
    let mut world = World::new(1);
    let a = world.running_job("a", &json!({"checkpoint": {"keep": 2, "durability": "replicated"}}));
    let first = sealed_degraded(&mut world, a, 1);
    let incarnation = Some(world.incarnation());
    let retire = |seq| Command::RetireCheckpoint { job: JobId(1), seq, incarnation };
    for step in 2..=10 {
        sealed_degraded(&mut world, a, step);
        assert!(is_conflict(&world.refused(retire(first))), "2 + 8 newer ones are needed: step {step}");
    }
    sealed_degraded(&mut world, a, 11);
    world.does(retire(first));
    let sealed = world.state.jobs[&JobId(1)].checkpoints.values().filter(|one| one.is_sealed());
    assert_eq!(sealed.count(), 10);
}

#[test]
fn a_whole_checkpoint_whose_other_copies_are_away_yields_to_no_degraded_one() {
    let mut world = World::new(2);
    let a =
        world.running_job("a", &json!({"workers": 1, "checkpoint": {"keep": 1, "durability": "replicated"}}));
    let whole = world.sealed(a, 1, &[1, 2]);
    world.lose(2);
    for step in 2..14 {
        sealed_degraded(&mut world, a, step);
    }
    let incarnation = Some(world.incarnation());
    let retire = Command::RetireCheckpoint { job: JobId(1), seq: whole, incarnation };
    assert!(is_conflict(&world.refused(retire)), "node 2 may come back with it");
}

#[test]
fn a_job_whose_policy_is_stored_keeps_what_the_store_has_not_within_a_bound() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"checkpoint": {"keep": 1, "durability": "stored"}}));
    let first = world.sealed(a, 1, &[1, 2]);
    let second = world.sealed(a, 2, &[1, 2]);
    world.prove(second);
    let retire = |seq| Command::RetireCheckpoint { job: JobId(1), seq, incarnation: None };
    assert!(is_conflict(&world.refused(retire(first))), "the store has nothing newer");
    let incarnation = world.incarnation();
    world.does(Command::StoreCheckpoint { job: JobId(1), seq: second, incarnation });
    assert_eq!(world.state.jobs[&JobId(1)].checkpoints[&second].durability, Some(Durability::Stored));
    world.does(retire(first));
    for step in 3..=10 {
        let seq = world.sealed(a, step, &[1, 2]);
        world.prove(seq);
        assert!(is_conflict(&world.refused(retire(second))), "the store is out of reach: step {step}");
    }
    let last = world.sealed(a, 11, &[1, 2]);
    world.prove(last);
    world.does(retire(second));
}

#[test]
fn a_checkpoint_that_every_rank_restored_is_proven_and_one_without_good_bytes_is_quarantined() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    let seq = world.sealed(a, 1, &[1, 2]);
    let next = |world: &mut World, from: u64| {
        world.exited(attempt(1, from), 0, ExitStatus::Code(1));
        world.release_all(attempt(1, from));
        world.wait(60_000);
        world.pass();
        let next = attempt(1, from + 1);
        world.started(next);
        next
    };
    let b = next(&mut world, 1);
    for rank in 0..2 {
        world.observe(world.place(b, rank), Observation::Restored { attempt: b, rank, seq });
    }
    assert!(world.state.jobs[&JobId(1)].checkpoints[&seq].proven);
    let c = next(&mut world, 2);
    let reason = "hash mismatch".to_owned();
    let failed = Observation::RestoreFailed { attempt: c, rank: 0, seq, corrupt: true, reason };
    world.observe(world.place(c, 0), failed);
    assert_eq!(world.state.jobs[&JobId(1)].checkpoints[&seq].state, CheckpointState::Quarantined);
    assert_eq!(world.state.attempt(&c).map(|c| c.phase), Some(AttemptPhase::Stopping));
}

/// A coordinator that stood still passes on what an agent sent long ago: it knows nothing of the workers since.
#[test]
fn a_registration_that_was_sent_before_the_present_one_changes_nothing() {
    let mut world = World::new(1);
    world.register(registration(1, 8));
    let a = world.running_job("a", &json!({"workers": 1}));
    let late = registration(1, 7);
    assert!(is_fenced(&world.refused(Command::RegisterNode(Box::new(late.clone())))));
    assert_eq!(world.state.nodes[&node(1)].registration, RegistrationId(108));
    let phase = world.state.attempt(&a).map(|attempt| attempt.assignments[0].phase);
    assert_eq!(phase, Some(AssignmentPhase::Started));
    world.lose(1);
    assert!(is_fenced(&world.refused(Command::RegisterNode(Box::new(late)))), "lost or not");
    // One that does not count them, of an older build, is taken as ever.
    world.register(Registration { serial: 0, ..registration(1, 9) });
    // A folder that is made anew counts from the beginning.
    world.lose(1);
    let anew = Registration { disk: DiskId::new("another").expect("valid"), ..registration(1, 2) };
    world.register(anew);
}

#[test]
fn what_is_merely_over_does_not_push_a_quarantined_checkpoint_out() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"checkpoint": {"keep": 1}}));
    let bad = world.sealed(a, 1, &[1, 2]);
    let incarnation = world.incarnation();
    let reason = "hash mismatch".to_owned();
    world.does(Command::QuarantineCheckpoint {
        job: JobId(1),
        seq: bad,
        reason,
        incarnation: Some(incarnation),
    });
    let mut last = world.sealed(a, 2, &[1, 2]);
    for step in 3..3 + 2 * Limits::OLD_CHECKPOINTS_KEPT as u64 {
        let seq = world.sealed(a, step, &[1, 2]);
        world.prove(seq);
        world.does(Command::RetireCheckpoint { job: JobId(1), seq: last, incarnation: Some(incarnation) });
        last = seq;
    }
    let records = &world.state.jobs[&JobId(1)].checkpoints;
    assert_eq!(records[&bad].state, CheckpointState::Quarantined);
    assert_eq!(records.len(), Limits::OLD_CHECKPOINTS_KEPT + 2, "and the newest");
}

#[test]
fn bytes_that_are_merely_away_keep_a_checkpoint_out_of_quarantine() {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({"workers": 1}));
    let seq = world.sealed(a, 1, &[1, 2]);
    world.lose(2);
    world.exited(a, 0, ExitStatus::Code(1));
    world.release_all(a);
    world.wait(60_000);
    world.pass();
    let b = attempt(1, 2);
    let reason = "hash mismatch".to_owned();
    let failed = Observation::RestoreFailed { attempt: b, rank: 0, seq, corrupt: true, reason };
    world.observe(world.place(b, 0), failed);
    assert_eq!(world.state.jobs[&JobId(1)].checkpoints[&seq].state, CheckpointState::Sealed);
    assert_eq!(world.state.attempt(&b).map(|b| b.phase), Some(AttemptPhase::Stopping));
}

#[test]
fn the_release_of_a_rank_that_could_not_start_adds_no_cause() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"workers": 1}));
    let reason = "no such program".to_owned();
    world.observe(world.place(a, 0), Observation::StartFailed { attempt: a, rank: 0, reason });
    world.released(a, 0);
    assert_eq!(world.state.attempt(&a).map(|a| a.later_causes.len()), Some(0));
}

#[test]
fn a_new_disk_drops_the_nodes_holders() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    let seq = world.sealed(a, 1, &[1, 2]);
    let mut replaced = registration(2, 2);
    replaced.disk = DiskId::new("fresh").expect("valid");
    world.lose(2);
    world.register(replaced);
    let shards = &world.state.jobs[&JobId(1)].checkpoints[&seq].shards;
    assert!(shards.iter().all(|shard| shard.holders == [holder(1)]));
}

#[test]
fn an_exclusive_group_waits_until_nothing_of_it_is_held() {
    let mut world = World::new(3);
    let a = world.running_job("a", &json!({"exclusive": true, "workers": 1}));
    world.exited(a, 0, ExitStatus::Code(1));
    let early = start(&world, 1, 1, &[3]);
    assert!(is_conflict(&world.refused(early)));
    world.release_all(a);
    let now = start(&world, 1, 1, &[3]);
    world.does(now);
}

#[test]
fn history_is_bounded_and_what_leaves_it_is_counted() {
    let mut world = World::new(1);
    world.running_job("a", &json!({"workers": 1, "recovery": {"max_user_failures": 1000}}));
    for number in 1..=60 {
        world.exited(attempt(1, number), 0, ExitStatus::Code(1));
        world.released(attempt(1, number), 0);
        world.wait(60_000);
        world.pass();
        world.started(attempt(1, number + 1));
    }
    let group = world.state.group(&group(1)).expect("kept");
    assert_eq!((group.attempts.len(), group.totals.attempts), (Limits::ATTEMPTS_KEPT, 11));
    assert_eq!(group.totals.ended.get("process_exit"), Some(&11));
    let wordy = group.attempts.iter().flat_map(|a| &a.assignments).filter_map(|seat| seat.exit.as_ref());
    assert!(wordy.filter(|exit| !exit.last_lines.is_empty()).count() <= Limits::LAST_LINES_KEPT);
}

#[test]
fn giving_a_group_up_fails_the_job_after_its_other_groups_have_stopped() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({"kind": "batch", "workers": 2}));
    let other = outlast_types::AttemptId { group: outlast_types::GroupId { index: 1, ..a.group }, ..a };
    world.exited(a, 0, ExitStatus::Code(1));
    let incarnation = world.incarnation();
    world.does(Command::GiveUp { group: a.group, reason: "no hope".to_owned(), incarnation });
    assert_eq!(world.state.jobs[&JobId(1)].state, JobState::Running);
    assert_eq!(world.state.attempt(&other).map(|o| o.phase), Some(AttemptPhase::Stopping));
    world.release_all(a);
    world.release_all(other);
    world.pass();
    let job = &world.state.jobs[&JobId(1)];
    assert_eq!((job.state, job.reason.as_deref()), (JobState::Failed, Some("no hope")));
}

#[test]
fn a_decoded_state_knows_again_what_is_held() {
    let mut world = World::new(2);
    world.running_job("a", &json!({}));
    let again = decode_state(&encode_state(&world.state)).expect("decodes");
    assert!(again == world.state);
    assert_eq!(again.held_on(&node(1)).count(), world.state.held_on(&node(1)).count());
}
