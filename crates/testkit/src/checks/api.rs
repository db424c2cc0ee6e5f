//! What was answered: invariants 14, 15, 17, 19.

use outlast_control::state::{Command, Envelope, Event, Response};
use outlast_types::{JobSpec, RequestId};

use crate::world::World;

impl World {
    pub(super) fn inv_15_a_request_is_one_job(
        &mut self,
        request: Option<&RequestId>,
        spec: &JobSpec,
        response: &Response,
        events: &[Event],
    ) {
        let (Some(request), Response::JobSubmitted(job)) = (request, response) else { return };
        let before = self.checks.submitted.insert(request.clone(), *job);
        if before.is_some_and(|before| before != *job) {
            return self.fail("15 a request is one job", format!("{request} is {before:?} and {job}"));
        }
        let is_new = events.iter().any(|event| matches!(event, Event::JobSubmitted { .. }));
        let stored = self.checks.state.jobs.get(job).is_some_and(|job| job.spec == *spec);
        if is_new && (before.is_some() || !stored) {
            self.fail("15, 17 a request is there once, as it was sent", format!("{request} is {job}"));
        }
    }

    /// A client has its answer: the log must say the same.
    pub(crate) fn check_answer(&mut self, envelope: &Envelope, response: &Response) {
        match (&envelope.command, response) {
            (Command::SubmitJob { .. }, Response::JobSubmitted(job)) => {
                let request = envelope.request.as_ref();
                let known = request.and_then(|request| self.checks.submitted.get(request));
                if known != Some(job) {
                    self.fail(
                        "14 an acknowledged job is never lost",
                        format!("{request:?} was answered {job}, the log has {known:?}"),
                    );
                }
            }
            (Command::SubmitJob { .. }, Response::Refused(refusal)) => {
                let known =
                    envelope.request.as_ref().and_then(|request| self.checks.submitted.get(request)).copied();
                if let Some(job) = known {
                    self.fail(
                        "15 a request has one answer",
                        format!("{job} was made, and its client told: {refusal}"),
                    );
                }
            }
            (Command::CancelJob { job, .. }, Response::Done) => {
                let ending =
                    self.checks.state.jobs.get(job).is_none_or(outlast_control::state::Job::is_ending);
                if !ending {
                    self.fail("19 an acknowledged cancel holds", format!("{job} goes on"));
                }
                self.checks.cancelled.insert(*job);
            }
            _ => {}
        }
    }
}
