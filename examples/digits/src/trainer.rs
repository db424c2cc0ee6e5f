//! Mini-batch gradient descent with momentum: the training state, and the one step that changes it. No I/O; the state is
//! owned here, checkpoints and messages are made from it.

use std::ops::Range;

use crate::data::Dataset;
use crate::model;
use crate::rng::Rng;
use crate::settings::Recipe;

const LEARNING_RATE: f32 = 0.05;
const MOMENTUM: f32 = 0.9;

/// Everything that the next step depends on; what a checkpoint holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct State {
    /// Steps done.
    pub(crate) step: u64,
    /// Passes over the data that have begun before this one.
    pub(crate) epoch: u32,
    /// The mini-batch of this pass that comes next.
    pub(crate) batch: u32,
    pub(crate) rng: Rng,
    /// This pass's order of the training rows.
    pub(crate) order: Vec<u16>,
    pub(crate) parameters: Vec<f32>,
    pub(crate) velocity: Vec<f32>,
}

/// A sum over some rows of a mini-batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    pub(crate) rows: u32,
    pub(crate) loss: f64,
    pub(crate) gradient: Vec<f32>,
}

impl Share {
    /// Adds a later rank's part. The order of the ranks is the order of the sum, hence of its rounding.
    pub(crate) fn add(&mut self, other: &Share) {
        self.rows += other.rows;
        self.loss += other.loss;
        model::add_scaled(&mut self.gradient, &other.gradient, 1.0);
    }
}

/// One rank's training.
#[derive(Clone, Debug)]
pub struct Trainer {
    pub(crate) recipe: Recipe,
    pub(crate) rank: u32,
    pub(crate) state: State,
    pub(crate) data: Dataset,
}

impl Trainer {
    /// Begins at step zero.
    pub fn new(recipe: Recipe, rank: u32, data: Dataset) -> Self {
        let mut rng = Rng::seeded(recipe.seed);
        let parameters = model::initial(&mut rng);
        let mut order: Vec<u16> = (0..data.training.len() as u16).collect();
        rng.shuffle(&mut order);
        let velocity = vec![0.0; parameters.len()];
        let state = State { step: 0, epoch: 0, batch: 0, rng, order, parameters, velocity };
        Self { recipe, rank, state, data }
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.state.step
    }

    /// Passes done.
    pub fn epoch(&self) -> u32 {
        self.state.epoch
    }

    /// Steps of the whole training.
    pub fn steps_total(&self) -> u64 {
        u64::from(self.recipe.epochs) * u64::from(self.batches())
    }

    /// Steps of one pass over the data.
    pub(crate) fn batches(&self) -> u32 {
        (self.state.order.len() as u32).div_ceil(self.recipe.batch)
    }

    /// This rank's rows of the next mini-batch, as positions in the order: consecutive slices, as even as can be.
    fn slice(&self) -> Range<usize> {
        let begin = self.state.batch as usize * self.recipe.batch as usize;
        let rows = (self.state.order.len() - begin).min(self.recipe.batch as usize);
        let (rank, world) = (self.rank as usize, self.recipe.world_size as usize);
        begin + rows * rank / world..begin + rows * (rank + 1) / world
    }

    /// This rank's part of the next step.
    pub fn share(&self) -> Share {
        let mut share = Share { rows: 0, loss: 0.0, gradient: vec![0.0; self.state.parameters.len()] };
        for &row in &self.state.order[self.slice()] {
            let sample = &self.data.training[usize::from(row)];
            share.loss += model::add_gradient(&self.state.parameters, sample, &mut share.gradient);
            share.rows += 1;
        }
        share
    }

    /// The step itself, with the sum over all ranks. Returns the mean loss.
    pub fn apply(&mut self, total: &Share) -> f64 {
        let rows = total.rows as f32;
        let state = &mut self.state;
        for ((parameter, velocity), gradient) in
            state.parameters.iter_mut().zip(&mut state.velocity).zip(&total.gradient)
        {
            *velocity = MOMENTUM * *velocity + gradient / rows;
            *parameter -= LEARNING_RATE * *velocity;
        }
        state.step += 1;
        state.batch += 1;
        if state.batch == self.batches() {
            self.next_epoch();
        }
        total.loss / f64::from(total.rows)
    }

    fn next_epoch(&mut self) {
        self.state.batch = 0;
        self.state.epoch += 1;
        self.state.rng.shuffle(&mut self.state.order);
    }

    /// The share of held-out rows that are read correctly, 0 to 1.
    pub fn accuracy(&self) -> f64 {
        model::accuracy(&self.state.parameters, &self.data)
    }

    /// BLAKE3 of the weights' bits, as hex.
    pub fn weights_digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        self.state.parameters.iter().for_each(|value| {
            hasher.update(&value.to_le_bytes());
        });
        hasher.finalize().to_hex().to_string()
    }

    /// BLAKE3 of what all ranks must have in common, as hex.
    pub fn common_digest(&self) -> String {
        blake3::hash(&self.encode_common()).to_hex().to_string()
    }
}
