//! An agent's life: start, run, stop.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use outlast_blobs::objects::{ObjectTier, StoreUrl, StoreUrlError};
use outlast_blobs::{BundleStore, OpenError, ShardStore};
use outlast_control::state::NodeFeatures;
use outlast_process::{Cgroups, boot_now};
use outlast_types::NodeId;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::adopt::find_workers;
use crate::agent_loop::{AgentError, AgentLoop, Introduction};
use crate::config::{AgentConfig, ConfigError};
use crate::context::{Context, Parts, blocking};
use crate::event::{EVENTS_MAX, Event, StopWorkers};
use crate::folder::{Folder, FolderError};
use crate::peer;
use crate::resources;
use crate::session::Session;
use crate::transfer::chain;
use crate::upkeep;

/// The workers' grace, their killing, and some room.
const STOP_WITHIN: Duration = Duration::from_secs(15);
/// For what still copies or answers.
const TASKS_WITHIN: Duration = Duration::from_secs(3);
const LOCK_WITHIN_MS: u64 = 1_000;
const LOCK_AGAIN_AFTER: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error("the agent cannot listen on {address}: is another agent running there?")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the blob stores in the data folder cannot be used: {0}")]
    Blobs(String),
    #[error("the object store cannot be used: {0}")]
    Store(String),
    #[error("this machine's {what} cannot be found out")]
    Machine {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Starts agents.
pub struct Agent;

/// An agent that runs. Dropped, it goes on until the runtime ends; its workers go on even then.
pub struct RunningAgent {
    /// The node's name.
    pub node: NodeId,
    /// Where it listens.
    pub address: SocketAddr,
    context: Arc<Context>,
    end: JoinHandle<Result<(), AgentError>>,
}

impl Agent {
    /// Returns when the agent listens and has looked at what its predecessor left. It does not wait for a coordinator:
    /// the agent goes on trying until there is one.
    ///
    /// # Errors
    /// Whatever a person has to mend first.
    pub async fn start(config: AgentConfig) -> Result<RunningAgent, StartError> {
        config.check()?;
        let node = config.node()?;
        let (events, queue) = mpsc::channel(EVENTS_MAX);
        let (context, listeners) = prepare(&config, node.clone(), events).await?;
        let address = listeners[0]
            .local_addr()
            .map_err(|source| StartError::Listen { address: config.listen, source })?;
        peer::serve(&context, listeners);
        let introduction = Introduction {
            labels: config.labels,
            features: NodeFeatures {
                cgroup_fence: context.cgroups.can_fence,
                cgroup_memory: context.cgroups.can_limit_memory,
                object_store: context.store.is_some(),
            },
        };
        let mut agent_loop = AgentLoop::new(Arc::clone(&context), introduction);
        agent_loop.adopt(find_workers(&context).await);
        let session = Session { coordinators: context.coordinators.clone(), events: context.events.clone() };
        context.tasks.spawn(session.run(context.shutdown.clone()));
        context.tasks.spawn(upkeep::scrub(Arc::clone(&context)));
        let shutdown = context.shutdown.clone();
        let end = tokio::spawn(async move {
            let end = agent_loop.run(queue).await;
            shutdown.cancel();
            end
        });
        tracing::info!(%node, %address, data_dir = %config.data_dir.display(), "agent started");
        Ok(RunningAgent { node, address, context, end })
    }
}

impl RunningAgent {
    /// Returns when the agent ends by itself: the cluster does not want it, or its folder is another cluster's.
    ///
    /// # Errors
    /// Why it ended. Asked again, that it is over.
    pub async fn wait(&mut self) -> Result<(), AgentError> {
        if self.end.is_finished() && self.context.shutdown.is_cancelled() && self.context.tasks.is_closed() {
            return Err(AgentError::Lost);
        }
        let end = (&mut self.end).await.unwrap_or(Err(AgentError::Lost));
        self.context.tasks.close();
        end
    }

    /// Stops the agent; its workers go on unless told otherwise. Takes some seconds at most.
    pub async fn shutdown(mut self, workers: StopWorkers) {
        let (reply, stopped) = oneshot::channel();
        let asked =
            !self.end.is_finished() && self.context.events.send(Event::Stop(workers, reply)).await.is_ok();
        if asked && timeout(STOP_WITHIN, stopped).await.is_err() {
            tracing::error!(node = %self.node, "workers did not end in time; they go on under their keepers");
        }
        self.context.shutdown.cancel();
        self.context.tasks.close();
        // Afterwards the folder is free: the loop and the tasks hold it.
        let all = async {
            if !self.end.is_finished() {
                let _ = (&mut self.end).await;
            }
            self.context.tasks.wait().await;
        };
        let _ = timeout(TASKS_WITHIN, all).await;
    }
}

async fn prepare(
    config: &AgentConfig,
    node: NodeId,
    events: mpsc::Sender<Event>,
) -> Result<(Arc<Context>, Vec<TcpListener>), StartError> {
    let machine = |what| move |source| StartError::Machine { what, source };
    let (data_dir, name) = (config.data_dir.clone(), node.clone());
    let (folder, shards, bundles) = blocking(move || open_folder(&data_dir, &name)).await?;
    let (listener, bound) = listen(config.listen).await?;
    let data = match config.data_listen {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let data_address = config.data_address.clone();
    let data_address = data_address.or_else(|| data.as_ref().map(|(_, bound)| bound.to_string()));
    let cgroups = blocking(Cgroups::detect).await;
    if !cgroups.why_not.is_empty() {
        tracing::warn!(%node, "not everything can be enforced here: {}", cgroups.why_not);
    }
    let keeper_exe = match &config.keeper_exe {
        Some(exe) => exe.clone(),
        None => std::env::current_exe().map_err(machine("own program"))?,
    };
    let context = Context::new(Parts {
        boot: outlast_process::boot_id().map_err(machine("boot"))?,
        disk: shards.disk_id(),
        resources: resources::detect(&config.resources).await.map_err(machine("memory"))?,
        address: config.advertise.clone().unwrap_or_else(|| bound.to_string()),
        data_address,
        data_connections: config.data_connections,
        node,
        keeper_exe,
        cgroups,
        folder,
        shards,
        bundles,
        store: open_store(config)?,
        coordinators: config.coordinators.clone(),
        events,
    });
    let listeners = std::iter::once(listener).chain(data.map(|(listener, _)| listener));
    Ok((Arc::new(context), listeners.collect()))
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

fn open_store(config: &AgentConfig) -> Result<Option<ObjectTier>, StartError> {
    let Some(url) = &config.store else { return Ok(None) };
    let unusable = |err: &dyn std::error::Error| StartError::Store(chain(err));
    let url: StoreUrl = url.parse().map_err(|err: StoreUrlError| unusable(&err))?;
    ObjectTier::open(&url, &config.store_options).map(Some).map_err(|err| unusable(&err))
}

/// A lock outlives its owner for moments: a child of it that is between fork and exec still has the file open.
fn patiently<T>(open: impl Fn() -> T, is_in_use: impl Fn(&T) -> bool) -> T {
    let until = boot_now().plus(LOCK_WITHIN_MS);
    loop {
        let found = open();
        if !is_in_use(&found) || boot_now() >= until {
            return found;
        }
        std::thread::sleep(LOCK_AGAIN_AFTER);
    }
}

fn open_folder(data_dir: &Path, node: &NodeId) -> Result<(Folder, ShardStore, BundleStore), StartError> {
    let in_use = |found: &Result<Folder, FolderError>| matches!(found, Err(FolderError::InUse(_)));
    let folder = patiently(|| Folder::open(data_dir, node), in_use)?;
    let in_use = |found: &Result<ShardStore, OpenError>| matches!(found, Err(OpenError::InUse { .. }));
    let shards = patiently(|| ShardStore::open(&folder.shards()), in_use);
    let shards = shards.map_err(|err| StartError::Blobs(chain(&err)))?;
    let bundles = BundleStore::open(&folder.bundles()).map_err(|err| StartError::Blobs(chain(&err)))?;
    Ok((folder, shards, bundles))
}
