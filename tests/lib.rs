//! Nothing but a place for the test binary `all`: see `main.rs`.
