//! Clients: the real client library on hosts of their own, which submit, repeat, cancel and read without pause.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use outlast_client::{Client, ClientError};

use crate::oracle::{Shared, Submission};
use crate::rng::Rng;

/// Short, so that a run meets outcomes that stay unknown.
const PATIENCE: Duration = Duration::from_secs(3);

pub(crate) struct Asker {
    pub(crate) name: String,
    pub(crate) client: Client,
    pub(crate) oracle: Shared,
}

impl Asker {
    pub(crate) fn new(name: &str, coordinators: Vec<String>, oracle: Shared) -> Result<Self, ClientError> {
        let client = Client::new(coordinators)?.with_timeout(PATIENCE).with_actor(name);
        Ok(Self { name: name.to_owned(), client, oracle })
    }

    /// `None`: an unknown outcome, or nobody served it.
    fn answered<T>(&self, what: &str, answer: Result<T, ClientError>) -> Option<Result<T, ClientError>> {
        let mut oracle = self.oracle.borrow_mut();
        oracle.calls += 1;
        match answer {
            Err(err @ (ClientError::Unreachable { .. } | ClientError::Failed { .. })) => {
                oracle.unknown += 1;
                oracle.note(format!("{} {what}: unknown ({err})", self.name));
                None
            }
            answer => Some(answer),
        }
    }

    /// Whether it was acknowledged.
    pub(crate) async fn submit(&self, request: &str) -> bool {
        let name = {
            let mut oracle = self.oracle.borrow_mut();
            let entry = oracle.submissions.entry(request.to_owned());
            let fresh = || Submission { name: format!("job-{request}"), ..Submission::default() };
            entry.or_insert_with(fresh).name.clone()
        };
        let spec = spec(&name).to_string();
        let answer = self.client.submit_job_as(request.to_owned(), spec, String::new()).await;
        let Some(answer) = self.answered(&format!("submits {request}"), answer) else { return false };
        let mut oracle = self.oracle.borrow_mut();
        match answer {
            Ok(answer) => {
                oracle.note(format!("{} submits {request}: {}", self.name, answer.job_id));
                oracle.acknowledge(request, &answer.job_id);
                true
            }
            Err(err) => {
                oracle.broken(format!("15: the submission {request} was refused: {err}"));
                false
            }
        }
    }

    async fn cancel(&self, request: &str, job: &str) {
        let answer = self.client.cancel_job(job, "simulated").await;
        match self.answered(&format!("cancels {job}"), answer) {
            None => {}
            Some(Ok(read)) => {
                let mut oracle = self.oracle.borrow_mut();
                oracle.note(format!("{} cancels {job}: {}", self.name, read.state));
                // One that was over already stays what it was.
                let is_cancelled = read.state.starts_with("cancel");
                if let Some(submission) = oracle.submissions.get_mut(request).filter(|_| is_cancelled) {
                    submission.cancelled = true;
                }
            }
            Some(Err(err @ ClientError::NotFound { .. })) => {
                self.oracle.borrow_mut().broken(format!("14: job {job} is lost: {err}"));
            }
            // It may be over.
            Some(Err(err)) => self.oracle.borrow_mut().note(format!("{} cancels {job}: {err}", self.name)),
        }
    }

    /// Whether the read was served.
    pub(crate) async fn read(&self, submission: &Submission) -> bool {
        let Some(job) = &submission.job else { return true };
        let floor = self.oracle.borrow().floor();
        let answer = self.client.get_job(job).await;
        let Some(answer) = self.answered(&format!("reads {job}"), answer) else { return false };
        let mut oracle = self.oracle.borrow_mut();
        match answer {
            Ok(read) => {
                oracle.note(format!("{} reads {job} at {}: {}", self.name, read.index, read.state));
                oracle.read_at(&self.name, read.index, floor);
                if read.name != submission.name {
                    oracle.broken(format!("14: job {job} is {:?}, not {:?}", read.name, submission.name));
                }
                if read.state == "failed" {
                    oracle.broken(format!(
                        "healing: job {job} failed, and its program never does: {}",
                        read.reason
                    ));
                }
                if submission.cancelled && !read.state.starts_with("cancel") {
                    oracle.broken(format!("19: job {job} was cancelled and is {}", read.state));
                }
            }
            Err(err) => oracle.broken(format!("14: acknowledged job {job} is lost: {err}")),
        }
        true
    }

    /// Until told that it is enough.
    pub(crate) async fn ask_on(self, seed: u64, enough: Rc<Cell<bool>>) {
        let mut rng = Rng::new(seed, 100 + u64::from(self.name.as_bytes()[self.name.len() - 1]));
        let mut made = 0;
        while !enough.get() {
            tokio::time::sleep(Duration::from_millis(rng.within(20, 600))).await;
            let acknowledged = self.oracle.borrow().acknowledged();
            let one = (!acknowledged.is_empty())
                .then(|| acknowledged[rng.below(acknowledged.len() as u64) as usize].clone());
            match (rng.below(10), one) {
                (0..4, _) | (_, None) => {
                    made += 1;
                    self.submit(&format!("{}-{made}", self.name)).await;
                }
                (4, _) => {
                    let all: Vec<String> = self.oracle.borrow().submissions.keys().cloned().collect();
                    self.submit(&all[rng.below(all.len() as u64) as usize]).await;
                }
                (5, Some((request, submission))) => {
                    self.cancel(&request, submission.job.as_deref().unwrap_or_default()).await;
                }
                (_, Some((_, submission))) => {
                    self.read(&submission).await;
                }
            }
        }
    }
}

/// The same for the same name: workers that count for some seconds and save on the way.
fn spec(name: &str) -> serde_json::Value {
    let draw = Rng::new(name.bytes().fold(7, |sum, byte| sum * 31 + u64::from(byte)), 2).next();
    serde_json::json!({
        "name": name,
        "kind": "training",
        "command": ["count", (20 + draw % 40).to_string()],
        "workers": 1 + draw / 64 % 2,
        "exclusive": (draw / 256).is_multiple_of(3),
        "resources": {"cpus": 0.5, "memory": "64MiB"},
        "checkpoint": {"every": format!("{} steps", 5 + draw / 1024 % 10), "durability": "local"},
        "recovery": {"hang_after": "never"},
    })
}
