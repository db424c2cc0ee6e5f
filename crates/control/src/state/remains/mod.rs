//! What is left of a cluster whose coordinators are all gone, and the state that is made of it: sealed checkpoints, told
//! by the `COMMIT`s of a bucket or by the seals that agents keep beside the bytes.
//!
//! ```text
//!  tellings (bucket, agents) ─► clusters ─► one is chosen ─► checkpoints that every rank has bytes of ─► jobs ─► state
//!                                                      └─► left out, each with the reason
//! ```
//! A seal says what was saved, and by which job. It does not say whether that job had ended since: a job comes back as one
//! that waits to run, unless somebody or something says that it had ended.

mod found;
mod lineage;
mod restore;

pub use found::{FoundNode, FoundSeal, LeftOut, Remains, SealSource};
pub use lineage::Lineage;
pub use restore::{Restored, RestoredJob};
