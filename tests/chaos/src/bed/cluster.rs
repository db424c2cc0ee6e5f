//! The cluster on its bed: daemons, their places and their disks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use outlast_client::Client;
use outlast_local::{Builder, Daemon, LocalCluster};
use outlast_proto::control::v1::ClusterStatusResponse;

use super::disk::Disk;
use super::leftovers::{folder_of, journal_of};
use super::network::Network;
use super::options::{BedArgs, Form};
use crate::entry::Tag;

/// Cores that each agent says it has: more than there are, because the workers hardly use theirs.
const CPUS: &str = "8";
/// One coordinator's answer, which waits for a leader for a while itself.
const STATUS_MAX: Duration = Duration::from_secs(3);

pub(crate) struct Bed {
    /// First, so that it is dropped before the disks that it uses.
    cluster: Mutex<LocalCluster>,
    /// Name of a daemon → its disk.
    pub(crate) disks: BTreeMap<String, Disk>,
    pub(crate) network: Option<Network>,
    pub(crate) client: Client,
    /// Name of a daemon → `host:port`.
    pub(crate) addresses: BTreeMap<String, String>,
    pub(crate) root: PathBuf,
    pub(crate) journal: PathBuf,
    /// Daemons that a fault has to itself.
    claims: Mutex<BTreeSet<String>>,
}

impl Bed {
    /// Disks, then daemons; answers when all coordinators vote and all agents are ready.
    ///
    /// # Errors
    /// When something does not come up.
    pub(crate) async fn start(tag: &Tag, args: &BedArgs) -> Result<Self> {
        let (root, journal) = (folder_of(&tag.name), journal_of(&tag.name));
        for folder in [&root, &journal] {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("could not make {}", folder.display()))?;
        }
        let network =
            (tag.form == Form::Namespaces).then(|| Network::of(&tag.name, args.coordinators, args.agents));
        let mut disks = BTreeMap::new();
        let mut builder = Builder::new(exe(args)?)
            .folder(&root)
            .coordinators(args.coordinators)
            .agents(args.agents)
            .agent_args(&["--cpus", CPUS]);
        if let Some(network) = &network {
            let places = |kind: char| {
                let names = network.nodes.iter().map(|node| node.name.as_str());
                names.filter(|name| name.starts_with(kind)).filter_map(|name| network.place(name)).collect()
            };
            builder = builder.places(places('c'), places('n'));
            for node in &network.nodes {
                let image = root.join(format!("{}.ext4", node.name));
                let disk = Disk::make(image, root.join(&node.name));
                disks.insert(node.name.clone(), disk.with_context(|| format!("no disk for {}", node.name))?);
            }
        }
        let cluster = builder.start().await?;
        let daemons = cluster.coordinators.iter().chain(&cluster.agents);
        let addresses = daemons.map(|d| (d.name.clone(), d.address.clone())).collect();
        let client = cluster.client().clone();
        let (cluster, claims) = (Mutex::new(cluster), Mutex::default());
        Ok(Self { cluster, disks, network, client, addresses, root, journal, claims })
    }

    /// Held for as long as something is done to a process, never while something is waited for.
    pub(crate) fn cluster(&self) -> MutexGuard<'_, LocalCluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the daemon of this name.
    ///
    /// # Errors
    /// When there is none, or when `act` fails.
    pub(crate) fn with<T>(&self, name: &str, act: impl FnOnce(&mut Daemon) -> Result<T>) -> Result<T> {
        let mut cluster = self.cluster();
        let daemon =
            if is_coordinator(name) { cluster.coordinator_mut(name)? } else { cluster.agent_mut(name)? };
        act(daemon)
    }

    pub(crate) fn coordinators(&self) -> Vec<String> {
        self.addresses.keys().filter(|name| is_coordinator(name)).cloned().collect()
    }

    pub(crate) fn agents(&self) -> Vec<String> {
        self.addresses.keys().filter(|name| !is_coordinator(name)).cloned().collect()
    }

    pub(crate) fn address(&self, name: &str) -> &str {
        self.addresses.get(name).map_or("", String::as_str)
    }

    fn claims(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of these, or none: another fault has one of them.
    pub(crate) fn claim(&self, names: &[String]) -> bool {
        let mut claims = self.claims();
        if names.iter().any(|name| claims.contains(name)) {
            return false;
        }
        claims.extend(names.iter().cloned());
        true
    }

    pub(crate) fn release(&self, names: &[String]) {
        self.claims().retain(|name| !names.contains(name));
    }

    pub(crate) fn is_claimed(&self, name: &str) -> bool {
        self.claims().contains(name)
    }

    /// The cluster as a coordinator sees it that knows a leader: one that was emptied answers too, and knows nothing.
    ///
    /// # Errors
    /// When nobody leads or nobody answers.
    pub(crate) async fn status(&self) -> Result<ClusterStatusResponse> {
        let mut names = self.coordinators();
        // Whoever led last is asked first, by way of the shared client.
        if let Ok(status) = self.client.cluster_status().await
            && !status.leader.is_empty()
        {
            return Ok(status);
        }
        names.retain(|name| !self.is_claimed(name));
        for name in names {
            let one = Client::new(vec![self.address(&name).to_owned()]).context("it has no address")?;
            let status = one.with_timeout(STATUS_MAX).cluster_status().await;
            if let Some(status) = status.ok().filter(|status| !status.leader.is_empty()) {
                return Ok(status);
            }
        }
        bail!("nobody leads now")
    }

    /// Which coordinator leads, as far as one that answers knows.
    ///
    /// # Errors
    /// When nobody does or nobody answers.
    pub(crate) async fn leader(&self) -> Result<String> {
        let status = self.status().await?;
        let leader = status.coordinators.iter().find(|known| known.id == status.leader);
        let address = &leader.context("the leader is not among the members")?.address;
        let name = self.addresses.iter().find(|(_, at)| *at == address).map(|(name, _)| name.clone());
        name.context("the leader is at an address that nobody was given")
    }

    /// Everything is told to go, and what does not is named.
    pub(crate) fn stop(self, out: &Path) -> Vec<String> {
        let mut cluster = self.cluster.into_inner().unwrap_or_else(PoisonError::into_inner);
        let left =
            cluster.stop().into_iter().map(|found| format!("process {} ({})", found.pid, found.command));
        let mut left: Vec<String> = left.collect();
        left.extend(cluster.outside().into_iter().map(|path| format!("folder {}", path.display())));
        drop(cluster);
        drop(self.disks);
        // The images are big and of no use; logs and journals are evidence.
        let _ = std::fs::rename(self.root.join("logs"), out.join("logs")).or_else(|_| {
            super::shell::run(&[
                "cp",
                "-r",
                &self.root.join("logs").to_string_lossy(),
                &out.to_string_lossy(),
            ])
            .map(|_| ())
            .map_err(std::io::Error::other)
        });
        for folder in [&self.root, &self.journal] {
            if let Err(err) = std::fs::remove_dir_all(folder) {
                left.push(format!("folder {} ({err})", folder.display()));
            }
        }
        left
    }
}

pub(crate) fn is_coordinator(name: &str) -> bool {
    name.starts_with('c')
}

fn exe(args: &BedArgs) -> Result<PathBuf> {
    let own = std::env::current_exe().context("this program has no path")?;
    let exe = args.exe.clone().unwrap_or_else(|| own.with_file_name("outlast"));
    ensure!(
        exe.exists(),
        "{} is missing: run `cargo build -p outlast` first, or `cargo xtask chaos`",
        exe.display()
    );
    exe.canonicalize().with_context(|| format!("{} cannot be found", exe.display()))
}
