//! Where the ranks of a gang go: all of them or none. Deterministic: the same state gives the same places.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use outlast_types::{JobId, JobSpec, NodeId, Resources};

use super::Observations;
use crate::planted::planted;
use crate::state::{Attempt, ClusterState, Group, Job, Node, Placed};

/// Nodes that a reason for people names.
const LISTED_MAX: usize = 4;

/// What is left of one node while a pass plans.
#[derive(Clone, Debug)]
pub(super) struct Slot<'a> {
    pub(super) node: &'a Node,
    cpu_millis: u64,
    memory: u64,
    gpus: Vec<u32>,
    custom: BTreeMap<String, u64>,
    /// Where ranks that are not spread over a label land softly apart.
    domain: String,
}

/// Free resources of every node that takes work, less what this pass has given out already.
pub(super) struct Ledger<'a> {
    slots: BTreeMap<&'a NodeId, Slot<'a>>,
    /// Nodes that would take work if they were well, with what is wrong.
    ailing: Vec<(&'a Node, &'a str)>,
    /// Wants that found no place in this pass, with the reason: ten thousand alike cost one search.
    failed: BTreeMap<String, String>,
    /// Places of ranks that this pass has given out: a service's replicas see each other.
    given: BTreeMap<JobId, Vec<NodeId>>,
}

/// What one gang wants.
pub(super) struct Wanted<'a> {
    pub(super) job: &'a Job,
    pub(super) group: &'a Group,
    /// Ranks that stay where they were.
    pub(super) stay: BTreeMap<u32, NodeId>,
    /// Not this node for that rank, if there is another one: it just failed there.
    pub(super) avoid: BTreeMap<u32, NodeId>,
}

impl<'a> Ledger<'a> {
    pub(super) fn new(state: &'a ClusterState, seen: &'a Observations) -> Self {
        let heard = state.nodes.values();
        let heard = heard.filter(|node| node.accepts_work() && !seen.suspects.contains(&node.id));
        let (ailing, usable): (Vec<_>, Vec<_>) = heard.partition(|node| seen.ailing.contains_key(&node.id));
        let complaint = |node: &'a Node| Some((node, seen.ailing.get(&node.id)?.as_str()));
        Self {
            slots: usable.into_iter().map(|node| (&node.id, slot(state, node))).collect(),
            ailing: ailing.into_iter().filter_map(complaint).collect(),
            failed: BTreeMap::new(),
            given: BTreeMap::new(),
        }
    }

    pub(super) fn is_usable(&self, node: &NodeId) -> bool {
        self.slots.contains_key(node)
    }

    pub(super) fn usable(&self) -> usize {
        self.slots.len()
    }

    /// Whether a node may hold a rank of the job at all, full or not.
    pub(super) fn suits(&self, job: &JobSpec, node: &NodeId) -> bool {
        self.slots.get(node).is_some_and(|slot| suits(job, slot.node))
    }

    /// Places all ranks and takes what they need, or takes nothing and says why.
    pub(super) fn place(&mut self, wanted: &Wanted<'_>) -> Result<Vec<Placed>, String> {
        let signature = signature(wanted);
        if let Some(reason) = signature.as_ref().and_then(|signature| self.failed.get(signature)) {
            return Err(reason.clone());
        }
        let mut taken: Vec<(u32, NodeId, Vec<u32>)> = Vec::new();
        let mut spread = Spread::of(self, wanted);
        let (_, world) = wanted.job.spec.shape();
        // Those that stay first: nobody may take their places.
        let order = (0..world).filter(|rank| wanted.stay.contains_key(rank));
        let order = order.chain((0..world).filter(|rank| !wanted.stay.contains_key(rank)));
        for rank in order {
            let Some(node) = self.choose(wanted, rank, &spread) else {
                let reason = self.why_not(wanted, rank);
                self.undo(wanted, &taken);
                if let Some(signature) = signature {
                    self.failed.insert(signature, reason.clone());
                }
                return Err(reason);
            };
            let Some(slot) = self.slots.get_mut(&node) else { continue };
            spread.count(slot);
            let gpus = slot.take(&wanted.job.spec.resources);
            taken.push((rank, node, gpus));
        }
        taken.sort();
        if planted!(LoseLastRank) && taken.len() > 1 {
            taken.pop();
        }
        let nodes = taken.iter().map(|(_, node, _)| node.clone());
        self.given.entry(wanted.job.id).or_default().extend(nodes);
        let placed = |(rank, node, gpus): (u32, NodeId, Vec<u32>)| {
            let registration = self.slots.get(&node)?.node.registration;
            Some(Placed { rank, node, registration, gpus })
        };
        Ok(taken.into_iter().filter_map(placed).collect())
    }

    fn choose(&self, wanted: &Wanted<'_>, rank: u32, spread: &Spread<'_>) -> Option<NodeId> {
        let spec = &wanted.job.spec;
        let fits = |slot: &&Slot<'_>| suits(spec, slot.node) && slot.fits(&spec.resources);
        if let Some(node) = wanted.stay.get(&rank) {
            return self.slots.get(node).filter(fits).map(|slot| slot.node.id.clone());
        }
        let avoided = wanted.avoid.get(&rank);
        // Among equals the first by name: `min_by_key` keeps that one.
        let score = |slot: &&Slot<'_>| {
            let preferred = spec.placement.prefer.iter();
            let preferred =
                preferred.filter(|(name, value)| slot.node.label(name) == Some(value.as_str())).count();
            // GPU work fills up nodes, to leave whole ones for the next gang; other work keeps off GPUs and apart.
            let gpu_room = slot.gpus.len();
            (
                avoided == Some(&slot.node.id),
                Reverse(preferred),
                spread.on(slot),
                gpu_room,
                Reverse(slot.cpu_millis),
            )
        };
        self.slots.values().filter(fits).min_by_key(score).map(|slot| slot.node.id.clone())
    }

    fn undo(&mut self, wanted: &Wanted<'_>, taken: &[(u32, NodeId, Vec<u32>)]) {
        for (_, node, gpus) in taken {
            if let Some(slot) = self.slots.get_mut(node) {
                slot.give_back(&wanted.job.spec.resources, gpus);
            }
        }
    }

    /// For people: what would have to change.
    fn why_not(&self, wanted: &Wanted<'_>, rank: u32) -> String {
        let spec = &wanted.job.spec;
        let could = |node: &Node| suits(spec, node) && node.resources.could_ever_fit(&spec.resources);
        let left_out = self.ailing.iter().filter(|(node, _)| could(node));
        let left_out: Vec<String> = left_out.map(|(node, why)| format!("{}: {why}", node.id)).collect();
        let lacks = self.lacks(wanted, rank);
        if left_out.is_empty() {
            return lacks;
        }
        format!("{lacks}; left out because of their health: {}", listed(&left_out))
    }

    fn lacks(&self, wanted: &Wanted<'_>, rank: u32) -> String {
        let spec = &wanted.job.spec;
        let needs = describe(&spec.resources);
        if self.slots.is_empty() {
            return "no node takes new work: all are lost, suspect, cordoned, draining or quarantined"
                .to_owned();
        }
        let suitable: Vec<&Slot<'_>> = self.slots.values().filter(|slot| suits(spec, slot.node)).collect();
        if suitable.is_empty() {
            let fence = if spec.exclusive { " and can fence by cgroup" } else { "" };
            let labels: Vec<String> =
                spec.placement.require.iter().map(|(name, value)| format!("{name}={value}")).collect();
            return format!("no node that takes work has the labels [{}]{fence}", labels.join(", "));
        }
        if !suitable.iter().any(|slot| slot.node.resources.could_ever_fit(&spec.resources)) {
            let most = suitable.iter().map(|slot| slot.node.resources.gpus.len()).max().unwrap_or(0);
            let more_gpus = if spec.resources.gpus as usize > most {
                format!(" (the most GPUs that a node has is {most})")
            } else {
                String::new()
            };
            return format!("more than any node has: a worker needs {needs}{more_gpus}");
        }
        let free: Vec<String> = suitable.iter().map(|slot| slot.describe_free()).collect();
        format!("no node has {needs} free for rank {rank}: {}", listed(&free))
    }
}

/// The first few; the rest is a number.
fn listed(items: &[String]) -> String {
    let shown = items.iter().take(LISTED_MAX).map(String::as_str).collect::<Vec<_>>().join("; ");
    match items.len().saturating_sub(LISTED_MAX) {
        0 => shown,
        more => format!("{shown}, and {more} more"),
    }
}

fn slot<'a>(state: &ClusterState, node: &'a Node) -> Slot<'a> {
    let mut free = Slot {
        node,
        cpu_millis: node.resources.cpu_millis,
        memory: node.resources.memory.0,
        gpus: node.resources.gpus.iter().map(|gpu| gpu.index).collect(),
        custom: node.resources.custom.clone(),
        domain: node.failure_domain(),
    };
    for (_, _, _, seat) in state.held_on(&node.id).filter(|_| !planted!(DoubleCapacity)) {
        free.gpus.retain(|gpu| !seat.gpus.contains(gpu));
        free.subtract(&seat.resources);
    }
    free
}

impl Slot<'_> {
    fn fits(&self, wanted: &Resources) -> bool {
        wanted.cpu_millis <= self.cpu_millis
            && wanted.memory.0 <= self.memory
            && wanted.gpus as usize <= self.gpus.len()
            && wanted
                .custom
                .iter()
                .all(|(name, count)| self.custom.get(name).is_some_and(|have| have >= count))
    }

    fn subtract(&mut self, used: &Resources) {
        self.cpu_millis = self.cpu_millis.saturating_sub(used.cpu_millis);
        self.memory = self.memory.saturating_sub(used.memory.0);
        for (name, count) in &used.custom {
            if let Some(left) = self.custom.get_mut(name) {
                *left = left.saturating_sub(*count);
            }
        }
    }

    /// Only after `fits`. The lowest device indices first.
    fn take(&mut self, wanted: &Resources) -> Vec<u32> {
        self.subtract(wanted);
        self.gpus.sort_unstable();
        self.gpus.drain(..(wanted.gpus as usize).min(self.gpus.len())).collect()
    }

    fn give_back(&mut self, taken: &Resources, gpus: &[u32]) {
        self.cpu_millis += taken.cpu_millis;
        self.memory += taken.memory.0;
        self.gpus.extend(gpus);
        for (name, count) in &taken.custom {
            *self.custom.entry(name.clone()).or_default() += count;
        }
    }

    fn describe_free(&self) -> String {
        format!(
            "{} has {} of {} cpus, {} of {} memory, {} of {} GPUs free",
            self.node.id,
            cpus(self.cpu_millis),
            cpus(self.node.resources.cpu_millis),
            outlast_types::ByteSize(self.memory),
            self.node.resources.memory,
            self.gpus.len(),
            self.node.resources.gpus.len()
        )
    }
}

fn suits(spec: &JobSpec, node: &Node) -> bool {
    let labelled =
        spec.placement.require.iter().all(|(name, value)| node.label(name) == Some(value.as_str()));
    labelled && (!spec.exclusive || node.features.cgroup_fence)
}

fn cpus(millis: u64) -> String {
    if millis.is_multiple_of(1_000) {
        (millis / 1_000).to_string()
    } else {
        format!("{:.1}", millis as f64 / 1_000.0)
    }
}

fn describe(wanted: &Resources) -> String {
    let mut parts = Vec::new();
    match wanted.cpu_millis {
        0 => {}
        1_000 => parts.push("1 cpu".to_owned()),
        millis => parts.push(format!("{} cpus", cpus(millis))),
    }
    if wanted.memory.0 > 0 {
        parts.push(format!("{} memory", wanted.memory));
    }
    match wanted.gpus {
        0 => {}
        1 => parts.push("1 GPU".to_owned()),
        gpus => parts.push(format!("{gpus} GPUs")),
    }
    let custom = wanted.custom.iter().filter(|(_, count)| **count > 0);
    parts.extend(custom.map(|(name, count)| format!("{count} {name}")));
    if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
}

/// Wants that are alike fail alike, as free room only shrinks while a pass plans. Not for ranks that stay somewhere.
fn signature(wanted: &Wanted<'_>) -> Option<String> {
    let spec = &wanted.job.spec;
    let (_, world) = spec.shape();
    let rest = (&spec.resources, &spec.placement.require, spec.exclusive, world);
    wanted.stay.is_empty().then(|| format!("{rest:?}"))
}

/// How many ranks each label value, or failure domain, has already.
struct Spread<'w> {
    key: Option<&'w str>,
    counts: BTreeMap<String, usize>,
}

impl<'w> Spread<'w> {
    /// Starts from the job's other groups: the replicas of a service are spread too.
    fn of(ledger: &Ledger<'_>, wanted: &Wanted<'w>) -> Self {
        let mut spread = Self { key: wanted.job.spec.placement.spread.as_deref(), counts: BTreeMap::new() };
        let others = wanted.job.groups.iter().filter(|group| group.id != wanted.group.id);
        let seats = others.filter_map(Group::current).flat_map(|attempt: &Attempt| &attempt.assignments);
        let given = ledger.given.get(&wanted.job.id).into_iter().flatten();
        let nodes = seats.map(|seat| &seat.node).chain(given);
        for slot in nodes.filter_map(|node| ledger.slots.get(node)) {
            spread.count(slot);
        }
        spread
    }

    fn value<'s>(&self, slot: &'s Slot<'_>) -> &'s str {
        match self.key {
            Some(key) => slot.node.label(key).unwrap_or_default(),
            None => &slot.domain,
        }
    }

    fn on(&self, slot: &Slot<'_>) -> usize {
        self.counts.get(self.value(slot)).copied().unwrap_or(0)
    }

    fn count(&mut self, slot: &Slot<'_>) {
        *self.counts.entry(self.value(slot).to_owned()).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use outlast_types::ByteSize;

    use super::*;

    #[test]
    fn what_a_worker_needs_is_said_without_what_it_does_not_need() {
        let one = Resources { cpu_millis: 1_000, gpus: 1, ..Resources::default() };
        assert_eq!(describe(&one), "1 cpu, 1 GPU");
        let more =
            Resources { cpu_millis: 1_500, memory: ByteSize(1 << 30), gpus: 2, ..Resources::default() };
        assert_eq!(describe(&more), "1.5 cpus, 1GiB memory, 2 GPUs");
    }
}
