//! outlast-coordinator
