//! outlast-telemetry
