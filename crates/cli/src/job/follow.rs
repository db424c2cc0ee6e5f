//! Following a job to its end: its lines on stdout, what happens to it on stderr.

use std::collections::BTreeMap;
use std::time::Duration;

use outlast_client::ClientError;
use outlast_proto::control::v1::{Assignment, Attempt, Group, Job, JobLogsRequest};

use crate::connection::Session;
use crate::job::printer::LinePrinter;
use crate::job::wait::LOOK_EVERY;
use crate::problem::{Exit, Problem};
use crate::term::talk;

/// Once the job is over its last lines are on their way; a node that died with them must not keep us here.
const DRAIN: Duration = Duration::from_secs(10);

/// Looks in a row that find no cluster, each as long as --timeout says; lines are waited for as long.
const LOOKS_MAX: u32 = 6;

/// Follows until the job is over, or until Ctrl-C, which leaves the job alone.
pub(crate) async fn follow(session: &Session, id: &str) -> Result<Exit, Problem> {
    tokio::select! {
        end = to_the_end(session, id) => end,
        _ = tokio::signal::ctrl_c() => {
            talk(&format!("\nno longer following; {id} goes on\n  back to it: outlast job logs -f {id}\n  stop it:    outlast job cancel {id}"));
            Ok(Exit::Interrupted)
        }
    }
}

async fn to_the_end(session: &Session, id: &str) -> Result<Exit, Problem> {
    let first = session.client.get_job(id).await?;
    let mut printer = LinePrinter::new(&first, session.format, false);
    let mut stream =
        session.client.job_logs(JobLogsRequest { job: id.to_owned(), follow: true, ..Default::default() });
    let over = until_over(session, id, talk);
    tokio::pin!(over);
    let mut ended: Option<Job> = None;
    let mut lines_end = false;
    let drained = tokio::time::sleep(Duration::MAX);
    tokio::pin!(drained);
    while ended.is_none() || !lines_end {
        tokio::select! {
            line = stream.next(), if !lines_end => match line? {
                Some(line) => printer.print(line)?,
                None => lines_end = true,
            },
            job = &mut over, if ended.is_none() => {
                ended = Some(job?);
                drained.as_mut().reset(tokio::time::Instant::now() + DRAIN);
            }
            () = &mut drained => {
                talk("the job is over, but not all of its lines came; `outlast job logs` shows what is there");
                break;
            }
        }
    }
    printer.finish()?;
    let Some(job) = ended else { return Ok(Exit::Done) };
    let verdict = verdict(&job)?;
    talk(&format!("{} {}", job.id, job.state));
    Ok(verdict)
}

/// Looks at the job until it is over; `tell` gets what changed.
pub(crate) async fn until_over(session: &Session, id: &str, tell: impl Fn(&str)) -> Result<Job, Problem> {
    let mut news = News::default();
    loop {
        let job = look(session, id).await?;
        if job.finished_at.is_some() && news.groups.is_empty() {
            // Over before anybody looked: that is history, and `explain` tells it.
            return Ok(job);
        }
        news.of(&job).iter().for_each(|line| tell(line));
        if job.finished_at.is_some() {
            return Ok(job);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A cluster without a leader for a minute does not end the wait for a job of a week.
async fn look(session: &Session, id: &str) -> Result<Job, Problem> {
    for _ in 1..LOOKS_MAX {
        match session.client.get_job(id).await {
            Err(error @ ClientError::Unreachable { .. }) => talk(&format!("{error}; asking on")),
            looked => return Ok(looked?),
        }
    }
    Ok(session.client.get_job(id).await?)
}

/// Success is nothing to speak of; failure is told with its reason and the last words of who failed.
pub(crate) fn verdict(job: &Job) -> Result<Exit, Problem> {
    if job.state == "succeeded" {
        return Ok(Exit::Done);
    }
    let reason = if job.reason.is_empty() { "no reason was recorded".to_owned() } else { job.reason.clone() };
    let mut problem =
        Problem::new(Exit::Failed, format!("{} ({}) {}", job.id, job.name, job.state)).because(reason);
    let last = job.groups.iter().filter_map(|group| group.attempts.last());
    for assignment in last.flat_map(|attempt| &attempt.assignments).filter(|one| is_failure(one)).take(3) {
        let end = format!("{} {}", assignment.exit, assignment.exit_detail);
        problem =
            problem.because(format!("rank {} on {}: {}", assignment.rank, assignment.node, end.trim_end()));
    }
    Err(problem.next(format!("outlast job explain {}", job.id)))
}

fn is_failure(assignment: &Assignment) -> bool {
    !assignment.exit.is_empty() && assignment.exit != "exit code 0"
}

/// What was told about each group already: the number of the newest attempt, and what it waited for.
#[derive(Default)]
struct News {
    groups: BTreeMap<String, (u64, String)>,
}

impl News {
    fn of(&mut self, job: &Job) -> Vec<String> {
        job.groups.iter().flat_map(|group| self.of_group(group)).collect()
    }

    fn of_group(&mut self, group: &Group) -> Vec<String> {
        let newest = group.attempts.last().map_or(0, |attempt| attempt.number);
        // Who joins later is told of the newest attempt, not of all that were before.
        let (told, waiting) =
            self.groups.entry(group.id.clone()).or_insert_with(|| (newest.saturating_sub(1), String::new()));
        let with_previous = std::iter::once(None).chain(group.attempts.iter().map(Some)).zip(&group.attempts);
        let unseen = with_previous.filter(|(_, attempt)| attempt.number > *told);
        let mut lines: Vec<_> = unseen.map(|(before, attempt)| begun(attempt, before)).collect();
        *told = newest;
        if *waiting != group.waiting {
            waiting.clone_from(&group.waiting);
            if !group.waiting.is_empty() {
                lines.push(format!("{} waits: {}", group.id, group.waiting));
            }
        }
        lines
    }
}

/// One line about an attempt that began, and why it had to.
fn begun(attempt: &Attempt, before: Option<&Attempt>) -> String {
    let nodes: Vec<_> = attempt.assignments.iter().map(|one| one.node.as_str()).collect();
    let cause = before.filter(|before| !before.cause_text.is_empty());
    let cause = cause.map(|before| format!(" because of: {}", before.cause_text)).unwrap_or_default();
    let from = match attempt.restore_from.as_str() {
        "" => String::new(),
        from => format!(" from {from} (step {})", attempt.restore_step),
    };
    format!("attempt {} on {}{from}{cause}", attempt.number, nodes.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(attempts: Vec<Attempt>, waiting: &str) -> Job {
        let group = Group { id: "j1/0".into(), attempts, waiting: waiting.into(), ..Group::default() };
        Job { id: "j1".into(), name: "a".into(), groups: vec![group], ..Job::default() }
    }

    fn attempt(number: u64, cause: &str, from: &str) -> Attempt {
        let assignments = vec![Assignment { node: format!("n{number}"), ..Assignment::default() }];
        Attempt {
            id: format!("j1/0@1.{number}"),
            number,
            cause_text: cause.into(),
            restore_from: from.into(),
            restore_step: 40,
            assignments,
            ..Attempt::default()
        }
    }

    #[test]
    fn each_change_is_told_once() {
        let mut news = News::default();
        assert_eq!(news.of(&job(vec![], "no node has 8 gpus")), ["j1/0 waits: no node has 8 gpus"]);
        assert!(news.of(&job(vec![], "no node has 8 gpus")).is_empty());
        assert_eq!(news.of(&job(vec![attempt(1, "", "")], "")), ["attempt 1 on n1"]);
        let second = job(vec![attempt(1, "node n1 was lost", ""), attempt(2, "", "ck3")], "");
        assert_eq!(news.of(&second), ["attempt 2 on n2 from ck3 (step 40) because of: node n1 was lost"]);
        assert!(news.of(&second).is_empty());
    }

    #[test]
    fn only_success_is_done() {
        let ended = |state: &str| Job { state: state.into(), ..job(vec![], "") };
        assert_eq!(verdict(&ended("succeeded")).expect("well"), Exit::Done);
        for state in ["failed", "cancelled"] {
            assert!(verdict(&ended(state)).is_err(), "{state}");
        }
    }
}
