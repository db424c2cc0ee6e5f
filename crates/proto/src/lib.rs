//! outlast-proto
