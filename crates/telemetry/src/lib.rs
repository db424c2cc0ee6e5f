//! How Outlast's processes tell what they do: log lines ([`logging`]) and metrics ([`metrics`]).
//!
//! Holds names, not decisions: the field names that all crates share ([`fields`]), and the metrics with their label
//! caps. Losing any of it stops no job.

pub mod coordinator;
pub mod exposition;
pub mod fields;
pub mod logging;
pub mod metrics;

pub use coordinator::{CoordinatorMetrics, checkpoint_histogram};
pub use exposition::Exposition;
pub use logging::{LogFormat, LoggingError};
pub use metrics::{CappedFamily, FloatGauge, Labels, MetricRegistry};
