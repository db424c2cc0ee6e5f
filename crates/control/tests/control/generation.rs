//! `OpenGeneration`: what a cluster takes over from the one that it goes on from, and what it leaves behind.

use outlast_control::plan::PlannedCommand;
use outlast_control::state::{
    AttemptPhase, ClusterState, Command, Event, Limits, NodeCondition, Observation, Outcome, Refusal,
    Response, decode_state, encode_state,
};
use outlast_types::{AttemptId, Cause, ClusterId, CoordinatorId, JobId};
use serde_json::json;

use crate::world::{World, adopted, attempt, ck, job_spec, node, registration};

fn cluster(name: &str) -> ClusterId {
    ClusterId::new(name).expect("valid")
}

fn open(name: &str) -> Command {
    let (cluster_id, address) = (cluster(name), "127.0.0.1:9".to_owned());
    Command::OpenGeneration { cluster_id, address, feature_level: 1, reason: "test".to_owned() }
}

#[test]
fn a_new_generation_has_a_new_name_and_one_coordinator_under_an_id_never_used_before() {
    let mut world = World::new(1);
    world.does(Command::AddCoordinator { address: "b:1".to_owned(), feature_level: 1 });
    let old: Vec<CoordinatorId> = world.state.coordinators.keys().copied().collect();
    world.recover();
    let config = world.state.config.clone().expect("a cluster");
    assert_eq!((config.cluster_id, config.predecessors), (cluster("test-2"), vec![cluster("test")]));
    assert_eq!(world.state.generation, 2);
    for id in &old {
        assert!(world.state.coordinators[id].removed, "{id}");
    }
    let active: Vec<_> = world.state.coordinators.iter().filter(|(_, record)| !record.removed).collect();
    assert_eq!(active.len(), 1);
    assert!(!old.contains(active[0].0));
    assert!(matches!(&world.events[0], Event::GenerationOpened { generation: 2, .. }), "{:?}", world.events);
    world.recover();
    let config = world.state.config.clone().expect("a cluster");
    assert_eq!(config.predecessors, [cluster("test"), cluster("test-2")], "all that came before");
}

#[test]
fn a_name_that_was_used_is_refused_and_so_is_a_cluster_that_never_was() {
    let mut world = World::new(0);
    assert!(matches!(world.refused(open("test")), Refusal::Conflict { .. }));
    world.does(open("second"));
    assert!(matches!(world.refused(open("test")), Refusal::Conflict { .. }), "a predecessor's");
    let mut empty = ClusterState::new();
    let (_, envelope) = world.log.last().cloned().expect("commands");
    assert!(matches!(empty.apply(1, &envelope).0, Response::Refused(Refusal::Conflict { .. })));
}

#[test]
fn invariant_28_no_leader_of_the_lost_time_has_an_effect_and_nothing_is_planned_before_a_barrier() {
    let mut world = World::new(2);
    let job = world.submit("a", &json!({}));
    let old = world.incarnation();
    world.does(open("second"));
    assert_eq!(world.state.incarnation, None);
    assert!(world.look().commands.is_empty());
    let lost = |world: &World| Command::NodeLost {
        node: node(1),
        registration: world.state.nodes[&node(1)].registration,
        incarnation: old,
    };
    let refusal = world.refused(lost(&world));
    assert!(matches!(refusal, Refusal::Fenced { .. }), "{refusal}");
    let refusal = world.refused(Command::ExpireJob { job, incarnation: old });
    assert!(matches!(refusal, Refusal::Fenced { .. }), "{refusal}");
}

#[test]
fn invariants_21_22_what_ran_is_stopped_at_nobodys_cost_and_goes_on_under_a_newer_token() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    let sealed = world.sealed(a, 5, &[1, 2]);
    world.recover();
    let stopped = world.state.attempt(&a).cloned().expect("kept");
    assert_eq!((stopped.phase, stopped.graceful_stop), (AttemptPhase::Stopping, false));
    assert_eq!(stopped.cause, Some(Cause::ClusterRecovered));
    let group = world.state.group(&a.group).cloned().expect("kept");
    assert_eq!((group.user_failures.total, group.infrastructure_failures.total), (0, 0));
    for n in [1, 2] {
        assert_eq!(
            world.state.nodes[&node(n)].condition,
            NodeCondition::Registered,
            "a lease decides, not we"
        );
        assert_eq!(
            world.state.nodes[&node(n)].assignments_changed_at,
            world.index - 1,
            "its agent must see it"
        );
    }
    let starts = |planned: &PlannedCommand| matches!(planned.command, Command::StartAttempt { .. });
    assert!(!world.pass().commands.iter().any(starts), "the ranks are not released yet");
    // The agents come under new registrations, with their workers, and stop them.
    for n in [1, 2] {
        let mut again = registration(n, 2);
        again.adopted =
            (0..2).filter(|rank| world.place(a, *rank) == n).map(|rank| adopted(a, rank)).collect();
        world.register(again);
    }
    world.release_all(a);
    world.pass();
    let next = AttemptId { generation: 2, number: 2, ..a };
    let started = world.state.attempt(&next).expect("the next attempt");
    assert!(next.is_newer_than(&a) && started.restore.from == Some(sealed), "{started:?}");
    assert_eq!(world.state.attempt(&a).and_then(|a| a.outcome.clone()), Some(Outcome::Moved));
    let refusal = world.refused(Command::OpenCheckpoint { attempt: a, step: 9, in_turn: false });
    assert!(matches!(refusal, Refusal::Fenced { .. }), "{refusal}");
    // One of the time that was lost, of which this log knows nothing.
    let stray = AttemptId { generation: 1, number: 2, ..a };
    assert!(!matches!(
        world.send(Command::OpenCheckpoint { attempt: stray, step: 9, in_turn: false }),
        Response::CheckpointOpened(_)
    ));
}

#[test]
fn invariant_37_numbers_that_the_lost_time_may_have_given_away_are_left_out() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    world.sealed(a, 1, &[1, 2]);
    world.recover();
    world.release_all(a);
    world.pass();
    let next = AttemptId { generation: 2, number: 2, ..a };
    world.started(next);
    assert_eq!(world.open(next, 2), ck(2 + Limits::NUMBERS_SKIPPED));
    let spec = Box::new(job_spec("b", &json!({})));
    let submitted = world.send(Command::SubmitJob { spec, bundle: None });
    assert_eq!(submitted, Response::JobSubmitted(JobId(2 + Limits::NUMBERS_SKIPPED)));
}

#[test]
fn invariant_23_an_exclusive_job_of_the_lost_time_waits_one_full_lease_of_the_new_leader() {
    let mut world = World::new(2);
    let exclusive = json!({"workers": 1, "exclusive": true});
    let a = world.running_job("a", &exclusive);
    world.recover();
    world.release_all(a);
    let next = AttemptId { generation: 2, number: 2, ..a };
    let lease_ms = outlast_types::Timers::of(outlast_types::Profile::Lan).leader_lease_ms();
    world.wait(lease_ms - 1);
    let plan = world.pass();
    assert!(plan.waiting[&a.group].contains("leases of the time that was lost"), "{:?}", plan.waiting);
    // A job of the new generation was never anywhere.
    let fresh = world.submit("b", &exclusive);
    world.pass();
    let first = AttemptId { generation: 2, ..attempt(fresh.0, 1) };
    assert!(world.state.attempt(&first).is_some());
    world.wait(1);
    world.pass();
    assert!(world.state.attempt(&next).is_some());
    // Its later attempts are known to this log, whoever leads.
    world.observe(world.place(next, 0), Observation::Started { attempt: next, rank: 0 });
    world.exited(next, 0, outlast_types::ExitStatus::Code(1));
    world.release_all(next);
    world.seen = outlast_control::plan::Observations::new(outlast_types::BootTime(world.boot_ms));
    world.pass();
    assert!(world.state.attempt(&AttemptId { number: 3, ..next }).is_some());
}

#[test]
fn a_job_that_was_on_its_way_out_ends_as_it_would_have() {
    let mut world = World::new(2);
    let a = world.running_job("a", &json!({}));
    world.does(Command::CancelJob { job: a.group.job, reason: None });
    world.recover();
    assert_eq!(world.state.attempt(&a).and_then(|a| a.cause.clone()), Some(Cause::Cancelled));
    world.release_all(a);
    world.pass();
    assert_eq!(world.state.jobs[&a.group.job].state, outlast_control::state::JobState::Cancelled);
}

#[test]
fn a_recovered_state_survives_its_bytes() {
    let mut world = World::new(2);
    world.running_job("a", &json!({}));
    world.recover();
    assert!(decode_state(&encode_state(&world.state)).expect("decodes") == world.state);
}
