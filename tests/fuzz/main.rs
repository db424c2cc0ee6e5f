//! Bytes that nobody wrote: what reads from disk or network must answer them with an error, never with a panic and never
//! with memory that a wrong length asked for. Valid bytes are edited at random; where a checksum would catch every edit,
//! it is made to fit again.
//!
//! `PROPTEST_CASES` says how many of each kind are tried; `cargo xtask fuzz N` sets it. A failure prints the shortest
//! edits that do it.

use std::alloc::System;

use cap::Cap;

mod apply;
mod decode;
mod edit;
mod files;
mod wire;

/// All tests of this binary together: an allocation above it ends the process, and names its size.
const MEMORY_BYTES_MAX: usize = 512 << 20;

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, MEMORY_BYTES_MAX);
