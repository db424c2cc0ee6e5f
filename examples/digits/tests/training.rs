//! The promise of the example: the same bits, however often it was interrupted; and a network that can read.

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use outlast_digits::{Dataset, Gang, Hello, Recipe, StateError, Trainer, Wish};

const LIMIT: Duration = Duration::from_secs(60);

fn recipe(world_size: u32, epochs: u32) -> Recipe {
    Recipe { world_size, epochs, ..Recipe::default() }
}

/// Trains all ranks over loopback from `states` (empty: from the beginning) up to `until`; gives back their states.
fn train(recipe: &Recipe, states: &[Vec<u8>], until: u64) -> Vec<Vec<u8>> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let master = ("127.0.0.1".to_owned(), listener.local_addr().expect("bound").port());
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..recipe.world_size)
            .map(|rank| {
                let (listener, master) = (&listener, &master);
                let mut trainer = match states.get(rank as usize) {
                    Some(state) => Trainer::decode(state, recipe.clone(), rank, Dataset::embedded())
                        .expect("a good state"),
                    None => Trainer::new(recipe.clone(), rank, Dataset::embedded()),
                };
                scope.spawn(move || {
                    let digest = trainer.common_digest();
                    let hello = Hello::new("j1/0@1.1", rank, recipe.world_size, trainer.step(), digest);
                    let mut gang = match rank {
                        0 => Gang::host(listener, &hello, LIMIT),
                        _ => Gang::join(master, &hello, LIMIT),
                    }
                    .expect("all ranks come");
                    while trainer.step() < until {
                        let share = trainer.share();
                        let (total, _) = gang
                            .exchange(trainer.step() + 1, share, Wish::default())
                            .expect("all ranks stay");
                        trainer.apply(&total);
                    }
                    trainer.encode()
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
    })
}

#[test]
fn interruptions_change_no_bit() {
    for world_size in [1, 2, 3] {
        let recipe = recipe(world_size, 3);
        let straight = train(&recipe, &[], 135);
        // Inside a pass, at its end, at its beginning, and right before the end.
        let mut states = Vec::new();
        for until in [1, 44, 45, 46, 90, 134, 135] {
            states = train(&recipe, &states, until);
        }
        assert!(states == straight, "{world_size} ranks differ from an undisturbed run");
    }
}

#[test]
fn all_ranks_hold_the_same_weights() {
    let recipe = recipe(3, 1);
    let digests: Vec<String> = (0..)
        .zip(train(&recipe, &[], 45))
        .map(|(rank, state)| {
            let trainer =
                Trainer::decode(&state, recipe.clone(), rank, Dataset::embedded()).expect("a good state");
            trainer.common_digest()
        })
        .collect();
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
}

#[test]
fn the_network_learns_to_read() {
    for (world_size, seed) in [(1, 7), (2, 7), (2, 1)] {
        let recipe = Recipe { seed, ..recipe(world_size, Recipe::default().epochs) };
        let steps = Trainer::new(recipe.clone(), 0, Dataset::embedded()).steps_total();
        let states = train(&recipe, &[], steps);
        let trainer = Trainer::decode(&states[0], recipe, 0, Dataset::embedded()).expect("a good state");
        println!("world size {world_size}, seed {seed}, {steps} steps: accuracy {}", trainer.accuracy());
        assert!(trainer.accuracy() >= 0.95, "accuracy {}", trainer.accuracy());
    }
}

fn decode(state: &[u8], recipe: &Recipe, rank: u32) -> Result<Trainer, StateError> {
    Trainer::decode(state, recipe.clone(), rank, Dataset::embedded())
}

#[test]
fn a_damaged_state_is_refused() {
    let recipe = recipe(1, 1);
    let state = Trainer::new(recipe.clone(), 0, Dataset::embedded()).encode();
    assert!(decode(&state, &recipe, 0).is_ok());
    for at in [0, 13, 40, 3000, state.len() - 1] {
        let mut flipped = state.clone();
        flipped[at] ^= 1;
        assert!(matches!(decode(&flipped, &recipe, 0), Err(StateError::Damaged { .. })), "byte {at}");
    }
    for length in [0, 8, 11, 12, 40, state.len() - 1] {
        let err = decode(&state[..length], &recipe, 0).expect_err("refused");
        assert!(matches!(err, StateError::Damaged { .. }), "{length} bytes: {err}");
    }
    let mut longer = state.clone();
    longer.push(0);
    let err = decode(&longer, &recipe, 0).expect_err("refused").to_string();
    assert_eq!(
        err,
        "the training state is damaged: its checksum does not fit its bytes; restore another checkpoint"
    );
}

#[test]
fn a_state_of_another_format_or_recipe_is_refused() {
    let recipe = recipe(2, 1);
    let state = Trainer::new(recipe.clone(), 1, Dataset::embedded()).encode();
    let mut newer = state.clone();
    newer[8] = 2;
    let err = decode(&newer, &recipe, 1).expect_err("refused").to_string();
    assert!(err.contains("has format 2, but this program reads format 1"), "{err}");
    let err = decode(&state, &recipe, 0).expect_err("refused").to_string();
    assert!(err.contains("saved with RANK 1, but this run has 0"), "{err}");
    let err = decode(&state, &Recipe { seed: 8, ..recipe }, 1).expect_err("refused").to_string();
    assert!(err.contains("saved with DIGITS_SEED 7, but this run has 8"), "{err}");
}
