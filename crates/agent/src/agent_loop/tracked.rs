//! A worker as the loop tracks it.

use std::sync::Arc;

use outlast_control::state::ExitRecord;
use outlast_process::Keeper;

use crate::reconcile::Life;
use crate::worker::WorkerHandle;

#[derive(Debug)]
pub(crate) struct Tracked {
    pub(crate) life: Life,
    /// `None` for one that never was here.
    pub(crate) handle: Option<Arc<WorkerHandle>>,
    /// `None` until it has started, and while its keeper does not answer an adoption.
    pub(crate) keeper: Option<Keeper>,
    pub(crate) is_exclusive: bool,
    /// Found at the agent's start: its processes may live although no keeper has answered yet.
    pub(crate) is_adopted: bool,
    /// Stopped because the lease ran out.
    pub(crate) is_fenced: bool,
    /// It can serve, as it or its port said.
    pub(crate) is_ready: bool,
    /// The log was, or will be, told so.
    pub(crate) said_ready: bool,
    /// How it ended; while it is still alive: but for processes that could not be killed.
    pub(crate) exit: Option<ExitRecord>,
    /// The log has its release.
    pub(crate) is_applied: bool,
}

impl Tracked {
    pub(crate) fn new(handle: Arc<WorkerHandle>, life: Life) -> Self {
        let is_exclusive = handle.assigned.borrow().exclusive;
        Self {
            life,
            handle: Some(handle),
            keeper: None,
            is_exclusive,
            is_adopted: false,
            is_fenced: false,
            is_ready: false,
            said_ready: false,
            exit: None,
            is_applied: false,
        }
    }

    /// A tombstone: it will never start here.
    pub(crate) fn never_was() -> Self {
        Self {
            life: Life::Over,
            handle: None,
            keeper: None,
            is_exclusive: false,
            is_adopted: false,
            is_fenced: false,
            is_ready: false,
            said_ready: false,
            exit: None,
            is_applied: false,
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.life != Life::Over
    }

    /// Processes of it may exist.
    pub(crate) fn has_processes(&self) -> bool {
        self.is_alive() && (self.keeper.is_some() || self.is_adopted)
    }

    /// It is being prepared, or its keeper is being started: what becomes of it is not known yet.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.is_alive() && !self.has_processes()
    }
}
