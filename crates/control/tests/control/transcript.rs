//! A job's life as text: commands in, events, state and plan out. Read the golden file as a story.

use std::fmt::Write;

use outlast_control::state::{Command, Observation, Response};
use outlast_types::{ExitStatus, JobId};
use serde_json::json;

use crate::golden::compare;
use crate::world::{World, attempt, node, seal_command};

struct Transcript {
    world: World,
    text: String,
}

impl Transcript {
    fn note(&mut self, title: &str) {
        writeln!(self.text, "\n# {title} (t = {} ms)", self.world.boot_ms).expect("writes to memory");
    }

    fn told(&mut self) {
        for event in self.world.events.clone() {
            writeln!(self.text, "  {event}").expect("writes to memory");
        }
    }

    fn does(&mut self, command: Command) {
        let response: Response = self.world.does(command.clone());
        writeln!(self.text, "> {command:?}\n< {response:?}").expect("writes to memory");
        self.told();
    }

    fn observe(&mut self, n: u64, observation: Observation) {
        writeln!(self.text, "> n{n} saw {observation:?}").expect("writes to memory");
        self.world.observe(n, observation);
        self.told();
    }

    /// Plans and carries out until nothing is left to do at this time.
    fn plan(&mut self) {
        for _ in 0..10 {
            let plan = self.world.look();
            for (group, why) in &plan.waiting {
                writeln!(self.text, "~ {group} waits: {why}").expect("writes to memory");
            }
            for seal in &plan.seals {
                writeln!(self.text, "~ seal").expect("writes to memory");
                self.does(seal_command(seal));
            }
            for planned in &plan.commands {
                writeln!(self.text, "~ planned, because {:?}", planned.cause).expect("writes to memory");
                self.does(planned.command.clone());
            }
            if plan.commands.is_empty() && plan.seals.is_empty() {
                writeln!(self.text, "~ next check in {:?} ms", plan.next_check_ms).expect("writes to memory");
                return self.summary();
            }
        }
        panic!("the plan does not come to rest:\n{}", self.text);
    }

    fn summary(&mut self) {
        let world = &self.world;
        for node in world.state.nodes.values() {
            let held = world.state.held_on(&node.id).map(|(_, _, a, seat)| format!("{}#{}", a.id, seat.rank));
            let held: Vec<String> = held.collect();
            let line = format!("= {} {:?} holds [{}]", node.id, node.condition, held.join(" "));
            writeln!(self.text, "{line}").expect("writes to memory");
        }
        for job in world.state.jobs.values() {
            let checkpoints = job.checkpoints.values().map(|c| format!("{}@{}:{:?}", c.seq, c.step, c.state));
            let checkpoints: Vec<String> = checkpoints.collect();
            let line = format!("= {} {:?} [{}]", job.id, job.state, checkpoints.join(" "));
            writeln!(self.text, "{line}").expect("writes to memory");
            for attempt in job.groups.iter().flat_map(|group| &group.attempts) {
                let line = format!(
                    "=   {} {:?} {:?} {:?}",
                    attempt.id, attempt.phase, attempt.rung, attempt.outcome
                );
                writeln!(self.text, "{line}").expect("writes to memory");
            }
        }
    }

    fn start(&mut self, number: u64) {
        for (n, rank) in self.world.places(attempt(1, number)).into_iter().zip(0..) {
            self.observe(n, Observation::Started { attempt: attempt(1, number), rank });
        }
    }

    fn release(&mut self, number: u64, rank: u32) {
        let n = self.world.place(attempt(1, number), rank);
        self.observe(n, Observation::Released { attempt: attempt(1, number), rank });
    }

    fn exit(&mut self, number: u64, rank: u32, status: ExitStatus) {
        let attempt = attempt(1, number);
        let exit = crate::world::exit(status);
        self.observe(self.world.place(attempt, rank), Observation::Exited { attempt, rank, exit });
    }

    fn checkpoint(&mut self, number: u64, step: u64, holders: &[u64]) {
        let attempt = attempt(1, number);
        self.does(Command::OpenCheckpoint { attempt, step, in_turn: false });
        let (seq, _) = self.world.state.jobs[&JobId(1)].checkpoints.last_key_value().expect("just opened");
        let seq = *seq;
        self.world.receive(attempt, seq, holders);
        self.plan();
    }
}

#[test]
fn a_job_outlives_its_worker_and_its_node() {
    let mut t = Transcript { world: World::new(4), text: String::new() };
    t.note("a job comes");
    t.world.submit("digits", &json!({"checkpoint": {"keep": 1}}));
    t.plan();
    t.note("it runs and saves");
    t.start(1);
    t.world.wait(1_000);
    t.checkpoint(1, 100, &[1, 2]);
    t.note("a worker fails, and restarts in place");
    t.exit(1, 0, ExitStatus::Signal(11));
    t.plan();
    t.release(1, 0);
    t.exit(1, 1, ExitStatus::Signal(9));
    t.release(1, 1);
    t.plan();
    for rank in 0..2 {
        t.observe(
            t.world.place(attempt(1, 2), rank),
            Observation::Restored { attempt: attempt(1, 2), rank, seq: crate::world::ck(1) },
        );
    }
    t.start(2);
    t.world.wait(1_000);
    t.checkpoint(2, 200, &[2, 3]);
    t.note("a node is lost, and its rank moves");
    t.world.seen.suspects.insert(node(1));
    t.world.lose(1);
    t.told();
    t.plan();
    t.release(2, 1);
    t.plan();
    t.start(3);
    t.world.wait(1_000);
    t.checkpoint(3, 300, &[2, 3]);
    t.note("the last checkpoint is still on its way when the workers end");
    t.does(Command::OpenCheckpoint { attempt: attempt(1, 3), step: 400, in_turn: false });
    t.exit(3, 0, ExitStatus::Code(0));
    t.exit(3, 1, ExitStatus::Code(0));
    t.release(3, 0);
    t.release(3, 1);
    let seq = *t.world.state.jobs[&JobId(1)].checkpoints.last_key_value().expect("just opened").0;
    t.world.receive(attempt(1, 3), seq, &[2, 3]);
    t.plan();
    compare("life-of-a-job.txt", t.text.as_bytes());
}
