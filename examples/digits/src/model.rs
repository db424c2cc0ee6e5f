//! The network, 64 → 48 (ReLU) → 10 (softmax), as pure arithmetic on flat slices. Every sum has one fixed order and every
//! function is made of IEEE basic operations, so that the same input gives the same bits on every machine.

use crate::data::{CLASSES, Dataset, Sample};
use crate::rng::Rng;

pub(crate) const PIXELS: usize = 64;
const HIDDEN: usize = 48;
const HIDDEN_BIAS: usize = PIXELS * HIDDEN;
const OUTPUT: usize = HIDDEN_BIAS + HIDDEN;
const OUTPUT_BIAS: usize = OUTPUT + HIDDEN * CLASSES;
/// Weights and biases: of the hidden layer input by input, its biases, then the same of the output layer.
pub(crate) const PARAMETERS: usize = OUTPUT_BIAS + CLASSES;

/// Initial weights after He (hidden) and Glorot (output); biases are zero.
pub(crate) fn initial(rng: &mut Rng) -> Vec<f32> {
    let mut parameters = vec![0.0; PARAMETERS];
    let hidden_limit = (6.0 / PIXELS as f32).sqrt();
    let output_limit = (6.0 / (HIDDEN + CLASSES) as f32).sqrt();
    parameters[..HIDDEN_BIAS].fill_with(|| rng.symmetric(hidden_limit));
    parameters[OUTPUT..OUTPUT_BIAS].fill_with(|| rng.symmetric(output_limit));
    parameters
}

struct Forward {
    hidden: [f32; HIDDEN],
    chances: [f32; CLASSES],
}

fn forward(parameters: &[f32], pixels: &[f32; PIXELS]) -> Forward {
    let mut hidden: [f32; HIDDEN] = std::array::from_fn(|unit| parameters[HIDDEN_BIAS + unit]);
    for (input, &pixel) in pixels.iter().enumerate() {
        add_scaled(&mut hidden, &parameters[input * HIDDEN..][..HIDDEN], pixel);
    }
    hidden.iter_mut().for_each(|value| *value = value.max(0.0));
    let mut scores: [f32; CLASSES] = std::array::from_fn(|class| parameters[OUTPUT_BIAS + class]);
    for (unit, &value) in hidden.iter().enumerate() {
        add_scaled(&mut scores, &parameters[OUTPUT + unit * CLASSES..][..CLASSES], value);
    }
    Forward { hidden, chances: softmax(scores) }
}

/// Adds the gradient of one sample's cross entropy to `sum`; returns its loss.
pub(crate) fn add_gradient(parameters: &[f32], sample: &Sample, sum: &mut [f32]) -> f64 {
    let Forward { hidden, chances } = forward(parameters, &sample.pixels);
    let mut by_score = chances;
    by_score[sample.label] -= 1.0;
    add_scaled(&mut sum[OUTPUT_BIAS..], &by_score, 1.0);
    let mut by_hidden = [0.0f32; HIDDEN];
    for (unit, &value) in hidden.iter().enumerate().filter(|&(_, &value)| value > 0.0) {
        let row = OUTPUT + unit * CLASSES;
        add_scaled(&mut sum[row..row + CLASSES], &by_score, value);
        by_hidden[unit] = dot(&parameters[row..row + CLASSES], &by_score);
    }
    add_scaled(&mut sum[HIDDEN_BIAS..OUTPUT], &by_hidden, 1.0);
    for (input, &pixel) in sample.pixels.iter().enumerate() {
        add_scaled(&mut sum[input * HIDDEN..][..HIDDEN], &by_hidden, pixel);
    }
    // Only told, never computed with: the logarithm may differ between machines in its last bit.
    -f64::from(chances[sample.label].max(f32::MIN_POSITIVE)).ln()
}

/// The share of held-out rows that are read correctly.
pub(crate) fn accuracy(parameters: &[f32], data: &Dataset) -> f64 {
    let right = |sample: &&Sample| likeliest(&forward(parameters, &sample.pixels).chances) == sample.label;
    data.held_out.iter().filter(right).count() as f64 / data.held_out.len() as f64
}

/// The first of the highest.
fn likeliest(chances: &[f32; CLASSES]) -> usize {
    (1..CLASSES).fold(0, |best, class| if chances[class] > chances[best] { class } else { best })
}

/// target += scale · row; element by element, so that vector units cannot change the result.
pub(crate) fn add_scaled(target: &mut [f32], row: &[f32], scale: f32) {
    for (target, value) in target.iter_mut().zip(row) {
        *target += scale * value;
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |sum, (a, b)| sum + a * b)
}

fn softmax(scores: [f32; CLASSES]) -> [f32; CLASSES] {
    let highest = scores.iter().fold(f32::MIN, |highest, &score| highest.max(score));
    let powers = scores.map(|score| exp_of_negative(score - highest));
    let total = powers.iter().fold(0.0, |total, power| total + power);
    powers.map(|power| power / total)
}

/// e^x for x ≤ 0, to f32 precision. Our own, because the C library's differs between machines, and a job may move to
/// another one: x = n·ln 2 + r with |r| ≤ ln 2 / 2, then e^x = 2^n · e^r by the power series.
fn exp_of_negative(x: f32) -> f32 {
    if x < -80.0 {
        return 0.0;
    }
    let x = f64::from(x);
    let halvings = (x * std::f64::consts::LOG2_E).round();
    let rest = x - halvings * std::f64::consts::LN_2;
    let series = (1..=9u32).rev().fold(1.0, |sum, term| 1.0 + sum * rest / f64::from(term));
    let power = f64::from_bits(((1023 + halvings as i64) as u64) << 52);
    (series * power) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_exponential_is_the_exponential() {
        for i in 0..8000 {
            let x = -f64::from(i) as f32 / 100.0;
            let (ours, right) = (f64::from(exp_of_negative(x)), f64::from(x).exp());
            assert!((ours - right).abs() <= right * 1e-7, "exp({x}) = {right}, not {ours}");
        }
        assert_eq!((exp_of_negative(0.0), exp_of_negative(-1e9)), (1.0, 0.0));
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let data = Dataset::embedded();
        let sample = &data.training[3];
        let parameters = initial(&mut Rng::seeded(1));
        let mut gradient = vec![0.0; PARAMETERS];
        add_gradient(&parameters, sample, &mut gradient);
        let loss_at = |index: usize, by: f32| {
            let mut moved = parameters.clone();
            moved[index] += by;
            add_gradient(&moved, sample, &mut vec![0.0; PARAMETERS])
        };
        for index in (0..PARAMETERS).step_by(97) {
            let slope = (loss_at(index, 1e-2) - loss_at(index, -1e-2)) / 2e-2;
            assert!(
                (slope - f64::from(gradient[index])).abs() < 2e-2,
                "parameter {index}: {slope} {}",
                gradient[index]
            );
        }
    }
}
