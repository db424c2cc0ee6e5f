//! What the clients know together: which jobs there are, which run, and which submissions have no answer yet.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::history::JobSeen;
use crate::rng::Rng;

/// A job whose submission was answered.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) id: String,
    pub(crate) name: String,
    /// It has workers, and ends by itself.
    pub(crate) is_real: bool,
    pub(crate) is_over: bool,
    pub(crate) is_cancelled: bool,
}

/// A submission that nobody answered: repeated at the end, when somebody does.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub(crate) request: String,
    pub(crate) name: String,
    pub(crate) spec: String,
}

#[derive(Default)]
struct Inner {
    known: BTreeMap<String, Known>,
    order: Vec<String>,
    open: Vec<Open>,
}

#[derive(Default)]
pub(crate) struct Board(Mutex<Inner>);

/// Reads look at the newest ones, where things change.
const NEWEST: usize = 40;

impl Board {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, id: &str, name: &str, is_real: bool) {
        let mut inner = self.inner();
        if !inner.known.contains_key(id) {
            inner.order.push(id.to_owned());
            let (id, name) = (id.to_owned(), name.to_owned());
            inner.known.insert(id.clone(), Known { id, name, is_real, is_over: false, is_cancelled: false });
        }
    }

    pub(crate) fn leave_open(&self, open: Open) {
        self.inner().open.push(open);
    }

    pub(crate) fn take_open(&self) -> Vec<Open> {
        std::mem::take(&mut self.inner().open)
    }

    pub(crate) fn saw(&self, seen: &JobSeen) {
        if let Some(known) = self.inner().known.get_mut(&seen.id) {
            known.is_over |= seen.is_over();
        }
    }

    pub(crate) fn cancelled(&self, id: &str) {
        if let Some(known) = self.inner().known.get_mut(id) {
            known.is_cancelled = true;
        }
    }

    pub(crate) fn running(&self) -> Vec<Known> {
        self.inner().known.values().filter(|known| known.is_real && !known.is_over).cloned().collect()
    }

    /// Jobs without workers that nobody has cancelled yet.
    pub(crate) fn parked(&self) -> Vec<Known> {
        self.inner().known.values().filter(|known| !known.is_real && !known.is_cancelled).cloned().collect()
    }

    pub(crate) fn all(&self) -> Vec<Known> {
        self.inner().known.values().cloned().collect()
    }

    /// One of the newest, or one that runs.
    pub(crate) fn pick(&self, rng: &mut Rng) -> Option<String> {
        let running = self.running();
        if rng.chance(50) && !running.is_empty() {
            return rng.pick(&running).map(|known| known.id.clone());
        }
        let inner = self.inner();
        rng.pick(&inner.order[inner.order.len().saturating_sub(NEWEST)..]).cloned()
    }
}
