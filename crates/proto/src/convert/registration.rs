//! What an agent says of its node.

use outlast_control::state::{AdoptedWorker, ExitRecord, NodeFeatures, Registration};
use outlast_types::{ByteSize, ExitStatus, GpuDevice, NodeResources, RegistrationId, WallTime};

use super::{FieldError, parse};
use crate::node::v1 as pb;

impl From<NodeResources> for pb::NodeResources {
    fn from(resources: NodeResources) -> Self {
        let NodeResources { cpu_millis, memory, gpus, custom } = resources;
        let gpu = |GpuDevice { index, model }| pb::GpuDevice { index, model };
        Self {
            cpu_millis,
            memory_bytes: memory.0,
            gpus: gpus.into_iter().map(gpu).collect(),
            custom: custom.into_iter().collect(),
        }
    }
}

impl From<pb::NodeResources> for NodeResources {
    fn from(resources: pb::NodeResources) -> Self {
        let pb::NodeResources { cpu_millis, memory_bytes, gpus, custom } = resources;
        let gpu = |pb::GpuDevice { index, model }| GpuDevice { index, model };
        Self {
            cpu_millis,
            memory: ByteSize(memory_bytes),
            gpus: gpus.into_iter().map(gpu).collect(),
            custom: custom.into_iter().collect(),
        }
    }
}

impl From<ExitStatus> for pb::ExitStatus {
    fn from(status: ExitStatus) -> Self {
        use pb::exit_status::Status;
        let status = match status {
            ExitStatus::Code(code) => Status::Code(code),
            ExitStatus::Signal(signal) => Status::Signal(signal),
            ExitStatus::OutOfMemory => Status::OutOfMemory(true),
            ExitStatus::KeeperLost => Status::KeeperLost(true),
            ExitStatus::NotStarted => Status::NotStarted(true),
            ExitStatus::Fenced => Status::Fenced(true),
        };
        Self { status: Some(status) }
    }
}

impl TryFrom<pb::ExitStatus> for ExitStatus {
    type Error = FieldError;

    fn try_from(status: pb::ExitStatus) -> Result<Self, FieldError> {
        use pb::exit_status::Status;
        Ok(match status.status.ok_or(FieldError::missing("status"))? {
            Status::Code(code) => ExitStatus::Code(code),
            Status::Signal(signal) => ExitStatus::Signal(signal),
            Status::OutOfMemory(_) => ExitStatus::OutOfMemory,
            Status::KeeperLost(_) => ExitStatus::KeeperLost,
            Status::NotStarted(_) => ExitStatus::NotStarted,
            Status::Fenced(_) => ExitStatus::Fenced,
        })
    }
}

impl From<ExitRecord> for pb::ExitRecord {
    fn from(record: ExitRecord) -> Self {
        let ExitRecord { status, at, detail, last_lines } = record;
        Self { status: Some(status.into()), at_ms: at.0, detail, last_lines }
    }
}

impl TryFrom<pb::ExitRecord> for ExitRecord {
    type Error = FieldError;

    fn try_from(record: pb::ExitRecord) -> Result<Self, FieldError> {
        let pb::ExitRecord { status, at_ms, detail, last_lines } = record;
        let status = status.ok_or(FieldError::missing("status"))?.try_into()?;
        let mut record = Self { status, at: WallTime(at_ms), detail, last_lines };
        record.bound();
        Ok(record)
    }
}

impl From<Registration> for pb::Registration {
    fn from(registration: Registration) -> Self {
        let Registration {
            node,
            registration,
            serial,
            boot,
            disk,
            address,
            data_address,
            resources,
            labels,
            features: NodeFeatures { cgroup_fence, cgroup_memory, object_store },
            feature_level,
            adopted,
            exited,
        } = registration;
        let worker = |AdoptedWorker { attempt, rank }| pb::WorkerRef { attempt: attempt.to_string(), rank };
        Self {
            node: node.to_string(),
            registration: registration.0,
            serial,
            boot_id: boot.to_string(),
            disk_id: disk.to_string(),
            address,
            data_address: data_address.unwrap_or_default(),
            resources: Some(resources.into()),
            labels: labels.into_iter().collect(),
            cgroup_fence,
            cgroup_memory,
            object_store,
            feature_level,
            adopted: adopted.into_iter().map(worker).collect(),
            exited: exited
                .into_iter()
                .map(|(attempt, rank, exit)| pb::ExitedWorker {
                    attempt: attempt.to_string(),
                    rank,
                    exit: Some(exit.into()),
                })
                .collect(),
        }
    }
}

impl TryFrom<pb::Registration> for Registration {
    type Error = FieldError;

    fn try_from(registration: pb::Registration) -> Result<Self, FieldError> {
        let pb::Registration {
            node,
            registration,
            serial,
            boot_id,
            disk_id,
            address,
            data_address,
            resources,
            labels,
            cgroup_fence,
            cgroup_memory,
            object_store,
            feature_level,
            adopted,
            exited,
        } = registration;
        let worker = |pb::WorkerRef { attempt, rank }| {
            Ok(AdoptedWorker { attempt: parse("adopted.attempt", &attempt)?, rank })
        };
        let ended = |pb::ExitedWorker { attempt, rank, exit }| {
            let exit = exit.ok_or(FieldError::missing("exited.exit"))?;
            Ok((parse("exited.attempt", &attempt)?, rank, exit.try_into()?))
        };
        Ok(Self {
            node: parse("node", &node)?,
            registration: RegistrationId(registration),
            serial,
            boot: parse("boot_id", &boot_id)?,
            disk: parse("disk_id", &disk_id)?,
            address,
            data_address: Some(data_address).filter(|address| !address.is_empty()),
            resources: resources.ok_or(FieldError::missing("resources"))?.into(),
            labels: labels.into_iter().collect(),
            features: NodeFeatures { cgroup_fence, cgroup_memory, object_store },
            feature_level,
            adopted: adopted.into_iter().map(worker).collect::<Result<_, FieldError>>()?,
            exited: exited.into_iter().map(ended).collect::<Result<_, FieldError>>()?,
        })
    }
}
