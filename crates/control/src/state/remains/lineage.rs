//! Which clusters the tellings are of. A cluster that went on from another is that cluster, under its newest name.

use std::collections::{BTreeMap, BTreeSet};

use outlast_types::{ClusterId, JobId};

use super::Remains;

/// A cluster and those that it goes on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// Its newest name that was told.
    pub cluster: ClusterId,
    /// Oldest first.
    pub predecessors: Vec<ClusterId>,
    pub jobs: usize,
    pub checkpoints: usize,
}

impl Lineage {
    pub(super) fn has(&self, cluster: &ClusterId) -> bool {
        self.cluster == *cluster || self.predecessors.contains(cluster)
    }
}

impl Remains {
    /// The clusters that were told of, by their newest names. A cluster that was restored twice is two.
    pub fn lineages(&self) -> Vec<Lineage> {
        // The longest telling: an old seal knows fewer predecessors than a newer one of the same cluster.
        let mut told: BTreeMap<&ClusterId, &[ClusterId]> = BTreeMap::new();
        for (cluster, predecessors) in self.names() {
            let known = told.entry(cluster).or_default();
            if predecessors.len() > known.len() {
                *known = predecessors;
            }
        }
        let succeeded: BTreeSet<&ClusterId> = told.values().copied().flatten().collect();
        let newest = told.iter().filter(|(cluster, _)| !succeeded.contains(*cluster));
        newest.map(|(cluster, predecessors)| self.lineage(cluster, predecessors)).collect()
    }

    fn names(&self) -> impl Iterator<Item = (&ClusterId, &[ClusterId])> {
        let seals = self.seals.iter().map(|seal| (&seal.cluster, seal.predecessors.as_slice()));
        let nodes = self.nodes.iter();
        seals.chain(nodes.filter_map(|node| Some((node.cluster.as_ref()?, node.predecessors.as_slice()))))
    }

    fn lineage(&self, cluster: &ClusterId, predecessors: &[ClusterId]) -> Lineage {
        let (cluster, predecessors) = (cluster.clone(), predecessors.to_vec());
        let mut lineage = Lineage { cluster, predecessors, jobs: 0, checkpoints: 0 };
        let seals = self.seals.iter().filter(|seal| lineage.has(&seal.cluster));
        let checkpoints: BTreeSet<_> = seals.map(|seal| (seal.attempt, seal.seq)).collect();
        let jobs: BTreeSet<JobId> = checkpoints.iter().map(|(attempt, _)| attempt.group.job).collect();
        (lineage.jobs, lineage.checkpoints) = (jobs.len(), checkpoints.len());
        lineage
    }
}
