//! outlast-process
