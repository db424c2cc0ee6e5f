//! The digits, embedded, and their fixed split: every fifth row is held out.

use crate::model::PIXELS;

const DIGITS_CSV: &str = include_str!("../data/digits.csv");
const HELD_OUT_EVERY: usize = 5;
const PIXEL_MAX: u8 = 16;
pub(crate) const CLASSES: usize = 10;

#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// 0 to 1.
    pub(crate) pixels: [f32; PIXELS],
    pub(crate) label: usize,
}

/// Rows to learn from, and rows to judge by.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub(crate) training: Vec<Sample>,
    pub(crate) held_out: Vec<Sample>,
}

impl Dataset {
    /// The rows that come with the example.
    pub fn embedded() -> Self {
        let mut split = Self { training: Vec::new(), held_out: Vec::new() };
        for (row, line) in DIGITS_CSV.lines().enumerate() {
            let sample = parse(line).expect("the embedded file is checked by a test");
            let part = if row % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 {
                &mut split.held_out
            } else {
                &mut split.training
            };
            part.push(sample);
        }
        split
    }
}

/// 64 counts from 0 to 16, then the digit; `None` for anything else.
fn parse(line: &str) -> Option<Sample> {
    let numbers = line.split(',').map(|text| text.parse::<u8>().ok()).collect::<Option<Vec<u8>>>()?;
    let (label, pixels) = numbers.split_last()?;
    let counts: [u8; PIXELS] = pixels.try_into().ok()?;
    if counts.iter().any(|&count| count > PIXEL_MAX) || usize::from(*label) >= CLASSES {
        return None;
    }
    Some(Sample {
        pixels: counts.map(|count| f32::from(count) / f32::from(PIXEL_MAX)),
        label: usize::from(*label),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_row_is_good() {
        assert!(DIGITS_CSV.lines().all(|line| parse(line).is_some()));
        let data = Dataset::embedded();
        assert_eq!((data.training.len(), data.held_out.len()), (1438, 359));
    }

    #[test]
    fn a_bad_row_is_refused() {
        let zeros = "0,".repeat(PIXELS);
        assert!(parse(&format!("{zeros}9")).is_some());
        for bad in [
            format!("{zeros}10"),
            zeros.clone() + "x",
            "17,".to_owned() + &zeros[2..] + "1",
            "1,2".to_owned(),
        ] {
            assert!(parse(&bad).is_none(), "{bad}");
        }
    }
}
