//! `outlast.worker.v1`: what a worker asks of its agent.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use outlast_process::boot_now;
use outlast_proto::node::v1 as node_pb;
use outlast_proto::status::Failure;
use outlast_proto::worker::v1::worker_service_server::WorkerService;
use outlast_proto::worker::v1::{self as pb, signal::Kind};
use outlast_types::{CheckpointSeq, JobId};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use super::handle::{Wishes, WorkerHandle};
use super::ready::tell_ready;
use super::save::{self, SaveError, Saved};
use super::slots::Slot;
use super::staged;
use crate::checkpoints::Fate;
use crate::context::{Context, blocking};

/// Metrics of one report; more are left out, so that a heartbeat stays small.
const METRICS_MAX: usize = 64;
const METRIC_NAME_BYTES_MAX: usize = 128;
/// A fate comes by itself within moments of its decision. Not so where it was decided while this agent, or its session,
/// was away and nothing of the checkpoint is held here: then the cluster is asked.
const ASK_FIRST: Duration = Duration::from_secs(1);
const ASK_AGAIN: Duration = Duration::from_secs(5);
const ASK_WITHIN: Duration = Duration::from_secs(4);

pub(crate) struct WorkerServiceHandler {
    context: Arc<Context>,
    handle: Arc<WorkerHandle>,
}

impl WorkerServiceHandler {
    pub(crate) fn new(context: Arc<Context>, handle: Arc<WorkerHandle>) -> Self {
        Self { context, handle }
    }

    /// A worker of an attempt that is over may do nothing any more (invariant 24; the log says the same at a seal).
    fn current(&self) -> Result<(), Status> {
        if self.handle.is_fenced() || self.context.is_superseded(&self.handle.key.attempt) {
            return Err(fenced(&self.handle).into());
        }
        Ok(())
    }
}

impl WorkerServiceHandler {
    /// Learns what the cluster has decided. `Some`: there is no such checkpoint, for this reason. Its bytes, if there are
    /// any, are left alone: only what the log retired or aborted is deleted.
    async fn ask_fate(&self, job: JobId, seq: CheckpointSeq) -> Option<String> {
        let request = node_pb::GetCheckpointFateRequest {
            cluster_id: self.context.cluster_text(),
            checkpoint: Some(node_pb::CheckpointRef { job: job.to_string(), checkpoint: seq.to_string() }),
        };
        match self.context.coordinators.checkpoint_fate(request, ASK_WITHIN).await {
            Ok(update) if ["gone", "unknown"].contains(&update.state.as_str()) => {
                Some("the cluster knows no such checkpoint (any more)".to_owned())
            }
            Ok(update) => {
                if let Some(fate) = Fate::of(&update.state) {
                    self.context.checkpoints.decided(job, seq, fate);
                }
                None
            }
            Err(failure) => {
                tracing::debug!(%job, checkpoint = %seq, %failure, "what became of the checkpoint is asked again");
                None
            }
        }
    }
}

fn fenced(handle: &WorkerHandle) -> Failure {
    Failure::Fenced { reason: format!("fenced: attempt {} is over", handle.key.attempt) }
}

fn save_answer(saved: Result<Saved, SaveError>) -> Result<pb::SaveCheckpointResponse, Failure> {
    match saved {
        Ok(Saved { seq, root, size_bytes }) => Ok(pb::SaveCheckpointResponse {
            checkpoint: seq.to_string(),
            size_bytes,
            root: root.to_string(),
            skipped: false,
        }),
        Err(SaveError::Skipped { .. }) => {
            Ok(pb::SaveCheckpointResponse { skipped: true, ..Default::default() })
        }
        Err(err) => Err(err.into()),
    }
}

fn slot_answer(slot: Slot) -> pb::Slot {
    let Slot { index, sequence, path, size_bytes, in_memory, file: _ } = slot;
    let path = path.to_string_lossy().into_owned();
    pb::Slot { index: index as u32, path, size_bytes, in_memory, sequence }
}

#[tonic::async_trait]
impl WorkerService for WorkerServiceHandler {
    async fn register(
        &self,
        request: Request<pb::RegisterRequest>,
    ) -> Result<Response<pb::RegisterResponse>, Status> {
        self.current()?;
        let pb::RegisterRequest { pid, sdk } = request.into_inner();
        let key = self.handle.key;
        tracing::debug!(attempt = %key.attempt, rank = key.rank, pid, sdk, "worker registered");
        let assigned = self.handle.assigned.borrow();
        let restore = assigned.restore.as_ref();
        let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
        Ok(Response::new(pb::RegisterResponse {
            job: key.attempt.group.job.to_string(),
            job_name: assigned.job_name.clone(),
            attempt: key.attempt.to_string(),
            rank: key.rank,
            world_size: assigned.world_size,
            restore_dir: restore.map(|_| text(self.handle.dir.restore())).unwrap_or_default(),
            restore_step: restore.map_or(0, |restore| restore.step),
            checkpoint_dir: text(self.handle.dir.checkpoint()),
        }))
    }

    async fn report(
        &self,
        request: Request<pb::ReportRequest>,
    ) -> Result<Response<pb::ReportResponse>, Status> {
        self.current()?;
        let pb::ReportRequest { step, metrics } = request.into_inner();
        let fits = |(name, value): &(String, f64)| name.len() <= METRIC_NAME_BYTES_MAX && value.is_finite();
        let metrics = metrics.into_iter().filter(fits).take(METRICS_MAX).collect();
        *self.handle.progress.lock() = Some((step, metrics));
        let checkpoint_due = self.handle.due.lock().is_due(step, boot_now());
        let stop = self.handle.wishes.borrow().stop;
        Ok(Response::new(pb::ReportResponse { checkpoint_due, stop }))
    }

    async fn ready(
        &self,
        _request: Request<pb::ReadyRequest>,
    ) -> Result<Response<pb::ReadyResponse>, Status> {
        self.current()?;
        tell_ready(&self.context, &self.handle).await;
        Ok(Response::new(pb::ReadyResponse {}))
    }

    async fn save_checkpoint(
        &self,
        request: Request<pb::SaveCheckpointRequest>,
    ) -> Result<Response<pb::SaveCheckpointResponse>, Status> {
        self.current()?;
        let pb::SaveCheckpointRequest { step, directory, in_turn } = request.into_inner();
        let wanted = save::Wanted { step, in_turn };
        let saved = save::save(&self.context, &self.handle, wanted, directory.into()).await;
        Ok(Response::new(save_answer(saved)?))
    }

    async fn open_slots(
        &self,
        request: Request<pb::OpenSlotsRequest>,
    ) -> Result<Response<pb::OpenSlotsResponse>, Status> {
        self.current()?;
        let pb::OpenSlotsRequest { size_bytes } = request.into_inner();
        let handle = Arc::clone(&self.handle);
        let opened = blocking(move || handle.slots.reserve(size_bytes)).await;
        let slots = opened.map_err(|err| Failure::from(SaveError::Slot(err)))?;
        Ok(Response::new(pb::OpenSlotsResponse { slots: slots.into_iter().map(slot_answer).collect() }))
    }

    async fn begin_save(
        &self,
        request: Request<pb::BeginSaveRequest>,
    ) -> Result<Response<pb::BeginSaveResponse>, Status> {
        self.current()?;
        let pb::BeginSaveRequest { step, size_bytes, in_turn } = request.into_inner();
        let wanted = save::Wanted { step, in_turn };
        let answer = match staged::begin(&self.context, &self.handle, wanted, size_bytes).await {
            Ok(staged::Begun::Slot(slot)) => {
                pb::BeginSaveResponse { slot: Some(slot_answer(slot)), ..Default::default() }
            }
            Ok(staged::Begun::Kept) => pb::BeginSaveResponse { kept: true, ..Default::default() },
            Err(SaveError::Skipped { .. }) => pb::BeginSaveResponse { skipped: true, ..Default::default() },
            Err(err) => return Err(Failure::from(err).into()),
        };
        Ok(Response::new(answer))
    }

    async fn save_staged(
        &self,
        request: Request<pb::SaveStagedRequest>,
    ) -> Result<Response<pb::SaveStagedResponse>, Status> {
        self.current()?;
        let pb::SaveStagedRequest { step, slot, stall_us, failed } = request.into_inner();
        staged::take(&self.handle, step, slot, stall_us, failed).await.map_err(Failure::from)?;
        Ok(Response::new(pb::SaveStagedResponse {}))
    }

    async fn wait_saved(
        &self,
        request: Request<pb::WaitSavedRequest>,
    ) -> Result<Response<pb::SaveCheckpointResponse>, Status> {
        let pb::WaitSavedRequest { step } = request.into_inner();
        Ok(Response::new(save_answer(staged::wait_saved(&self.handle, step).await)?))
    }

    async fn wait_checkpoint(
        &self,
        request: Request<pb::WaitCheckpointRequest>,
    ) -> Result<Response<pb::WaitCheckpointResponse>, Status> {
        let seq: CheckpointSeq =
            outlast_proto::convert::parse("checkpoint", &request.into_inner().checkpoint)?;
        let job = self.handle.key.attempt.group.job;
        let mut due = tokio::time::interval_at(tokio::time::Instant::now() + ASK_FIRST, ASK_AGAIN);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changes = self.context.checkpoints.subscribe();
        let mut wishes = self.handle.wishes.subscribe();
        loop {
            match self.context.checkpoints.fate(job, seq) {
                Some(Fate::Sealed) => {
                    return Ok(Response::new(pb::WaitCheckpointResponse {
                        sealed: true,
                        reason: String::new(),
                    }));
                }
                Some(Fate::Over(reason)) => {
                    return Ok(Response::new(pb::WaitCheckpointResponse { sealed: false, reason }));
                }
                None if wishes.borrow_and_update().fenced => return Err(fenced(&self.handle).into()),
                None => {}
            }
            let gone = |_| Status::unavailable("the agent stops");
            tokio::select! {
                changed = changes.changed() => changed.map_err(gone)?,
                changed = wishes.changed() => changed.map_err(gone)?,
                _ = due.tick() => {
                    if let Some(reason) = self.ask_fate(job, seq).await {
                        return Ok(Response::new(pb::WaitCheckpointResponse { sealed: false, reason }));
                    }
                }
                () = self.handle.cancel.cancelled() => return Err(Status::unavailable("the agent stops")),
            }
        }
    }

    type SignalsStream = Pin<Box<dyn Stream<Item = Result<pb::Signal, Status>> + Send>>;

    async fn signals(
        &self,
        _request: Request<pb::SignalsRequest>,
    ) -> Result<Response<Self::SignalsStream>, Status> {
        let wishes = WatchStream::new(self.handle.wishes.subscribe());
        // A new stream begins with what no save has fulfilled yet.
        let checkpoints_asked = self.handle.wishes.borrow().checkpoints_done;
        let told = Wishes { checkpoints_asked, ..Wishes::default() };
        let signals = wishes.scan(told, |told, wishes| {
            let news = news(told, wishes);
            futures::future::ready(Some(futures::stream::iter(news)))
        });
        let until_end = self.handle.cancel.clone().cancelled_owned();
        Ok(Response::new(Box::pin(signals.flatten().take_until(until_end))))
    }
}

fn news(told: &mut Wishes, wishes: Wishes) -> Vec<Result<pb::Signal, Status>> {
    let mut kinds = Vec::new();
    if wishes.checkpoints_asked > told.checkpoints_asked {
        kinds.push(Kind::CheckpointNow);
    }
    if wishes.stop && !told.stop {
        kinds.push(Kind::Stop);
    }
    *told = wishes;
    kinds.into_iter().map(|kind| Ok(pb::Signal { kind: kind.into() })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wish_is_told_once() {
        let mut told = Wishes::default();
        let wishes = Wishes { checkpoints_asked: 1, ..Wishes::default() };
        assert_eq!(news(&mut told, wishes).len(), 1);
        assert_eq!(news(&mut told, wishes).len(), 0);
        assert_eq!(news(&mut told, Wishes { stop: true, ..wishes }).len(), 1);
        let again = Wishes { checkpoints_asked: 2, stop: true, fenced: true, ..Wishes::default() };
        assert_eq!(news(&mut told, again).len(), 1);
    }
}
