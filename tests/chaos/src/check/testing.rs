//! Short ways to write histories down.

use crate::history::{Answer, Call, Happened, JobSeen, Record, What, Work, WorkKind};

pub(super) fn record(at: u64, what: What) -> Record {
    Record { at, what }
}

pub(super) fn seen(id: &str, name: &str, state: &str) -> JobSeen {
    JobSeen { id: id.to_owned(), name: name.to_owned(), state: state.to_owned(), attempts: 0 }
}

pub(super) fn call(at: u64, op: u64, call: Call) -> Record {
    record(at, What::Call { op, client: "one".to_owned(), to: "c1".to_owned(), call })
}

pub(super) fn done(at: u64, op: u64, answer: Answer) -> Record {
    record(at, What::Return { op, answer })
}

pub(super) fn submit(request: &str) -> Call {
    Call::Submit { request: request.to_owned(), name: format!("k-{request}") }
}

pub(super) fn submitted(job: &str) -> Answer {
    Answer::Submitted { job: job.to_owned() }
}

pub(super) fn get(job: &str) -> Call {
    Call::Get { job: job.to_owned() }
}

pub(super) fn event(kind: &str, job: &str, attempt: &str, text: &str) -> Happened {
    let node = String::new();
    Happened {
        kind: kind.to_owned(),
        job: job.to_owned(),
        attempt: attempt.to_owned(),
        node,
        text: text.to_owned(),
    }
}

pub(super) fn watched(at: u64, watcher: &str, index: u64, lost_before: u64, events: Vec<Happened>) -> Record {
    let (watcher, from) = (watcher.to_owned(), "c1".to_owned());
    record(at, What::Watched { watcher, from, index, lost_before, events })
}

pub(super) fn work(at: u64, name: &str, attempt: &str, did: WorkKind, step: u64) -> Record {
    let (name, attempt) = (name.to_owned(), attempt.to_owned());
    let pid = attempt.len() as u32;
    record(at, What::Work(Work { at, name, attempt, rank: 0, pid, did, step, wrong: String::new() }))
}
