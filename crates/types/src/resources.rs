//! What a worker needs and what a node has.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ByteSize;

/// What one worker needs.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    pub memory: ByteSize,
    /// Whole devices.
    pub gpus: u32,
    /// Counted resources with names of the operator's own (licences, FPGA slots).
    pub custom: BTreeMap<String, u64>,
}

/// One GPU as the agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GpuDevice {
    /// The index that `CUDA_VISIBLE_DEVICES` takes.
    pub index: u32,
    pub model: String,
}

/// What a node has to give.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeResources {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    pub memory: ByteSize,
    pub gpus: Vec<GpuDevice>,
    pub custom: BTreeMap<String, u64>,
}

impl NodeResources {
    /// Whether an empty node of this kind could hold `wanted`.
    pub fn could_ever_fit(&self, wanted: &Resources) -> bool {
        wanted.cpu_millis <= self.cpu_millis
            && wanted.memory <= self.memory
            && wanted.gpus as usize <= self.gpus.len()
            && wanted.custom.iter().all(|(name, n)| self.custom.get(name).is_some_and(|have| have >= n))
    }
}
