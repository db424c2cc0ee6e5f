//! The lives of workers: started, adopted, stopped, ended, released.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use outlast_control::state::{ExitRecord, Observation};
use outlast_process::{Adopted, ExitFile, Keeper, boot_now, wall_now};
use outlast_types::{ExitStatus, Millis};
use rustix::process::{Pid, Signal, kill_process};

use super::{AgentLoop, Tracked};
use crate::adopt::Found;
use crate::assigned::{Assigned, WorkerKey};
use crate::context::{Context, blocking};
use crate::event::{Event, StartEvent};
use crate::pauses::{Pauses, until_seen};
use crate::reconcile::{Life, StopReason};
use crate::transfer::chain;
use crate::worker::start::Start;
use crate::worker::{WorkerDir, WorkerHandle, keep_newest_logs, resume, watch_ready};

/// A keeper that does not take the order to stop in this time is itself killed; what is left of its worker then too.
const STOP_TRIES: u32 = 5;
const STOP_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// A keeper that was only stopped is soon heard again; one that hangs costs five seconds of looking each time.
const ADOPT_AGAIN_MIN: Duration = Duration::from_secs(1);
const ADOPT_AGAIN_MAX: Duration = Duration::from_secs(10);
/// Most of what cannot be killed waits for a disk or a driver and is gone in seconds; the rest may stay for days.
const LOOK_AGAIN_MIN: Duration = Duration::from_secs(2);
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(60);
/// A save that takes longer than this is given up with its folder.
const SAVES_WITHIN: Duration = Duration::from_secs(600);

impl AgentLoop {
    pub(super) fn start(&mut self, assigned: Assigned) {
        let key = assigned.key;
        tracing::info!(node = %self.context.node, attempt = %key.attempt, rank = key.rank, "starting worker");
        let dir = WorkerDir::new(&self.context.folder.workers(), &key);
        let (slots, cancel) = (self.context.folder.slots(), self.context.shutdown.child_token());
        let handle = Arc::new(WorkerHandle::new(dir, slots, assigned, boot_now(), cancel));
        self.workers.insert(key, Tracked::new(Arc::clone(&handle), Life::Starting));
        let kill_budget_ms = self.heart.timers().kill_budget_ms;
        let start = Start { context: Arc::clone(&self.context), handle, kill_budget_ms };
        self.context.tasks.spawn(start.run());
    }

    pub(super) fn handle_start(&mut self, key: WorkerKey, event: StartEvent) {
        let WorkerKey { attempt, rank } = key;
        match event {
            StartEvent::BundleHeld(digest) => self.observe(Observation::BundleHeld { digest }),
            StartEvent::Rendezvous(address) => self.observe(Observation::Rendezvous { attempt, address }),
            StartEvent::Restored(seq) => self.observe(Observation::Restored { attempt, rank, seq }),
            StartEvent::MaySpawn(reply) => {
                let may = self.workers.get(&key).is_some_and(|tracked| tracked.life == Life::Starting)
                    && !self.context.is_superseded(&attempt)
                    && self.desired.as_ref().is_some_and(|desired| self.may_start(desired.index));
                let _ = reply.send(self.heart.deadline().filter(|_| may));
            }
            StartEvent::Started(keeper) => self.handle_started(key, keeper),
            StartEvent::Failed(reason) => {
                tracing::warn!(node = %self.context.node, %attempt, rank, reason, "worker not started");
                self.observe(Observation::StartFailed { attempt, rank, reason });
                self.ended(key, None);
            }
            StartEvent::RestoreFailed { seq, corrupt, reason } => {
                tracing::warn!(node = %self.context.node, %attempt, rank, checkpoint = %seq, corrupt, reason, "restore failed");
                self.observe(Observation::RestoreFailed { attempt, rank, seq, corrupt, reason });
                self.ended(key, None);
            }
            StartEvent::Cancelled => self.ended(key, None),
        }
    }

    fn handle_started(&mut self, key: WorkerKey, keeper: Keeper) {
        let WorkerKey { attempt, rank } = key;
        tracing::info!(node = %self.context.node, %attempt, rank, pid = keeper.worker_pid(), "worker started");
        self.context.metrics.workers_started.inc();
        self.observe(Observation::Started { attempt, rank });
        self.take_keeper(key, keeper);
        self.say_ready(key);
    }

    /// A worker runs under this keeper: watch it, and stop it where that was asked meanwhile.
    fn take_keeper(&mut self, key: WorkerKey, keeper: Keeper) {
        let Some(tracked) = self.workers.get_mut(&key) else { return };
        watch_exit(&self.context, key, keeper.clone());
        tracked.keeper = Some(keeper.clone());
        match (tracked.life, &tracked.handle) {
            (Life::Stopping { grace_ms }, _) => order_stop(&self.context, keeper, grace_ms),
            (_, handle) => {
                tracked.life = Life::Running;
                if let Some(handle) = handle.as_ref().filter(|_| !tracked.is_ready) {
                    watch_ready(&self.context, handle);
                }
            }
        }
        self.count_running();
    }

    /// At the agent's start: what its predecessor left.
    pub(crate) fn adopt(&mut self, found: Vec<Found>) {
        for Found { key, handle, outcome, is_ready, rendezvous } in found {
            self.context.newest.lock().saw(key.attempt);
            let mut tracked = Tracked::new(Arc::clone(&handle), Life::Running);
            tracked.is_adopted = true;
            tracked.is_ready = is_ready;
            self.workers.insert(key, tracked);
            // Perhaps for the second time, which changes nothing: whether the log has it, nobody here knows.
            if let Some(address) = rendezvous {
                self.observe(Observation::Rendezvous { attempt: key.attempt, address });
            }
            self.say_ready(key);
            match outcome {
                Ok(adopted) => self.handle_adopted(key, adopted),
                Err(err) => {
                    tracing::error!(node = %self.context.node, attempt = %key.attempt, rank = key.rank, error = %chain(&err), "worker not adopted yet; tried again until it is");
                    adopt_again(&self.context, key, handle.dir.keeper());
                }
            }
        }
    }

    pub(super) fn handle_adopted(&mut self, key: WorkerKey, adopted: Adopted) {
        let WorkerKey { attempt, rank } = key;
        match adopted {
            Adopted::Running(keeper) => {
                tracing::info!(node = %self.context.node, %attempt, rank, pid = keeper.worker_pid(), "worker adopted");
                self.take_keeper(key, keeper);
            }
            // Their end goes up with the registration; if that is through already, as an observation.
            Adopted::Ended(exit) => self.handle_exit(key, Some(exit)),
            Adopted::Gone => self.handle_exit(key, None),
        }
    }

    /// Stops a worker, or gives up its start. `why`: `None` where it is this agent's own affair.
    pub(super) fn stop(&mut self, key: WorkerKey, grace_ms: Millis, why: Option<StopReason>) {
        let Some(tracked) = self.workers.get_mut(&key).filter(|tracked| tracked.is_alive()) else { return };
        tracing::info!(node = %self.context.node, attempt = %key.attempt, rank = key.rank, grace_ms, ?why, "stopping worker");
        tracked.life = Life::Stopping { grace_ms };
        if let Some(handle) = &tracked.handle {
            let is_fenced = matches!(why, Some(StopReason::Superseded | StopReason::Unconfirmed));
            handle.ask_to_stop(is_fenced);
            if !tracked.is_adopted && tracked.keeper.is_none() {
                handle.cancel.cancel();
            }
        }
        if let Some(keeper) = &tracked.keeper {
            order_stop(&self.context, keeper.clone(), grace_ms);
        }
    }

    pub(super) fn handle_exit(&mut self, key: WorkerKey, exit: Option<ExitFile>) {
        let is_news = |tracked: &&mut Tracked| tracked.is_alive() && tracked.exit.is_none();
        let Some(tracked) = self.workers.get_mut(&key).filter(is_news) else { return };
        let WorkerKey { attempt, rank } = key;
        let left = exit.clone().filter(|exit| exit.leftovers > 0);
        let record = exit_record(exit, tracked.is_fenced);
        tracing::info!(node = %self.context.node, %attempt, rank, status = %record.status, "worker ended");
        if self.stopping.is_some() && left.is_none() {
            return self.taken_down(key);
        }
        self.observe(Observation::Exited { attempt, rank, exit: record.clone() });
        match left {
            None => self.ended(key, Some(record)),
            Some(left) => self.keep_taken(key, record, left),
        }
    }

    /// Not released: its processes still hold what was given to it, and for an exclusive group that is the point.
    fn keep_taken(&mut self, key: WorkerKey, record: ExitRecord, left: ExitFile) {
        let WorkerKey { attempt, rank } = key;
        let Some(tracked) = self.workers.get_mut(&key) else { return };
        tracked.exit = Some(record);
        tracing::error!(node = %self.context.node, %attempt, rank, leftovers = left.leftovers, "processes of the worker cannot be killed; its resources stay taken until they are gone");
        if let Some(handle) = &tracked.handle {
            watch_leftovers(&self.context, key, handle.dir.keeper(), left);
        }
    }

    pub(super) fn handle_freed(&mut self, key: WorkerKey) {
        tracing::info!(node = %self.context.node, attempt = %key.attempt, rank = key.rank, "what was left of the worker is gone");
        let exit = self.workers.get(&key).and_then(|tracked| tracked.exit.clone());
        self.ended(key, exit);
    }

    /// Its end is the agent's doing, not its own: nothing is reported, and the next registration, which does not name it,
    /// makes it a node that came back without its worker. So no job pays with its own budget for a shutdown.
    fn taken_down(&mut self, key: WorkerKey) {
        self.keep_staged(key);
        self.applied(key);
        if let Some(tracked) = self.workers.get_mut(&key) {
            tracked.life = Life::Over;
        }
        self.count_running();
    }

    /// Nothing of it is alive, and it will never start.
    fn ended(&mut self, key: WorkerKey, exit: Option<ExitRecord>) {
        let Some(tracked) = self.workers.get_mut(&key).filter(|tracked| tracked.is_alive()) else { return };
        tracked.life = Life::Over;
        tracked.exit = exit;
        if let Some(handle) = &tracked.handle {
            handle.cancel.cancel();
        }
        self.keep_staged(key);
        self.observe_released(key);
        self.count_running();
    }

    /// What it had staged is still written, before its files go.
    fn keep_staged(&self, key: WorkerKey) {
        let Some(handle) = self.workers.get(&key).and_then(|tracked| tracked.handle.clone()) else { return };
        let (context, tracker) = (Arc::clone(&self.context), handle.saves.clone());
        tracker.spawn(async move { resume::worker_ended(&context, &handle).await });
    }

    /// The cluster knows of a run that is not here.
    pub(super) fn disown(&mut self, key: WorkerKey) {
        let WorkerKey { attempt, rank } = key;
        tracing::error!(node = %self.context.node, %attempt, rank, "the cluster believes that this worker runs here, but it does not");
        let exit = ExitRecord {
            status: ExitStatus::KeeperLost,
            at: wall_now(),
            detail: "the agent has no such worker".to_owned(),
            last_lines: Vec::new(),
        };
        self.workers.insert(key, Tracked::never_was());
        self.observe(Observation::Exited { attempt, rank, exit });
        self.observe_released(key);
    }

    pub(super) fn handle_ready(&mut self, key: WorkerKey) {
        if let Some(tracked) = self.workers.get_mut(&key) {
            tracked.is_ready = true;
        }
        self.say_ready(key);
    }

    /// Once, and not before its start was observed: in the log a worker that has not started is not ready.
    fn say_ready(&mut self, key: WorkerKey) {
        let due = |tracked: &&mut Tracked| tracked.has_processes() && tracked.is_ready && !tracked.said_ready;
        let Some(tracked) = self.workers.get_mut(&key).filter(due) else { return };
        tracked.said_ready = true;
        self.observe(Observation::Ready { attempt: key.attempt, rank: key.rank });
    }

    /// The log has its release: its files may go, as soon as nothing reads them any more.
    pub(super) fn applied(&mut self, key: WorkerKey) {
        let Some(tracked) = self.workers.get_mut(&key).filter(|tracked| !tracked.is_applied) else { return };
        tracked.is_applied = true;
        let Some(handle) = tracked.handle.clone() else { return };
        let workers = self.context.folder.workers();
        self.context.tasks.spawn(async move {
            handle.saves.close();
            let _ = tokio::time::timeout(SAVES_WITHIN, handle.saves.wait()).await;
            let gone = Arc::clone(&handle);
            let remove = move || gone.slots.remove().and(gone.dir.mark_over());
            if let Err(err) = blocking(remove).await {
                tracing::warn!(attempt = %handle.key.attempt, rank = handle.key.rank, error = %err, "an ended worker's files stay");
            }
            blocking(move || keep_newest_logs(&workers)).await;
        });
    }

    fn count_running(&self) {
        let running = self.workers.values().filter(|tracked| tracked.has_processes()).count();
        self.context.metrics.workers_running.set(running as f64);
    }
}

fn exit_record(exit: Option<ExitFile>, is_fenced: bool) -> ExitRecord {
    match exit {
        Some(exit) => ExitRecord {
            status: if exit.fenced || is_fenced { ExitStatus::Fenced } else { exit.status },
            at: exit.ended_at,
            detail: exit.detail,
            last_lines: exit.last_lines,
        },
        None => ExitRecord {
            status: ExitStatus::KeeperLost,
            at: wall_now(),
            detail: "its keeper died, so nobody saw how it ended; whatever was left of it has been killed"
                .to_owned(),
            last_lines: Vec::new(),
        },
    }
}

/// A thread, because it waits as long as the worker lives: tasks would wait for it at the end of the runtime.
fn watch_exit(context: &Arc<Context>, key: WorkerKey, keeper: Keeper) {
    let events = context.events.clone();
    let watch = move || {
        let exit = match keeper.wait_exit() {
            Ok(exit) => Some(exit),
            Err(err) => {
                tracing::warn!(attempt = %key.attempt, rank = key.rank, error = %err, "keeper lost");
                match until_adopted(keeper.dir(), || events.is_closed()) {
                    None => return,
                    Some(Adopted::Ended(exit)) => Some(exit),
                    Some(Adopted::Gone) => None,
                    Some(adopted @ Adopted::Running(_)) => {
                        let _ = events.blocking_send(Event::Adopted(key, adopted));
                        return;
                    }
                }
            }
        };
        // The record is on the disk, so the keeper may go even if nobody listens here any more.
        let _ = events.blocking_send(Event::Exited(key, exit));
        let _ = keeper.done();
    };
    spawn_thread(format!("exit {key}"), watch);
}

/// Asks again until it is known what became of a worker.
fn adopt_again(context: &Arc<Context>, key: WorkerKey, dir: PathBuf) {
    let events = context.events.clone();
    spawn_thread(format!("adopt {key}"), move || {
        if let Some(adopted) = until_adopted(&dir, || events.is_closed()) {
            let _ = events.blocking_send(Event::Adopted(key, adopted));
        }
    });
}

/// Looks again at what could not be killed of an ended worker, until nothing is left.
fn watch_leftovers(context: &Arc<Context>, key: WorkerKey, dir: PathBuf, exit: ExitFile) {
    let events = context.events.clone();
    spawn_thread(format!("left {key}"), move || {
        let look = || match Keeper::end_leftovers(&dir, &exit) {
            Ok(()) => Some(()),
            Err(err) => {
                tracing::warn!(attempt = %key.attempt, rank = key.rank, error = %chain(&err), "looked at again in vain");
                None
            }
        };
        let pauses = Pauses::new(LOOK_AGAIN_MIN, LOOK_AGAIN_MAX);
        if until_seen(look, pauses, || events.is_closed()).is_some() {
            let _ = events.blocking_send(Event::Freed(key));
        }
    });
}

fn until_adopted(dir: &std::path::Path, is_over: impl Fn() -> bool) -> Option<Adopted> {
    let look = || match Keeper::adopt(dir) {
        Ok(adopted) => Some(adopted),
        Err(err) => {
            tracing::warn!(dir = %dir.display(), error = %chain(&err), "not adopted yet");
            None
        }
    };
    until_seen(look, Pauses::new(ADOPT_AGAIN_MIN, ADOPT_AGAIN_MAX), is_over)
}

fn spawn_thread(name: String, work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().name(name).spawn(work).expect("a thread can be started");
}

fn order_stop(context: &Arc<Context>, keeper: Keeper, grace_ms: Millis) {
    context.tasks.spawn(blocking(move || {
        for _ in 0..STOP_TRIES {
            match keeper.stop(grace_ms) {
                Ok(()) => return,
                Err(outlast_process::CallError::Gone { .. }) => return,
                Err(err) => tracing::warn!(keeper = keeper.pid(), error = %err, "a keeper did not take the order to stop"),
            }
            std::thread::sleep(STOP_AGAIN_AFTER);
        }
        tracing::error!(keeper = keeper.pid(), "a keeper does not answer and is killed; its worker follows");
        if let Some(pid) = i32::try_from(keeper.pid()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }));
}
