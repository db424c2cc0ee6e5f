//! `apply` with commands that no leader would propose: it cannot fail, does the same everywhere, and leaves a state that a
//! snapshot can carry and the planner can look at.

use outlast_control::plan::{Now, Observations, plan};
use outlast_control::state::{
    ClusterState, Envelope, decode_batch, decode_state, encode_batch, encode_state,
};
use outlast_types::{BootTime, WallTime};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::decode::{BATCH, STATE};
use crate::edit::{Edit, edited, edits};

/// A command of the golden batch, as it is or edited; one that does not decode any more is left out.
fn command(all: &[Envelope], which: &Index, edits: Option<&Vec<Edit>>) -> Option<Envelope> {
    let envelope = which.get(all).clone();
    let Some(edits) = edits else { return Some(envelope) };
    decode_batch(&edited(&encode_batch(&[envelope]), edits)).ok()?.pop()
}

fn run(mut state: ClusterState, commands: &[Envelope]) -> ClusterState {
    let from = state.applied;
    for (index, envelope) in (from + 1..).zip(commands) {
        state.apply(index, envelope);
    }
    state
}

fn commands() -> impl Strategy<Value = Vec<Envelope>> {
    let all = decode_batch(BATCH).expect("golden");
    let one = (any::<Index>(), prop::option::weighted(0.7, edits()));
    prop::collection::vec(one, 1..40).prop_map(move |chosen| {
        chosen.iter().filter_map(|(which, edits)| command(&all, which, edits.as_ref())).collect()
    })
}

proptest! {
    #[test]
    fn arbitrary_commands_are_applied_the_same_everywhere(commands in commands(), from_golden in any::<bool>()) {
        let start = || match from_golden {
            true => decode_state(STATE).expect("golden"),
            false => ClusterState::new(),
        };
        let (one, two) = (run(start(), &commands), run(start(), &commands));
        let bytes = encode_state(&one);
        prop_assert_eq!(&bytes, &encode_state(&two), "two coordinators differ");
        let half = commands.len() / 2;
        let installed = decode_state(&encode_state(&run(start(), &commands[..half]))).expect("a snapshot");
        prop_assert_eq!(&bytes, &encode_state(&run(installed, &commands[half..])), "a snapshot in between is seen");
        let now = Now { boot: BootTime(1_000_000), wall: WallTime(1_000_000) };
        let mut seen = Observations::new(BootTime(0));
        seen.follow(&one, now);
        plan(&one, &seen, now);
    }
}
