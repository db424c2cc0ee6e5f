//! One worker on this node: its folder, what the agent's parts share about it, its API, and how it is started.

pub(crate) mod api;
mod bundle;
mod env;
mod folder;
mod handle;
mod log_dir;
mod memory;
mod ready;
mod rendezvous;
mod restore;
pub(crate) mod resume;
pub(crate) mod save;
mod slot_write;
mod slots;
mod socket;
pub(crate) mod staged;
pub(crate) mod start;
mod twin;

pub(crate) use bundle::prune as prune_bundles;
pub(crate) use folder::{Record, WorkerDir};
pub(crate) use handle::WorkerHandle;
pub(crate) use log_dir::{keep_newest_logs, worker_dirs};
pub(crate) use memory::is_tmpfs;
pub(crate) use ready::watch_ready;
pub(crate) use slots::sweep as sweep_slots;
pub(crate) use socket::serve_socket;
pub(crate) use twin::Fetches;
