//! The digits example: a two-layer network learns to read handwritten digits on `WORLD_SIZE` ranks, and comes out bit for
//! bit the same however often it was interrupted.
//!
//! Every rank computes the gradient over its slice of each mini-batch; rank 0 adds them up in the order of the ranks and
//! hands the sum out, so that all ranks hold the same weights after each step. Floating-point operations have one fixed
//! order, there is one small random generator, and a checkpoint holds all of it: weights, momentum, position in the
//! data, random state.
//!
//! | variable | default | meaning |
//! |---|---|---|
//! | `DIGITS_EPOCHS` | 30 | passes over the 1,438 training rows; 45 steps each at the default batch, 1,350 in all |
//! | `DIGITS_BATCH` | 32 | rows in a mini-batch, over all ranks |
//! | `DIGITS_SEED` | 7 | seed of initial weights and of the shuffles |
//! | `DIGITS_STEP_MS` | 0 | sleep after each step, so that a run can be watched |
//! | `DIGITS_RESULT` | unset | file into which rank 0 writes its result as JSON |
//! | `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`, `OUTLAST_ATTEMPT` | one rank alone | set by Outlast |
//!
//! The result depends on `DIGITS_EPOCHS`, `DIGITS_BATCH`, `DIGITS_SEED` and `WORLD_SIZE`, and on nothing else.

mod checkpoint;
mod data;
mod gang;
mod model;
mod rng;
mod run;
mod settings;
mod supervision;
mod trainer;
mod wire;

pub use checkpoint::StateError;
pub use data::Dataset;
pub use gang::{Gang, GangError, Hello, Wish};
pub use run::{RunError, RunResult, exit_code, run};
pub use settings::{Recipe, Settings, SettingsError};
pub use trainer::{Share, Trainer};
pub use wire::{FRAME_MAX, HANDSHAKE_MAX, Kind, WireError, receive, send};
