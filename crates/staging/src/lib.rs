//! What a worker and its agent agree on about staging: a slot of shared memory with a header, and a checkpoint's parts in
//! it. A small crate of its own, because every worker carries it.
//!
//! ```text
//!  0      header (state, step, length)   the agent writes FREE and WRITING, the worker only STAGED
//!  2048   note: the checkpoint's number  the agent's alone, so that its successor knows what was opened
//!  4096   the parts, packed as the folder that a restore gives back
//! ```
//! A slot is a plain file, usually on tmpfs: any language can map it, and an agent that was restarted finds it again. The
//! agent reads it with `pread`, and so learns of a file that somebody cut short by an error instead of a SIGBUS. The worker,
//! which copies into it at each save, keeps it mapped ([`MappedSlot`]); a slot that cannot be mapped, or that lies on the
//! disk, it writes with `pwrite` ([`Parts::write_at`]).

mod header;
mod mapped;
mod outside;
mod parts;

pub use header::{DATA_AT, HeaderError, Note, SlotHeader, SlotState};
pub use mapped::MappedSlot;
pub use outside::{find_outside, mark_outside, remove_outside};
pub use parts::{PART_NAME_BYTES_MAX, Parts, PartsError};
