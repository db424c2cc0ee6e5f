//! What a heartbeat and a planner pass cost does not depend on how much is remembered. Work is counted by what comes
//! out, not by a clock.

use outlast_control::state::Command;
use outlast_types::{ExitStatus, JobId};
use serde_json::json;

use crate::world::{World, attempt, node};

#[test]
fn finished_jobs_cost_a_pass_nothing() {
    let mut world = World::new(4);
    for n in 1..=200 {
        let a = world.running_job(&format!("job{n}"), &json!({"workers": 1}));
        world.exited(a, 0, ExitStatus::Code(0));
        world.released(a, 0);
    }
    assert_eq!((world.state.jobs.len(), world.state.active_jobs().count()), (200, 0));
    assert_eq!(world.state.held_on(&node(1)).count(), 0);
    let plan = world.look();
    assert!(plan.commands.is_empty() && plan.waiting.is_empty());
}

#[test]
fn a_pass_starts_a_bounded_number_and_the_rest_follow() {
    let mut world = World::new(4);
    let change = json!({"kind": "batch", "workers": 100, "resources": {"cpus": 0.01, "memory": "1MiB"}});
    world.submit("many", &change);
    let first = world.pass();
    let starts = |plan: &outlast_control::plan::Plan| {
        plan.commands.iter().filter(|planned| matches!(planned.command, Command::StartAttempt { .. })).count()
    };
    assert_eq!((starts(&first), first.next_check_ms), (64, Some(10)));
    assert_eq!(starts(&world.pass()), 36);
    let id = outlast_types::GroupId { job: JobId(1), index: 99 };
    assert!(world.state.group(&id).is_some_and(|group| group.current().is_some()));
    assert!(world.state.attempt(&attempt(1, 1)).is_some());
}
