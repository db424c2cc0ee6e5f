//! The agent's one loop: takes one event, calls the pure code, makes durable what must be, then acts and sends. It owns
//! every decision of the agent; the tasks around it only carry bytes.
//!
//! ```text
//!  session, starts, keepers, workers ──events──► loop ──► heart (lease), reconcile (pure), observations (pure)
//!                                                 └─────► folder (durable), session (sends), starts, keepers
//! ```

mod checkpoints;
mod lease;
mod session;
mod tracked;
mod upkeep;
mod workers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outlast_control::state::{NodeFeatures, Observation, Registration};
use outlast_process::boot_now;
use outlast_types::{BootTime, Millis, Profile, RegistrationId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};

pub(crate) use self::checkpoints::{note_seal, seals_other_bytes};
pub(crate) use self::tracked::Tracked;
use crate::assigned::{Desired, WorkerKey};
use crate::context::{Context, blocking};
use crate::coordinators::random;
use crate::event::{Event, StopWorkers};
use crate::folder::FolderError;
use crate::heart::Heart;
use crate::observations::Observations;
use crate::reconcile::{Action, Life, Terms, reconcile};
use crate::session::Link;
use crate::upkeep::Upkeep;

/// How late a heartbeat or a fence of this agent's own may be; keepers have timers of their own.
const TICK: Duration = Duration::from_millis(50);
/// What was not acknowledged in this time is said again: a commit, with an election in between.
const RESEND_AFTER_MS: u64 = 1_500;
/// From SIGTERM to SIGKILL when the agent itself stops its workers.
const SHUTDOWN_GRACE_MS: u64 = 3_000;

/// Why an agent ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("the cluster refused this agent: {0}")]
    Refused(String),
    #[error("{0}")]
    Folder(#[from] FolderError),
    #[error("the agent's loop ended")]
    Lost,
}

/// What an agent says of itself at each registration.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) features: NodeFeatures,
}

pub(crate) struct AgentLoop {
    context: Arc<Context>,
    introduction: Introduction,
    registration: RegistrationId,
    /// See `Registration::serial`.
    serial: u64,
    /// The index that this registration was welcomed at.
    registered_at: Option<u64>,
    /// The next desired state is this registration's first.
    awaits_first_state: bool,
    /// What this registration says, made once: the log takes it once, whoever repeats it. With the workers that were over
    /// when it was made.
    message: Option<(Registration, Vec<WorkerKey>)>,
    profile: Profile,
    heart: Heart,
    link: Option<Link>,
    link_granted_at: BootTime,
    lags_since: Option<BootTime>,
    is_hedging: bool,
    has_news: bool,
    desired: Option<Desired>,
    workers: BTreeMap<WorkerKey, Tracked>,
    observations: Observations,
    /// When the batch that is under way left: one at a time, so that the log gets each observation once as a rule.
    observations_sent_at: Option<BootTime>,
    /// The index that the folder did not take, so that it is told once.
    complained_at: Option<u64>,
    /// The agent stops its workers and itself.
    stopping: Option<oneshot::Sender<()>>,
    end: Option<Result<(), AgentError>>,
    receipts: watch::Receiver<u64>,
    /// When the loop last came round.
    passed_at: BootTime,
    /// The longest that it was late since the last heartbeat.
    lag_ms: Millis,
    upkeep: Upkeep,
}

impl AgentLoop {
    pub(crate) fn new(context: Arc<Context>, introduction: Introduction) -> Self {
        let receipts = context.checkpoints.subscribe();
        let (registration, serial) = (RegistrationId(random()), context.folder.next_serial());
        context.set_registration(registration);
        Self {
            context,
            introduction,
            registration,
            serial,
            registered_at: None,
            awaits_first_state: false,
            message: None,
            profile: Profile::default(),
            heart: Heart::new(Profile::default()),
            link: None,
            link_granted_at: boot_now(),
            lags_since: None,
            is_hedging: false,
            has_news: false,
            desired: None,
            workers: BTreeMap::new(),
            observations: Observations::new(),
            observations_sent_at: None,
            complained_at: None,
            stopping: None,
            end: None,
            receipts,
            passed_at: boot_now(),
            lag_ms: 0,
            upkeep: Upkeep::new(),
        }
    }

    /// Runs until the shutdown, or until the cluster does not want this agent.
    pub(crate) async fn run(mut self, mut events: mpsc::Receiver<Event>) -> Result<(), AgentError> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shutdown = self.context.shutdown.clone();
        loop {
            let news_due = self.news_due();
            tokio::select! {
                event = events.recv() => {
                    self.keep_lease();
                    self.handle(event.expect("the context holds a sender")).await;
                }
                changed = self.receipts.changed() => self.has_news |= changed.is_ok(),
                _ = tick.tick() => {}
                () = news_due => {}
                () = shutdown.cancelled() => return Ok(()),
            }
            self.measure_lag();
            // A5: the lease before anything that touches the network or the disk.
            self.keep_lease();
            self.reconcile().await;
            self.reconcile_orders();
            self.send();
            self.finish_stopping();
            if let Some(end) = self.end.take() {
                return end;
            }
        }
    }

    /// News waits for its spacing, not for the next tick: a seal waits for it.
    fn news_due(&self) -> impl Future<Output = ()> + use<> {
        let wait = (self.has_news && self.is_registered()).then(|| self.heart.extra_in(boot_now()).max(1));
        async move {
            match wait {
                Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                None => std::future::pending().await,
            }
        }
    }

    /// It comes round once a tick at least, whatever happens.
    fn measure_lag(&mut self) {
        let now = boot_now();
        self.lag_ms = self.lag_ms.max(now.since(self.passed_at).saturating_sub(TICK.as_millis() as Millis));
        self.passed_at = now;
    }

    async fn handle(&mut self, event: Event) {
        match event {
            Event::Session(event) => self.handle_session(event).await,
            Event::Hedged(answer) => self.handle_hedged(answer),
            Event::Start(key, event) => self.handle_start(key, event),
            Event::Adopted(key, adopted) => self.handle_adopted(key, adopted),
            Event::Exited(key, exit) => self.handle_exit(key, exit),
            Event::Freed(key) => self.handle_freed(key),
            Event::Ready(key) => self.handle_ready(key),
            Event::Upkeep(event) => self.handle_upkeep(event),
            Event::Stop(StopWorkers::No, reply) => {
                let _ = reply.send(());
                self.end = Some(Ok(()));
            }
            Event::Stop(StopWorkers::Yes, reply) => self.begin_stopping(reply),
        }
    }

    /// Desired against running (design section 2). The index is durable before anything is done by it.
    async fn reconcile(&mut self) {
        let Some(desired) = &self.desired else { return };
        let known: BTreeMap<WorkerKey, Life> =
            self.workers.iter().map(|(key, tracked)| (*key, tracked.life)).collect();
        let terms = Terms {
            may_start: self.may_start(desired.index),
            first_of_registration: self.awaits_first_state,
        };
        let actions = reconcile(desired, &known, &self.context.newest.lock(), terms);
        let index = desired.index;
        let acts = actions.iter().any(|action| !matches!(action, Action::Update(_)));
        let remembered = if acts { self.remember_acted(index).await } else { Ok(()) };
        match remembered {
            Ok(()) => {
                self.awaits_first_state = false;
                actions.into_iter().for_each(|action| self.act(action));
                self.forget_released();
            }
            Err(err) => self.act_unremembered(index, actions, &err),
        }
    }

    /// A stop needs no promise for later: what was stopped is known by its folder and never starts again. And it may be
    /// the worker that fills the disk.
    fn act_unremembered(&mut self, index: u64, actions: Vec<Action>, err: &FolderError) {
        if self.complained_at.replace(index) != Some(index) {
            tracing::error!(index, error = %err, "nothing is started: the agent's folder does not take the index");
        }
        let stops = actions.into_iter().filter(|action| matches!(action, Action::Stop { .. }));
        stops.for_each(|stop| self.act(stop));
    }

    async fn remember_acted(&self, index: u64) -> Result<(), FolderError> {
        let context = Arc::clone(&self.context);
        if index <= context.folder.acted_index() {
            return Ok(());
        }
        blocking(move || context.folder.remember_acted(index)).await
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Start(assigned) => self.start(*assigned),
            Action::Stop { key, grace_ms, why } => self.stop(key, grace_ms, Some(why)),
            Action::Forswear(key) => {
                tracing::info!(attempt = %key.attempt, rank = key.rank, "stopped before it was ever started");
                self.workers.insert(key, Tracked::never_was());
                self.observe_released(key);
            }
            Action::Disown(key) => self.disown(key),
            Action::Update(assigned) => {
                if let Some(handle) =
                    self.workers.get(&assigned.key).and_then(|tracked| tracked.handle.as_ref())
                {
                    handle.update(*assigned);
                }
            }
        }
    }

    /// What is released in the log and not listed any more will never be listed again: indices only grow.
    fn forget_released(&mut self) {
        let Some(desired) = &self.desired else { return };
        let is_listed = |key: &WorkerKey| desired.workers.iter().any(|worker| worker.key == *key);
        self.workers
            .retain(|key, tracked| !(tracked.life == Life::Over && tracked.is_applied && !is_listed(key)));
    }

    pub(crate) fn observe(&mut self, observation: Observation) {
        tracing::debug!(?observation, "observed");
        self.observations.push(observation);
    }

    pub(crate) fn observe_released(&mut self, WorkerKey { attempt, rank }: WorkerKey) {
        self.observe(Observation::Released { attempt, rank });
    }

    fn begin_stopping(&mut self, reply: oneshot::Sender<()>) {
        self.stopping = Some(reply);
        self.desired = None;
        let alive: Vec<_> = self.workers.iter().filter(|(_, t)| t.is_alive()).map(|(key, _)| *key).collect();
        for key in alive {
            self.stop(key, SHUTDOWN_GRACE_MS, None);
        }
    }

    fn finish_stopping(&mut self) {
        if self.stopping.is_some() && !self.workers.values().any(Tracked::is_alive) {
            let reply = self.stopping.take().expect("just seen");
            let _ = reply.send(());
            self.end = Some(Ok(()));
        }
    }
}
