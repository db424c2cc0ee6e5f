//! One seed from its beginning to its end, and what came of it.

use crate::checks::Violation;
use crate::coverage::Coverage;
use crate::planted::Bug;
use crate::trace::Trace;
use crate::world::World;

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Report {
    pub seed: u64,
    pub events: u64,
    /// Simulated time.
    pub simulated_us: u64,
    /// Of every event in its order.
    pub digest: u64,
    pub coverage: Coverage,
    pub violation: Option<Violation>,
    /// Every line, where it was asked for.
    pub trace: Vec<String>,
}

/// Runs a seed, with a planted bug where one is named.
pub fn run(seed: u64, bug: Option<Bug>, traced: bool) -> Report {
    let trace = if traced { Trace::on() } else { Trace::off() };
    let _switched = bug.map(Bug::switch_on);
    let mut world = World::new(seed, trace, bug.and_then(Bug::in_model));
    world.live();
    Report {
        seed,
        events: world.events,
        simulated_us: world.now,
        digest: world.digest,
        trace: world.trace.take(),
        coverage: world.cover,
        violation: world.broken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_the_same_run_twice_line_by_line() {
        let (first, second) = (run(3, None, true), run(3, None, true));
        assert!(first.violation.is_none(), "{:?}", first.violation);
        assert_eq!((first.digest, first.events), (second.digest, second.events));
        assert!(first.trace == second.trace, "the traces differ");
        assert!(first.trace.len() > 1_000, "something happened");
        assert_ne!(run(4, None, false).digest, first.digest, "another seed is another run");
    }

    #[test]
    fn an_acknowledgement_before_the_disk_has_it_is_found() {
        let bug =
            Bug::all().into_iter().find(|bug| bug.name == "acknowledge-before-sync").expect("it is listed");
        let broken = run(1, Some(bug), false).violation.expect("it is found");
        assert!(broken.invariant.starts_with("5, 9"), "{broken:?}");
    }
}
