//! outlast-agent
