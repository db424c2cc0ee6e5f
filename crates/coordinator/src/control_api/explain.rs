//! The chain of causes of a job, in order: what happened, what was decided, and why.

use outlast_control::state::{
    Assignment, Attempt, AttemptPhase, ClusterState, Group, Job, JobState, Outcome, Rung,
};
use outlast_proto::control::v1 as pb;
use outlast_proto::status::Failure;
use outlast_proto::view::{LeaderNotes, interval_text, outcome_word};
use outlast_types::{CauseClass, WallTime};

use super::{ControlHandler, find_job, room, upkeep};
use crate::clock::wall_now;
use crate::events::EventRing;

impl ControlHandler {
    pub(crate) async fn explain_job(&self, job: &str) -> Result<pb::ExplainJobResponse, Failure> {
        let member = self.seat.member()?;
        member.confirm_read().await?;
        let notes = member.notes().await;
        member.state(|state| Ok(explain(state, find_job(state, job)?, &notes, &member.events)))
    }
}

/// Lines with their times, put in order at the end.
struct Story {
    lines: Vec<(WallTime, String, String)>,
}

impl Story {
    fn tell(&mut self, at: Option<WallTime>, attempt: &str, text: impl Into<String>) {
        if let Some(at) = at {
            self.lines.push((at, attempt.to_owned(), text.into()));
        }
    }
}

fn explain(
    state: &ClusterState,
    job: &Job,
    notes: &LeaderNotes,
    events: &EventRing,
) -> pb::ExplainJobResponse {
    let mut story = Story { lines: Vec::new() };
    let workers = job.spec.workers.max;
    let submitted =
        format!("{} submitted {} ({}, {workers} workers)", job.actor, job.spec.name, job.spec.kind.as_str());
    story.tell(Some(job.submitted_at), "", submitted);
    for group in &job.groups {
        tell_group(&mut story, job, group);
    }
    tell_upkeep(&mut story, job, events);
    if job.state.is_final() {
        let why = job.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        story.tell(job.finished_at, "", format!("the job {}{why}", past_tense(job.state)));
    }
    // Stable: what has the same time stays in the order of its telling.
    story.lines.sort_by_key(|(at, ..)| *at);
    let line = |(at, attempt, text): (WallTime, String, String)| pb::ExplainLine {
        at: Some(at.into()),
        attempt,
        text,
    };
    pb::ExplainJobResponse {
        job_id: job.id.to_string(),
        lines: story.lines.into_iter().map(line).collect(),
        now: now(state, job, notes),
    }
}

/// What was done about its checkpoints meanwhile.
fn tell_upkeep(story: &mut Story, job: &Job, events: &EventRing) {
    let (lines, left_out) = upkeep::story(events, job.id);
    if let (Some((first, _)), true) = (lines.first(), left_out > 0) {
        story.tell(
            Some(*first),
            "",
            format!("{left_out} earlier notes on its checkpoints are left out here"),
        );
    }
    for (at, text) in lines {
        story.tell(Some(at), "", text);
    }
}

fn past_tense(state: JobState) -> &'static str {
    match state {
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "was cancelled",
        JobState::Pending | JobState::Running | JobState::Cancelling => "goes on",
    }
}

fn tell_group(story: &mut Story, job: &Job, group: &Group) {
    if group.totals.attempts > 0 {
        let ended = group.totals.ended.iter().map(|(cause, count)| format!("{cause} {count}"));
        let causes = ended.collect::<Vec<_>>().join(", ");
        let text =
            format!("{} earlier attempts of {} left the history ({causes})", group.totals.attempts, group.id);
        story.tell(Some(job.submitted_at), "", text);
    }
    let before = std::iter::once(None).chain(group.attempts.iter().map(Some));
    for (attempt, previous) in group.attempts.iter().zip(before) {
        tell_attempt(story, job, attempt, previous);
    }
}

fn tell_attempt(story: &mut Story, job: &Job, attempt: &Attempt, previous: Option<&Attempt>) {
    let id = attempt.id.to_string();
    let nodes = attempt.assignments.iter().map(|a| format!("rank {} on {}", a.rank, a.node));
    let nodes = nodes.collect::<Vec<_>>().join(", ");
    let text = format!(
        "attempt {} {}: {nodes}; {}",
        attempt.id.number,
        rung_text(attempt, previous),
        restore_text(job, attempt)
    );
    story.tell(Some(attempt.created_at), &id, text);
    for (seq, why) in &attempt.restore.passed_over {
        story.tell(Some(attempt.created_at), &id, format!("checkpoint {seq} was passed over: {why}"));
    }
    story.tell(attempt.running_at, &id, "all ranks run");
    tell_checkpoints(story, job, attempt);
    for assignment in &attempt.assignments {
        tell_exit(story, attempt, assignment);
    }
    if let Some(cause) = &attempt.cause {
        let budget = match cause.class() {
            CauseClass::User => " (counts as a failure of the program)",
            CauseClass::Infrastructure => " (counts as a failure of the infrastructure)",
            CauseClass::Wanted => "",
        };
        story.tell(attempt.stopping_at, &id, format!("the attempt was stopped: {cause}{budget}"));
    }
    for later in &attempt.later_causes {
        story.tell(attempt.stopping_at, &id, format!("while it was stopping: {later}"));
    }
    if let Some(outcome) = &attempt.outcome {
        let why = match (outcome, &attempt.cause) {
            (Outcome::Succeeded, _) | (_, None) => String::new(),
            (_, Some(cause)) => format!(" ({})", cause.code()),
        };
        story.tell(attempt.ended_at, &id, format!("the attempt ended: {}{why}", outcome_word(outcome)));
    }
}

/// What the rung came to: where there is no other node with room, a rank that should move goes back to where it was.
fn rung_text(attempt: &Attempt, previous: Option<&Attempt>) -> String {
    if attempt.rung == Rung::First {
        return "was placed".to_owned();
    }
    let before = |seat: &Assignment| previous.and_then(|previous| previous.assignment(seat.rank));
    let moved = |seat: &&Assignment| before(seat).is_none_or(|before| before.node != seat.node);
    let ranks: Vec<u32> = attempt.assignments.iter().filter(moved).map(|seat| seat.rank).collect();
    match (attempt.rung, ranks.as_slice()) {
        (Rung::InPlace, _) => "restarts where the last one was".to_owned(),
        (_, []) => "restarts where the last one was: no other place was better".to_owned(),
        (Rung::RankMoved, [rank]) if attempt.assignments.len() == 1 => {
            format!("moves rank {rank} to another node")
        }
        (Rung::RankMoved, [rank]) => format!("moves rank {rank} to another node, the others stay"),
        (Rung::RankMoved, ranks) => {
            let ranks = ranks.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            format!("moves ranks {ranks} to other nodes, the others stay")
        }
        _ => "places all ranks anew".to_owned(),
    }
}

fn restore_text(job: &Job, attempt: &Attempt) -> String {
    match attempt.restore.from {
        None => "it starts from the beginning".to_owned(),
        Some(seq) => match job.checkpoints.get(&seq) {
            Some(checkpoint) => format!("it restores {seq} (step {})", checkpoint.step),
            None => format!("it restores {seq}"),
        },
    }
}

/// The first and the newest seal of an attempt; the rest is a number.
fn tell_checkpoints(story: &mut Story, job: &Job, attempt: &Attempt) {
    let sealed = job.checkpoints.values().filter(|c| c.attempt == attempt.id && c.sealed_at.is_some());
    let Some(newest) = sealed.clone().max_by_key(|checkpoint| checkpoint.recency()) else { return };
    let others = sealed.count() - 1;
    let more =
        if others > 0 { format!(", after {others} others that are still on record") } else { String::new() };
    let degraded = if newest.degraded { ", below the wanted durability" } else { "" };
    let text = format!("checkpoint {} was sealed at step {}{degraded}{more}", newest.seq, newest.step);
    story.tell(newest.sealed_at, &attempt.id.to_string(), text);
}

/// The node's clock said when; where it is off, the attempt's own times hold the line in its place.
fn tell_exit(story: &mut Story, attempt: &Attempt, assignment: &Assignment) {
    let Some(exit) = &assignment.exit else { return };
    let detail = if exit.detail.is_empty() { String::new() } else { format!(" ({})", exit.detail) };
    let text = format!("rank {} on {} ended: {}{detail}", assignment.rank, assignment.node, exit.status);
    let earliest = assignment.started_at.unwrap_or(attempt.created_at);
    let latest = attempt.ended_at.unwrap_or(WallTime(u64::MAX)).max(earliest);
    story.tell(Some(exit.at.clamp(earliest, latest)), &attempt.id.to_string(), text);
}

/// What the job does or waits for at this moment.
fn now(state: &ClusterState, job: &Job, notes: &LeaderNotes) -> String {
    if job.state.is_final() {
        return format!("it {}", past_tense(job.state));
    }
    let groups = job.groups.iter().filter_map(|group| group_now(job, group, notes));
    let short = room::shortages(state, job, notes);
    let parts: Vec<String> = groups.chain(upkeep::now(state, job, wall_now())).chain(short).collect();
    if job.state == JobState::Cancelling {
        return format!(
            "it is being cancelled; {} workers still hold their resources",
            state.held_by_job(job.id)
        );
    }
    if parts.is_empty() { "all groups are done".to_owned() } else { parts.join("; ") }
}

fn group_now(job: &Job, group: &Group, notes: &LeaderNotes) -> Option<String> {
    if group.done {
        return None;
    }
    let name = group.id;
    if let Some(waiting) = notes.waiting.get(&name) {
        return Some(format!("group {name} waits: {waiting}"));
    }
    Some(match group.current() {
        Some(attempt) => {
            let phase = match attempt.phase {
                AttemptPhase::Starting => starting_text(attempt),
                AttemptPhase::Running => running_text(job, group),
                AttemptPhase::Stopping | AttemptPhase::Ended => "is being stopped".to_owned(),
            };
            format!("group {name}: attempt {} {phase}", attempt.id.number)
        }
        None => match group.not_before {
            Some(at) => format!("group {name} waits for its back-off, until {at} at the latest"),
            None => format!("group {name} waits to be placed"),
        },
    })
}

/// With how often it saves, where it saves at all.
fn running_text(job: &Job, group: &Group) -> String {
    let has_saved = job.checkpoints.values().any(|checkpoint| checkpoint.attempt.group == group.id);
    if !has_saved {
        return "runs".to_owned();
    }
    format!("runs, and saves {}", interval_text(job.spec.checkpoint.every, group.interval.as_ref()))
}

/// Which rank it waits for; of several the first, because the others may wait for that one.
fn starting_text(attempt: &Attempt) -> String {
    let mut ranks = attempt.waits_for();
    let Some(first) = ranks.next() else { return "is starting".to_owned() };
    let others = match ranks.count() {
        0 => String::new(),
        others => format!(" and {others} others"),
    };
    format!("is starting: rank {} on {}{others} did not start yet", first.rank, first.node)
}

#[cfg(test)]
mod tests {
    use outlast_control::state::{AssignmentPhase, RestoreDecision};
    use outlast_types::{AttemptId, NodeId, RegistrationId, Resources};

    use super::*;

    fn attempt(number: u64, rung: Rung, nodes: &[&str]) -> Attempt {
        let id: AttemptId = format!("j1/0@1.{number}").parse().expect("valid");
        let seat = |(rank, node): (usize, &&str)| Assignment {
            rank: rank as u32,
            node: NodeId::new(*node).expect("valid"),
            registration: RegistrationId(1),
            resources: Resources::default(),
            gpus: Vec::new(),
            phase: AssignmentPhase::Assigned,
            started_at: None,
            exit: None,
            restored: false,
        };
        let assignments = nodes.iter().enumerate().map(seat).collect();
        Attempt {
            id,
            phase: AttemptPhase::Ended,
            rung,
            assignments,
            rendezvous: None,
            restore: RestoreDecision::default(),
            created_at: WallTime(1),
            running_at: None,
            stopping_at: None,
            ended_at: None,
            cause: None,
            later_causes: Vec::new(),
            outcome: None,
            graceful_stop: false,
            checkpoint_requested: false,
            checkpoint_requested_from: None,
            skipped_step: None,
        }
    }

    #[test]
    fn an_attempt_that_starts_names_the_rank_that_it_waits_for() {
        let mut starting = attempt(1, Rung::First, &["n1", "n2", "n3"]);
        assert_eq!(starting_text(&starting), "is starting: rank 0 on n1 and 2 others did not start yet");
        for seat in &mut starting.assignments[..2] {
            seat.started_at = Some(WallTime(2));
        }
        assert_eq!(starting_text(&starting), "is starting: rank 2 on n3 did not start yet");
    }

    #[test]
    fn a_rung_is_told_by_what_came_of_it() {
        let first = attempt(1, Rung::First, &["n1", "n2"]);
        let told = |rung, nodes: &[&str]| rung_text(&attempt(2, rung, nodes), Some(&first));
        assert_eq!(
            told(Rung::RankMoved, &["n1", "n2"]),
            "restarts where the last one was: no other place was better"
        );
        assert_eq!(told(Rung::RankMoved, &["n3", "n2"]), "moves rank 0 to another node, the others stay");
        assert_eq!(told(Rung::Replaced, &["n3", "n4"]), "places all ranks anew");
        assert_eq!(told(Rung::InPlace, &["n1", "n2"]), "restarts where the last one was");
    }
}
