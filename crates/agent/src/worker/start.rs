//! Starting one worker, one task each: files, checkpoint, rendezvous, environment, keeper. Reports every step to the
//! loop, which alone decides; ends early when it is cancelled.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outlast_process::{CgroupLimits, Keeper, KeeperSpec};
use outlast_types::BootTime;
use tokio::sync::oneshot;

use super::env::{Surroundings, environment};
use super::folder::Record;
use super::handle::WorkerHandle;
use super::rendezvous::{self, Reservation};
use super::{bundle, restore, socket};
use crate::assigned::Assigned;
use crate::context::{Context, blocking};
use crate::event::{Event, StartEvent};

/// While the lease does not allow a start: asked again, until the cluster stops the worker.
const PERMIT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Why a worker did not start, in words for its record.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("its folder could not be prepared: {0}")]
    Folder(String),
    #[error(transparent)]
    Bundle(#[from] bundle::BundleError),
    #[error("no port could be reserved for the ranks to meet at: {0}")]
    Rendezvous(std::io::Error),
    #[error(transparent)]
    Restore(#[from] restore::RestoreError),
    #[error("{0}")]
    Spawn(String),
    #[error("it was stopped before it began")]
    Cancelled,
}

pub(crate) struct Start {
    pub(crate) context: Arc<Context>,
    pub(crate) handle: Arc<WorkerHandle>,
    pub(crate) kill_budget_ms: u64,
}

impl Start {
    pub(crate) async fn run(self) {
        let seq = self.handle.assigned.borrow().restore.as_ref().map(|from| from.seq);
        let cancel = self.handle.cancel.clone();
        let prepared = cancel.run_until_cancelled(self.prepare()).await.unwrap_or(Err(StartError::Cancelled));
        let started = match prepared {
            // Not cancellable from here: a keeper that begins is waited for, and then stopped.
            Ok(ready) => self.spawn(ready).await,
            Err(err) => Err(err),
        };
        let event = match (started, seq) {
            (Ok(keeper), _) => StartEvent::Started(keeper),
            (Err(StartError::Cancelled), _) => StartEvent::Cancelled,
            (Err(StartError::Restore(err)), Some(seq)) => {
                StartEvent::RestoreFailed { seq, corrupt: err.corrupt, reason: err.reason }
            }
            (Err(err), _) => StartEvent::Failed(err.to_string()),
        };
        self.tell(event).await;
    }

    async fn prepare(&self) -> Result<Ready, StartError> {
        let assigned = self.handle.assigned.borrow().clone();
        let socket = self.folder(&assigned).await?;
        // First, so that the other ranks need not wait for our files.
        let reservation = self.reserve(&assigned).await?;
        if let Some(bundle) = &assigned.bundle
            && bundle::provide(&self.context, &self.handle, bundle).await?
        {
            self.tell(StartEvent::BundleHeld(bundle.digest)).await;
        }
        if let Some(from) = &assigned.restore {
            restore::restore(&self.context, &self.handle, from.clone()).await?;
            self.tell(StartEvent::Restored(from.seq)).await;
        }
        let rendezvous = match &reservation {
            Some(reservation) => reservation.address.clone(),
            None => rendezvous::wait(&self.handle).await,
        };
        let deadline = self.permit().await;
        Ok(Ready { assigned, socket, rendezvous, reservation, deadline })
    }

    async fn folder(&self, assigned: &Assigned) -> Result<PathBuf, StartError> {
        let socket = self.context.folder.sockets().join(format!("{}.sock", assigned.key.file_name()));
        let record = Record {
            version: Record::VERSION,
            boot: self.context.boot.clone(),
            assigned: assigned.clone(),
            socket: socket.clone(),
        };
        let handle = Arc::clone(&self.handle);
        let failed = |err: std::io::Error| StartError::Folder(err.to_string());
        let create = move || handle.slots.remove().and_then(|()| handle.dir.create(&record));
        blocking(create).await.map_err(failed)?;
        socket::serve_socket(&self.context, &self.handle, &socket).map_err(failed)?;
        Ok(socket)
    }

    async fn reserve(&self, assigned: &Assigned) -> Result<Option<Reservation>, StartError> {
        if assigned.key.rank != 0 {
            return Ok(None);
        }
        let reservation = rendezvous::reserve(self.context.host()).map_err(StartError::Rendezvous)?;
        // Before it is told: an agent that dies before the log has it leaves a worker that meets nobody.
        let (handle, address) = (Arc::clone(&self.handle), reservation.address.clone());
        if let Err(err) = blocking(move || handle.dir.note_rendezvous(&address)).await {
            tracing::warn!(attempt = %assigned.key.attempt, error = %err, "where the gang meets cannot be noted");
        }
        self.tell(StartEvent::Rendezvous(reservation.address.clone())).await;
        Ok(Some(reservation))
    }

    /// Waits until the lease allows a start (A2). Returns its deadline.
    async fn permit(&self) -> BootTime {
        loop {
            let (reply, answer) = oneshot::channel();
            self.tell(StartEvent::MaySpawn(reply)).await;
            if let Ok(Some(deadline)) = answer.await {
                return deadline;
            }
            tokio::time::sleep(PERMIT_AGAIN_AFTER).await;
        }
    }

    async fn spawn(&self, ready: Ready) -> Result<Keeper, StartError> {
        let spec = self.spec(&ready);
        let Ready { reservation, .. } = ready;
        if self.handle.cancel.is_cancelled() {
            return Err(StartError::Cancelled);
        }
        let (exe, dir) = (self.context.keeper_exe.clone(), self.handle.dir.keeper());
        blocking(move || {
            // Free for the worker, at the last moment.
            drop(reservation);
            Keeper::spawn(&exe, &dir, &spec).map_err(|err| StartError::Spawn(err.to_string()))
        })
        .await
    }

    fn spec(&self, ready: &Ready) -> KeeperSpec {
        let Ready { assigned, socket, rendezvous, deadline, .. } = ready;
        let agent_path = std::env::var("PATH").ok();
        let env = environment(&Surroundings {
            assigned,
            dir: &self.handle.dir,
            socket,
            rendezvous,
            has_restored: assigned.restore.is_some(),
            node_has_gpus: !self.context.resources.gpus.is_empty(),
            exe_dir: self.context.keeper_exe.parent(),
            agent_path: agent_path.as_deref(),
        });
        let key = assigned.key;
        let limits = CgroupLimits {
            memory_bytes: (assigned.memory_bytes > 0).then_some(assigned.memory_bytes),
            cpu_millis: (assigned.cpu_millis > 0).then_some(assigned.cpu_millis),
            ..CgroupLimits::default()
        };
        let mut spec =
            KeeperSpec::new(key.attempt, key.rank, assigned.command.clone(), self.handle.dir.work());
        spec.env = env;
        spec.cgroup = self.context.cgroups.plan(&self.context.cgroup_name(), &key.attempt, key.rank, limits);
        spec.exclusive = assigned.exclusive;
        spec.lease_deadline = assigned.exclusive.then_some(*deadline);
        spec.kill_budget_ms = self.kill_budget_ms;
        spec
    }

    async fn tell(&self, event: StartEvent) {
        let _ = self.context.events.send(Event::Start(self.handle.key, event)).await;
    }
}

/// All that a keeper needs is there.
struct Ready {
    assigned: Assigned,
    socket: PathBuf,
    rendezvous: String,
    reservation: Option<Reservation>,
    deadline: BootTime,
}
