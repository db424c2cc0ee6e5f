//! What the supervisor wants of this worker, put together from answers and signals. Pure; owned by the worker's shared
//! state, written by the background tasks, read by the training loop.

/// What the supervisor is known to want, as of the newest answer that has come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Save a checkpoint at this step. Stays true until a save succeeds.
    pub checkpoint_due: bool,
    /// Save, then come to an end. Stays true.
    pub stop: bool,
    /// The newest step that the agent is known to have.
    pub delivered_step: Option<u64>,
}

#[derive(Debug, Default)]
pub(crate) struct Wishes {
    known: Report,
    saved_step: Option<u64>,
    fenced: Option<String>,
}

/// What a save has to give back if it fails.
#[derive(Debug)]
pub(crate) struct Saving {
    due_before: bool,
    saved_before: Option<u64>,
}

impl Wishes {
    /// The answer to the report of `step`. An answer to a report from before the newest save does not know of that
    /// save, so its wish is already fulfilled.
    pub(crate) fn answered(&mut self, step: u64, checkpoint_due: bool, stop: bool) {
        self.known.delivered_step = self.known.delivered_step.max(Some(step));
        self.known.stop |= stop;
        if self.saved_step.is_none_or(|saved| step > saved) {
            self.known.checkpoint_due |= checkpoint_due;
        }
    }

    pub(crate) fn checkpoint_now(&mut self) {
        self.known.checkpoint_due = true;
    }

    pub(crate) fn stop(&mut self) {
        self.known.stop = true;
    }

    /// Never taken back: attempt numbers only grow (invariant 21).
    pub(crate) fn fenced(&mut self, reason: String) {
        self.fenced.get_or_insert(reason);
    }

    /// A wish that comes while the save runs is a new one, so the known one ends when it begins.
    pub(crate) fn save_begins(&mut self, step: u64) -> Saving {
        let saving = Saving { due_before: self.known.checkpoint_due, saved_before: self.saved_step };
        self.known.checkpoint_due = false;
        self.saved_step = Some(step);
        saving
    }

    pub(crate) fn save_failed(&mut self, saving: Saving) {
        self.known.checkpoint_due |= saving.due_before;
        self.saved_step = saving.saved_before;
    }

    pub(crate) fn report(&self) -> Result<Report, String> {
        self.fenced.clone().map_or(Ok(self.known), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_lasts_until_a_save_begins() {
        let mut wishes = Wishes::default();
        wishes.answered(7, true, false);
        wishes.answered(8, false, false);
        let known = wishes.report().expect("not fenced");
        assert_eq!(known, Report { checkpoint_due: true, stop: false, delivered_step: Some(8) });
        let _ = wishes.save_begins(9);
        assert!(!wishes.report().expect("not fenced").checkpoint_due);
    }

    #[test]
    fn an_answer_from_before_the_save_asks_for_nothing() {
        let mut wishes = Wishes::default();
        let _ = wishes.save_begins(9);
        wishes.answered(9, true, false);
        assert!(!wishes.report().expect("not fenced").checkpoint_due);
        wishes.answered(10, true, false);
        assert!(wishes.report().expect("not fenced").checkpoint_due);
    }

    #[test]
    fn a_failed_save_leaves_the_wish() {
        let mut wishes = Wishes::default();
        wishes.checkpoint_now();
        let saving = wishes.save_begins(3);
        wishes.save_failed(saving);
        assert!(wishes.report().expect("not fenced").checkpoint_due);
        wishes.answered(3, true, false);
        assert!(wishes.report().expect("not fenced").checkpoint_due);
    }

    #[test]
    fn stop_and_fencing_are_never_taken_back() {
        let mut wishes = Wishes::default();
        wishes.stop();
        wishes.answered(1, false, false);
        assert!(wishes.report().expect("not fenced").stop);
        wishes.fenced("attempt 2 is current".into());
        wishes.fenced("later".into());
        assert_eq!(wishes.report(), Err("attempt 2 is current".into()));
    }
}
