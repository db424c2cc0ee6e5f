//! Submit, list, show, cancel.

use outlast_control::state::{Bundle, Command, Response};
use outlast_proto::control::v1 as pb;
use outlast_proto::status::Failure;
use outlast_proto::view;
use outlast_types::{Digest, JobId, spec};

use super::{ControlHandler, find_job, operator, rejected, request_id};
use crate::limits::WRITE_DEADLINE;
use crate::propose::envelope;

/// Where the client names no limit.
const LIST_DEFAULT: usize = 1_000;
/// The most that one answer holds: some 200 bytes each.
const LIST_MAX: usize = 10_000;

impl ControlHandler {
    pub(crate) async fn submit_job(
        &self,
        request: pb::SubmitJobRequest,
        source: Option<String>,
    ) -> Result<pb::SubmitJobResponse, Failure> {
        let member = self.seat.member()?;
        let id = request_id(&request.request_id)?;
        let value: serde_json::Value = serde_json::from_str(&request.spec_json).map_err(|error| {
            rejected(format!("the job specification is not JSON: {error}"), "send the job file as JSON")
        })?;
        let spec = spec::parse(&value)?;
        let name = spec.name.clone();
        let bundle = self.named_bundle(&member, &request.bundle_digest).await?;
        let command = Command::SubmitJob { spec: Box::new(spec), bundle };
        let decided = member
            .change(envelope(operator(&request.actor), source, Some(id), command), WRITE_DEADLINE)
            .await?;
        match decided.response {
            Response::JobSubmitted(job) => Ok(pb::SubmitJobResponse { job_id: job.to_string(), name }),
            other => Err(Failure::Fatal { reason: format!("a submission was answered with {other:?}") }),
        }
    }

    async fn named_bundle(
        &self,
        member: &crate::member::Member,
        digest: &str,
    ) -> Result<Option<Bundle>, Failure> {
        if digest.is_empty() {
            return Ok(None);
        }
        let digest: Digest =
            digest.parse().map_err(|error| rejected(error, "upload the bundle and name its digest"))?;
        match self.bundles.find(member, digest).await {
            Some(bundle) => Ok(Some(bundle)),
            None => Err(Failure::NotFound {
                what: format!("bundle {digest}"),
                hint: "no live node has it: upload it again".to_owned(),
            }),
        }
    }

    pub(crate) async fn list_jobs(
        &self,
        request: pb::ListJobsRequest,
    ) -> Result<pb::ListJobsResponse, Failure> {
        let member = self.seat.member()?;
        member.confirm_read().await?;
        let limit = match request.limit as usize {
            0 => LIST_DEFAULT,
            limit => limit.min(LIST_MAX),
        };
        Ok(member.state(|state| {
            let wanted = |job: &&outlast_control::state::Job| !request.active_only || !job.state.is_final();
            let mut jobs: Vec<_> =
                state.jobs.values().rev().filter(wanted).take(limit + 1).map(view::job_summary).collect();
            let truncated = jobs.len() > limit;
            jobs.truncate(limit);
            pb::ListJobsResponse { jobs, truncated }
        }))
    }

    pub(crate) async fn get_job(&self, job: &str) -> Result<pb::Job, Failure> {
        let member = self.seat.member()?;
        member.confirm_read().await?;
        let notes = member.notes().await;
        member.state(|state| Ok(view::job_view(state, find_job(state, job)?, &notes)))
    }

    pub(crate) async fn cancel_job(
        &self,
        request: pb::CancelJobRequest,
        source: Option<String>,
    ) -> Result<pb::Job, Failure> {
        let member = self.seat.member()?;
        let id = request_id(&request.request_id)?;
        // A name is looked up in a state that is new enough: of several jobs the newest has it.
        member.confirm_read().await?;
        let job: JobId = member.state(|state| find_job(state, &request.job).map(|job| job.id))?;
        let reason = (!request.reason.is_empty()).then_some(request.reason);
        let command = Command::CancelJob { job, reason };
        member.change(envelope(operator(&request.actor), source, Some(id), command), WRITE_DEADLINE).await?;
        let notes = member.notes().await;
        member.state(|state| Ok(view::job_view(state, find_job(state, &job.to_string())?, &notes)))
    }
}
