//! outlast-tests
