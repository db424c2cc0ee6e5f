//! outlast-client
