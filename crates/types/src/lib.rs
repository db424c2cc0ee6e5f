//! The words of Outlast as types: ids, job specifications, resources, causes, times and sizes.
//!
//! Pure: no I/O, no clock, no randomness. Every constructor validates, so a value of these types is a valid one.

mod cause;
mod digest;
mod duration;
mod id;
mod pace;
mod profile;
mod resources;
pub mod spec;
mod time;
mod units;

pub use cause::{Actor, Cause, CauseClass, ExitStatus};
pub use digest::{Digest, DigestParseError};
pub use duration::{Span, SpanParseError};
pub use id::{
    AttemptId, BootId, CheckpointSeq, ClusterId, CoordinatorId, DiskId, GroupId, IdParseError, JobId, NodeId,
    RegistrationId, RequestId,
};
pub use pace::Pace;
pub use profile::{Profile, ProfileError, Timers};
pub use resources::{GpuDevice, NodeResources, Resources};
pub use spec::{CheckpointPolicy, Durability, JobKind, JobSpec, SpecError, Workers};
pub use time::{BootTime, Millis, WallTime};
pub use units::{ByteSize, ByteSizeParseError};
