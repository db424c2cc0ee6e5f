//! outlast-digits
