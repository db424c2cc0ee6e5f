//! What the environment says, checked once.

use std::path::PathBuf;

/// What the result depends on. All ranks have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    pub world_size: u32,
    pub epochs: u32,
    /// Rows in a mini-batch, over all ranks.
    pub batch: u32,
    pub seed: u64,
}

impl Default for Recipe {
    fn default() -> Self {
        Self { world_size: 1, epochs: 30, batch: 32, seed: 7 }
    }
}

/// One rank's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub recipe: Recipe,
    pub rank: u32,
    /// Where rank 0 listens, `host:port`; used only with more than one rank.
    pub master: (String, u16),
    /// Whose ranks belong together.
    pub attempt: String,
    pub step_ms: u64,
    pub result: Option<PathBuf>,
}

/// Failed to read the settings.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    #[error("{name} is {value:?}, but a whole number from {min} to {max} is needed")]
    Number { name: &'static str, value: String, min: u64, max: u64 },
    #[error(
        "{name} is not set, and with WORLD_SIZE {world_size} it must be; Outlast sets it for its workers"
    )]
    Missing { name: &'static str, world_size: u32 },
}

/// Rank 0 holds a connection to each of the others; a mini-batch has at least a row for each.
const WORLD_SIZE_MAX: u64 = 32;
const BATCH_MAX: u64 = 1024;
const EPOCHS_MAX: u64 = 100_000;
const STEP_MS_MAX: u64 = 60_000;

impl Settings {
    /// From this process's environment.
    pub fn from_env() -> Result<Self, SettingsError> {
        Self::read(|name| std::env::var(name).ok())
    }

    /// From any source of variables.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let number = |name: &'static str, default: u64, min: u64, max: u64| {
            let Some(value) = variable(name) else { return Ok(default) };
            let parsed = value.parse().ok().filter(|number| (min..=max).contains(number));
            parsed.ok_or(SettingsError::Number { name, value, min, max })
        };
        let world_size = number("WORLD_SIZE", 1, 1, WORLD_SIZE_MAX)? as u32;
        let needed = |name: &'static str| match variable(name) {
            Some(value) => Ok(value),
            None if world_size == 1 => Ok("0".to_owned()),
            None => Err(SettingsError::Missing { name, world_size }),
        };
        let usual = Recipe::default();
        let recipe = Recipe {
            world_size,
            epochs: number("DIGITS_EPOCHS", usual.epochs.into(), 1, EPOCHS_MAX)? as u32,
            batch: number("DIGITS_BATCH", usual.batch.into(), world_size.into(), BATCH_MAX)? as u32,
            seed: number("DIGITS_SEED", usual.seed, 0, u64::MAX)?,
        };
        needed("RANK")?;
        let host = needed("MASTER_ADDR")?;
        needed("MASTER_PORT")?;
        Ok(Self {
            recipe,
            rank: number("RANK", 0, 0, u64::from(world_size) - 1)? as u32,
            master: (host, number("MASTER_PORT", 0, 0, u16::MAX.into())? as u16),
            attempt: variable("OUTLAST_ATTEMPT").unwrap_or_else(|| "unsupervised".to_owned()),
            step_ms: number("DIGITS_STEP_MS", 0, 0, STEP_MS_MAX)?,
            result: variable("DIGITS_RESULT").map(PathBuf::from),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::read(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn alone_nothing_needs_to_be_set() {
        let settings = read(&[]).expect("valid");
        assert_eq!((settings.recipe, settings.rank), (Recipe::default(), 0));
    }

    #[test]
    fn bad_values_are_named_with_their_bounds() {
        let err = read(&[("DIGITS_BATCH", "many")]).expect_err("refused").to_string();
        assert_eq!(err, "DIGITS_BATCH is \"many\", but a whole number from 1 to 1024 is needed");
        let gang = [("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "4000")];
        let err = read(&gang).expect_err("refused").to_string();
        assert!(err.starts_with("RANK is not set, and with WORLD_SIZE 2 it must be"), "{err}");
        let err = read(&[&gang[..], &[("RANK", "2")]].concat()).expect_err("refused").to_string();
        assert!(err.contains("from 0 to 1"), "{err}");
        assert_eq!(read(&[&gang[..], &[("RANK", "1")]].concat()).expect("valid").master.1, 4000);
    }
}
