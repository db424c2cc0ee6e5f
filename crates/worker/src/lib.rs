//! outlast-worker
