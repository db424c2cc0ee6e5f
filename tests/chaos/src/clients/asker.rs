//! One client: a connection to each coordinator, a name in the history, and chance.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};
use outlast_proto::control::v1 as pb;
use outlast_proto::control::v1::control_service_client::ControlServiceClient;
use outlast_proto::status::Failure;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::bed::Bed;
use crate::history::{Answer, Call, JobSeen, Recorder};
use crate::rng::Rng;

pub(crate) type Stub = ControlServiceClient<Channel>;

/// Longer than a commit and shorter than an election: what is asked of a bad place ends as *unknown*.
const CALL_MAX: Duration = Duration::from_secs(2);

pub(crate) struct Asker {
    pub(crate) name: String,
    pub(crate) recorder: Recorder,
    pub(crate) rng: Rng,
    stubs: Vec<(String, Stub)>,
}

impl Asker {
    pub(crate) fn new(name: &str, bed: &Bed, recorder: &Recorder, seed: u64) -> Result<Self> {
        let stub = |coordinator: String| {
            let channel =
                outlast_client::channel(bed.address(&coordinator)).context("a coordinator has no address")?;
            anyhow::Ok((coordinator, ControlServiceClient::new(channel)))
        };
        let stubs = bed.coordinators().into_iter().map(stub).collect::<Result<_>>()?;
        Ok(Self { name: name.to_owned(), recorder: recorder.clone(), rng: Rng::fork(seed, name), stubs })
    }

    /// Any coordinator, the dead and the cut-off ones too.
    pub(crate) fn any(&mut self) -> (String, Stub) {
        self.rng.pick(&self.stubs).cloned().expect("a cluster has coordinators")
    }

    pub(crate) async fn submit(&mut self, request: &str, name: &str, spec: &str) -> Answer {
        let call = Call::Submit { request: request.to_owned(), name: name.to_owned() };
        let message = pb::SubmitJobRequest {
            request_id: request.to_owned(),
            spec_json: spec.to_owned(),
            bundle_digest: String::new(),
            actor: self.name.clone(),
        };
        self.ask(
            call,
            |mut stub| async move { stub.submit_job(limited(message)).await },
            |answer| Answer::Submitted { job: answer.job_id },
        )
        .await
    }

    pub(crate) async fn get(&mut self, job: &str) -> Answer {
        let message = pb::GetJobRequest { job: job.to_owned() };
        let call = Call::Get { job: job.to_owned() };
        self.ask(
            call,
            |mut stub| async move { stub.get_job(limited(message)).await },
            |job| {
                let index = job.index;
                Answer::Job { seen: seen(job), index }
            },
        )
        .await
    }

    pub(crate) async fn list(&mut self, limit: u32) -> Answer {
        let message = pb::ListJobsRequest { active_only: false, limit };
        self.ask(
            Call::List,
            |mut stub| async move { stub.list_jobs(limited(message)).await },
            |answer| {
                let one = |job: pb::JobSummary| JobSeen {
                    id: job.id,
                    name: job.name,
                    state: job.state,
                    attempts: job.attempts,
                };
                Answer::Jobs { seen: answer.jobs.into_iter().map(one).collect(), truncated: answer.truncated }
            },
        )
        .await
    }

    pub(crate) async fn cancel(&mut self, request: &str, job: &str) -> Answer {
        let message = pb::CancelJobRequest {
            request_id: request.to_owned(),
            job: job.to_owned(),
            reason: String::new(),
            actor: self.name.clone(),
        };
        let call = Call::Cancel { job: job.to_owned() };
        self.ask(
            call,
            |mut stub| async move { stub.cancel_job(limited(message)).await },
            |job| Answer::Cancelled { seen: seen(job) },
        )
        .await
    }

    /// One call to one coordinator, written down before and after.
    async fn ask<T, F>(
        &mut self,
        call: Call,
        send: impl FnOnce(Stub) -> F,
        answer: impl FnOnce(T) -> Answer,
    ) -> Answer
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let (to, stub) = self.any();
        let op = self.recorder.call(&self.name, &to, call);
        let answer = match tokio::time::timeout(CALL_MAX, send(stub)).await {
            Ok(Ok(response)) => answer(response.into_inner()),
            Ok(Err(status)) => refusal(&status),
            Err(_) => Answer::Unknown { reason: "no answer in time".to_owned() },
        };
        self.recorder.done(op, answer.clone());
        answer
    }

    pub(crate) fn request_id(&mut self) -> String {
        format!("{:016x}{:016x}", self.rng.next(), self.rng.next())
    }

    pub(crate) async fn pause(&mut self, low_ms: u64, high_ms: u64) {
        tokio::time::sleep(Duration::from_millis(self.rng.between(low_ms, high_ms))).await;
    }
}

fn limited<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_MAX);
    request
}

fn seen(job: pb::Job) -> JobSeen {
    let attempts = job.groups.iter().map(|group| group.attempts_total).sum();
    JobSeen { id: job.id, name: job.name, state: job.state, attempts }
}

/// Only a refusal by what was asked is a definite no.
fn refusal(status: &Status) -> Answer {
    match Failure::from_status(status) {
        Failure::NotFound { .. } => Answer::NotFound,
        Failure::Rejected { reason, .. }
        | Failure::Conflict { reason, .. }
        | Failure::Denied { reason, .. } => Answer::Refused { reason },
        other => Answer::Unknown { reason: other.to_string() },
    }
}
