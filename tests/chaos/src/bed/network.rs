//! The network: a hub namespace with a bridge, and a namespace for each node with one cable to it.
//!
//! Nothing of it touches the machine's own network. Everything hangs on the namespaces, so removing these removes it all.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use outlast_local::Place;

use super::filter::Filter;
use super::shell::{run, run_in};

const HUB: Ipv4Addr = Ipv4Addr::new(10, 213, 77, 1);
const COORDINATORS_FROM: u8 = 11;
const AGENTS_FROM: u8 = 31;

/// Where a node is.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    namespace: String,
    /// The hub's end of its cable: what the node sends comes in here.
    cable: String,
    pub(crate) ip: Ipv4Addr,
}

impl Node {
    fn enter(&self) -> Vec<String> {
        enter(&self.namespace)
    }
}

/// Only the network changes: mounts and control groups stay those of everybody, unlike with `ip netns exec`.
fn enter(namespace: &str) -> Vec<String> {
    vec!["nsenter".to_owned(), format!("--net=/run/netns/{namespace}"), "--".to_owned()]
}

/// Faults in force, by who asked for them, so that two may overlap.
#[derive(Default)]
struct Faults {
    /// From a node to another.
    blocked: BTreeMap<u32, Vec<(String, String)>>,
    loss: BTreeMap<u32, (Vec<String>, u32)>,
}

pub(crate) struct Network {
    hub: String,
    pub(crate) nodes: Vec<Node>,
    faults: Mutex<Faults>,
    /// It takes itself down when dropped; the inner process only uses it.
    owned: bool,
}

impl Network {
    /// The names and addresses, without making anything.
    pub(crate) fn of(tag: &str, coordinators: usize, agents: usize) -> Self {
        let short = tag.trim_start_matches("occhaos");
        let node = |kind: char, first: u8, i: usize| {
            let name = format!("{kind}{}", i + 1);
            let namespace = format!("{tag}-{name}");
            // At most 15 characters.
            let cable = format!("oc{short}{name}");
            Node { namespace, cable, ip: Ipv4Addr::new(10, 213, 77, first + i as u8), name }
        };
        let nodes = (0..coordinators).map(|i| node('c', COORDINATORS_FROM, i));
        let nodes = nodes.chain((0..agents).map(|i| node('n', AGENTS_FROM, i))).collect();
        Self { hub: format!("{tag}-hub"), nodes, faults: Mutex::default(), owned: false }
    }

    /// Makes namespaces, cables and the bridge.
    ///
    /// # Errors
    /// When the machine does not let us; nothing is left then.
    pub(crate) fn make(tag: &str, coordinators: usize, agents: usize) -> Result<Self> {
        let mut network = Self::of(tag, coordinators, agents);
        network.owned = true;
        run(&["ip", "netns", "add", &network.hub])?;
        let hub = network.enter_hub();
        run_in(&hub, &["ip", "link", "set", "lo", "up"])?;
        run_in(&hub, &["ip", "link", "add", "hub", "type", "bridge"])?;
        run_in(&hub, &["ip", "addr", "add", &format!("{HUB}/24"), "dev", "hub"])?;
        run_in(&hub, &["ip", "link", "set", "hub", "up"])?;
        for node in &network.nodes {
            network.plug_in(node).with_context(|| format!("{} cannot be connected", node.name))?;
        }
        Ok(network)
    }

    fn plug_in(&self, node: &Node) -> Result<()> {
        let Node { namespace, cable, ip, .. } = node;
        let hub = self.enter_hub();
        run(&["ip", "netns", "add", namespace])?;
        let pair = ["ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace];
        run_in(&hub, &pair)?;
        run_in(&hub, &["ip", "link", "set", cable, "master", "hub"])?;
        run_in(&hub, &["ip", "link", "set", cable, "up"])?;
        run_in(&hub, &["tc", "qdisc", "add", "dev", cable, "clsact"])?;
        let inside = node.enter();
        run_in(&inside, &["ip", "link", "set", "lo", "up"])?;
        run_in(&inside, &["ip", "addr", "add", &format!("{ip}/24"), "dev", "eth0"])?;
        run_in(&inside, &["ip", "link", "set", "eth0", "up"])?;
        Ok(())
    }

    pub(crate) fn enter_hub(&self) -> Vec<String> {
        enter(&self.hub)
    }

    pub(crate) fn place(&self, name: &str) -> Option<Place> {
        let node = self.node(name)?;
        Some(Place { ip: node.ip.into(), enter: node.enter() })
    }

    fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        // Each change below is one insertion or removal.
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops everything from the first to the second of each pair until `heal`.
    ///
    /// # Errors
    /// When the kernel does not take the filter.
    pub(crate) fn block(&self, fault: u32, pairs: Vec<(String, String)>) -> Result<()> {
        self.faults().blocked.insert(fault, pairs);
        self.apply()
    }

    /// Loses so many of a thousand packets that these nodes send, until `heal`.
    ///
    /// # Errors
    /// As [`Network::block`].
    pub(crate) fn lose(&self, fault: u32, nodes: Vec<String>, per_mille: u32) -> Result<()> {
        self.faults().loss.insert(fault, (nodes, per_mille));
        self.apply()
    }

    /// # Errors
    /// As [`Network::block`].
    pub(crate) fn heal(&self, fault: u32) -> Result<()> {
        self.faults().blocked.remove(&fault);
        self.faults().loss.remove(&fault);
        self.apply()
    }

    fn filter(&self, of: &Node) -> Filter {
        let faults = self.faults();
        let pairs = faults.blocked.values().flatten();
        let mut blocked: Vec<Ipv4Addr> = pairs
            .filter(|(from, _)| *from == of.name)
            .filter_map(|(_, to)| Some(self.node(to)?.ip))
            .collect();
        blocked.sort_unstable();
        blocked.dedup();
        let losses = faults.loss.values().filter(|(nodes, _)| nodes.contains(&of.name));
        Filter { blocked, loss_per_mille: losses.map(|(_, share)| *share).max().unwrap_or(0) }
    }

    /// Runs inside the hub, where the cables' ends are.
    fn apply(&self) -> Result<()> {
        for node in &self.nodes {
            let filter = self.filter(node);
            if filter.is_empty() {
                // An error means that there was none.
                let _ = run(&["tc", "filter", "del", "dev", &node.cable, "ingress"]);
                continue;
            }
            let code = filter.bytecode();
            let place =
                ["tc", "filter", "replace", "dev", &node.cable, "ingress", "prio", "1", "handle", "1"];
            let program = ["protocol", "all", "bpf", "bytecode", &code, "da"];
            run(&[&place[..], &program[..]].concat())?;
        }
        Ok(())
    }

    /// Whether a connection from one node to the other's port comes about within a second.
    pub(crate) fn connects(&self, from: &str, to: &str, port: u16) -> bool {
        let (Some(from), Some(to)) = (self.node(from), self.node(to)) else { return false };
        let line = format!("exec 3<>/dev/tcp/{}/{port}", to.ip);
        run_in(&from.enter(), &["timeout", "1", "bash", "-c", &line]).is_ok()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if self.owned {
            for namespace in self.nodes.iter().map(|node| &node.namespace).chain([&self.hub]) {
                // An error means that it was not made.
                let _ = run(&["ip", "netns", "del", namespace]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_faults_are_healed_one_by_one() {
        let network = Network::of("occhaos4194304", 3, 4);
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        network.faults().blocked.insert(1, vec![pair("c1", "c2"), pair("c1", "c3")]);
        network.faults().blocked.insert(2, vec![pair("c1", "c2")]);
        network.faults().loss.insert(3, (vec!["c1".to_owned()], 200));
        let c1 = network.nodes[0].clone();
        assert_eq!(network.filter(&c1).blocked.len(), 2);
        network.faults().blocked.remove(&1);
        let filter = network.filter(&c1);
        assert_eq!((filter.blocked, filter.loss_per_mille), (vec![network.nodes[1].ip], 200));
        assert!(network.filter(&network.nodes[1]).is_empty(), "the way back is open: one-way");
        assert!(network.nodes.iter().all(|node| node.cable.len() <= 15), "the kernel takes no longer name");
    }
}
