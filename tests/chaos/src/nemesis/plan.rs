//! The schedule: a pure function of seed, length and kinds.

use anyhow::{Result, ensure};

use super::kind::{Kind, Track};
use crate::rng::Rng;

/// One fault to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) id: u32,
    /// From the start of the faults.
    pub(crate) at_ms: u64,
    pub(crate) hold_ms: u64,
    pub(crate) kind: Kind,
    /// Seeds what is chosen when its turn comes: which node, which file.
    pub(crate) roll: u64,
}

/// Between two faults of a track: short, because faults that meet are what finds bugs.
const GAP_MS: (u64, u64) = (500, 3_000);

/// Deals shuffled decks of the kinds to their tracks until the time is over.
///
/// # Errors
/// When the time is too short for each kind to have its turn.
pub(crate) fn plan(seed: u64, length_ms: u64, kinds: &[Kind]) -> Result<Vec<Planned>> {
    let mut all = Vec::new();
    for track in [Track::Coordinators, Track::Agents, Track::Network] {
        let deck: Vec<Kind> = kinds.iter().copied().filter(|kind| kind.about().track == track).collect();
        if deck.is_empty() {
            continue;
        }
        let dealt = deal(&mut Rng::fork(seed, &format!("{track:?}")), length_ms, &deck);
        for kind in &deck {
            let needed_s = needed_ms(&deck) / 1_000;
            ensure!(
                dealt.iter().any(|planned| planned.kind == *kind),
                "{} has no turn in {} s: the {} faults of its kind need about {needed_s} s; take more time or fewer",
                kind.name(),
                length_ms / 1_000,
                deck.len()
            );
        }
        all.extend(dealt);
    }
    all.sort_by_key(|planned| planned.at_ms);
    for (id, planned) in (1..).zip(&mut all) {
        planned.id = id;
    }
    Ok(all)
}

fn deal(rng: &mut Rng, length_ms: u64, deck: &[Kind]) -> Vec<Planned> {
    let mut dealt = Vec::new();
    let mut at_ms = rng.between(500, 2_000);
    loop {
        let mut deck = deck.to_vec();
        rng.shuffle(&mut deck);
        for kind in deck {
            let about = kind.about();
            let hold_ms = rng.between(about.hold_ms.0, about.hold_ms.1);
            let roll = rng.next();
            let end_ms = at_ms + hold_ms + about.around_ms;
            if end_ms > length_ms {
                return dealt;
            }
            dealt.push(Planned { id: 0, at_ms, hold_ms, kind, roll });
            at_ms = end_ms + rng.between(GAP_MS.0, GAP_MS.1);
        }
    }
}

fn needed_ms(deck: &[Kind]) -> u64 {
    let each = deck.iter().map(|kind| kind.about().hold_ms.1 + kind.about().around_ms + GAP_MS.1);
    each.sum()
}

#[cfg(test)]
mod tests {
    use super::super::kind::choose;
    use super::*;

    #[test]
    fn a_schedule_follows_from_the_seed_and_gives_everyone_a_turn() {
        let kinds = choose("all").expect("known");
        let one = plan(7, 300_000, &kinds).expect("long enough");
        assert_eq!(one, plan(7, 300_000, &kinds).expect("the same"));
        assert_ne!(one, plan(8, 300_000, &kinds).expect("another"));
        for kind in &kinds {
            assert!(one.iter().any(|planned| planned.kind == *kind), "{kind:?}");
        }
        let ids: Vec<u32> = one.iter().map(|planned| planned.id).collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn faults_of_one_track_do_not_meet_and_those_of_two_do() {
        let planned = plan(3, 300_000, &choose("all").expect("known")).expect("long enough");
        let meet = |a: &Planned, b: &Planned| a.at_ms < b.at_ms + b.hold_ms && b.at_ms < a.at_ms + a.hold_ms;
        let pairs =
            || planned.iter().flat_map(|a| planned.iter().map(move |b| (a, b))).filter(|(a, b)| a.id < b.id);
        let same = |a: &Planned, b: &Planned| a.kind.about().track == b.kind.about().track;
        assert!(!pairs().any(|(a, b)| same(a, b) && meet(a, b)));
        assert!(pairs().any(|(a, b)| !same(a, b) && meet(a, b)));
    }

    #[test]
    fn a_run_that_is_too_short_for_its_faults_is_refused() {
        let err = plan(1, 20_000, &choose("all").expect("known")).expect_err("too short");
        assert!(err.to_string().contains("no turn"), "{err}");
        plan(1, 100_000, &choose("short").expect("known")).expect("two minutes, healing and checks left out");
        assert!(choose("kil").is_err());
    }
}
