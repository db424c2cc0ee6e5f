//! outlast-consensus
