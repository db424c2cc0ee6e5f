//! `outlast job show`.

use outlast_proto::control::v1::{Assignment, Attempt, Group, Job};

use crate::checkpoint::checkpoints_table;
use crate::connection::Session;
use crate::problem::{Exit, Problem};
use crate::term::{Columns, Paint, duration, print_one, time};

/// Of each group; the JSON form has all that are known.
const ATTEMPTS_SHOWN: usize = 5;

#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// Id (j12) or name; of several with the name the newest
    job: String,
}

impl Show {
    pub(crate) async fn run(self, session: Session) -> Result<Exit, Problem> {
        let job = session.client.get_job(&self.job).await?;
        print_one(session.format, &job, || page(&job))?;
        Ok(Exit::Done)
    }
}

fn page(job: &Job) -> String {
    let paint = Paint::stdout();
    let mut head = Columns::without_header();
    head.pair("id", &job.id);
    head.pair("name", &job.name);
    head.pair("kind", &job.kind);
    head.pair("state", paint.state(&job.state));
    head.pair("reason", &job.reason);
    head.pair("submitted", format!("{} by {}", time(job.submitted_at), job.submitted_by));
    head.pair("finished", time(job.finished_at));
    head.pair("ran", duration(job.submitted_at, job.finished_at));
    head.pair("bundle", &job.bundle_digest);
    let mut page = head.finish();
    page.extend(job.groups.iter().map(|group| group_part(group, paint)));
    if !job.checkpoints.is_empty() {
        page += &format!("\ncheckpoints\n{}", checkpoints_table(&job.checkpoints));
    }
    page
}

fn group_part(group: &Group, paint: Paint) -> String {
    let mut part = format!("\ngroup {}, {} attempts", group.id, group.attempts_total);
    if !group.waiting.is_empty() {
        part += &format!(", waiting: {}", group.waiting);
    }
    if let Some(interval) = group.interval.as_ref().filter(|_| !group.done) {
        part += &format!("\n  saves {}", interval.text);
    }
    part.push('\n');
    for attempt in group.attempts.iter().rev().take(ATTEMPTS_SHOWN) {
        part += &attempt_part(attempt, paint);
    }
    part
}

fn attempt_part(attempt: &Attempt, paint: Paint) -> String {
    let state = if attempt.outcome.is_empty() { &attempt.phase } else { &attempt.outcome };
    let mut part = format!(
        "  {} {}, {}",
        attempt.id,
        paint.state(state),
        duration(attempt.created_at, attempt.ended_at)
    );
    if !attempt.restore_from.is_empty() {
        part += &format!(", from {} at step {}", attempt.restore_from, attempt.restore_step);
    }
    if !attempt.cause_text.is_empty() {
        part += &format!(", ended by: {}", attempt.cause_text);
    }
    part.push('\n');
    for assignment in &attempt.assignments {
        part += &assignment_part(assignment);
    }
    part
}

fn assignment_part(assignment: &Assignment) -> String {
    let mut part = format!("    rank {} on {}: {}", assignment.rank, assignment.node, assignment.phase);
    if assignment.step > 0 {
        part += &format!(", step {}", assignment.step);
    }
    if !assignment.exit.is_empty() {
        part += &format!(", {}", assignment.exit);
    }
    part.push('\n');
    // Only where it went wrong: the last words of a worker that did well are in its log.
    if !assignment.exit.is_empty() && assignment.exit != "exit code 0" {
        part.extend(assignment.last_lines.iter().rev().take(5).rev().map(|line| format!("      | {line}\n")));
    }
    part
}
