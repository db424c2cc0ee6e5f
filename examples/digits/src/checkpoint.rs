//! The state as a file: versioned, exact to the bit, with its own BLAKE3 checksum at the end. The supervisor verifies the
//! bytes too; this checksum also finds what was wrong before they were handed over.
//!
//! Format 1, all little-endian: magic, version u32, rank u32, world size u32, batch u32, seed u64, step u64, epoch u32,
//! next batch u32, random state 4 × u64, then order (u16), weights (f32) and momentum (f32), each after its length (u32),
//! and the checksum of all before. A reader refuses any other version and says so.

use std::path::{Path, PathBuf};

use crate::data::Dataset;
use crate::model::PARAMETERS;
use crate::rng::Rng;
use crate::settings::Recipe;
use crate::trainer::{State, Trainer};

const MAGIC: &[u8; 8] = b"OLDIGITS";
const VERSION: u32 = 1;
const CHECKSUM: usize = 32;
/// The state is about 32 KiB; anything far longer is no state, and is not read into memory.
const FILE_MAX: u64 = 1 << 20;

/// Failed to save or restore the training state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the training state {} cannot be {action}", path.display())]
    Io {
        path: PathBuf,
        action: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("the training state is damaged: {reason}; restore another checkpoint")]
    Damaged { reason: String },
    #[error(
        "the training state has format {found}, but this program reads format {VERSION}; use the program that wrote it"
    )]
    Version { found: u32 },
    #[error(
        "the training state was saved with {field} {saved}, but this run has {wanted}; start it with the same value"
    )]
    Different { field: &'static str, saved: u64, wanted: u64 },
}

fn damaged(reason: impl Into<String>) -> StateError {
    StateError::Damaged { reason: reason.into() }
}

/// The name of a rank's part of a checkpoint, and of the file that a restore makes of it.
pub(crate) fn file_name(rank: u32) -> String {
    format!("rank-{rank}.digits")
}

impl Trainer {
    /// The whole state as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::from(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.rank.to_le_bytes());
        bytes.extend(self.encode_common());
        let checksum = blake3::hash(&bytes);
        bytes.extend(checksum.as_bytes());
        bytes
    }

    /// What all ranks have in common.
    pub(crate) fn encode_common(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40_000);
        let State { step, epoch, batch, rng, order, parameters, velocity } = &self.state;
        let Recipe { world_size, epochs: _, batch: batch_rows, seed } = &self.recipe;
        for number in [world_size, batch_rows] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(seed.to_le_bytes());
        bytes.extend(step.to_le_bytes());
        bytes.extend(epoch.to_le_bytes());
        bytes.extend(batch.to_le_bytes());
        rng.0.iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.extend((order.len() as u32).to_le_bytes());
        order.iter().for_each(|row| bytes.extend(row.to_le_bytes()));
        for values in [parameters, velocity] {
            bytes.extend((values.len() as u32).to_le_bytes());
            values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        }
        bytes
    }

    /// Goes on from `bytes`, which must come from the same recipe and rank; `epochs` may differ.
    pub fn decode(bytes: &[u8], recipe: Recipe, rank: u32, data: Dataset) -> Result<Self, StateError> {
        let mut reader = Reader(checked(bytes)?);
        let same = |field, saved: u64, wanted: u64| match saved == wanted {
            true => Ok(()),
            false => Err(StateError::Different { field, saved, wanted }),
        };
        same("RANK", reader.u32()?.into(), rank.into())?;
        same("WORLD_SIZE", reader.u32()?.into(), recipe.world_size.into())?;
        same("DIGITS_BATCH", reader.u32()?.into(), recipe.batch.into())?;
        same("DIGITS_SEED", reader.u64()?, recipe.seed)?;
        let fresh = Self::new(recipe, rank, data);
        let state = reader.state(fresh.state.order.len())?;
        if state.batch >= fresh.batches() {
            return Err(damaged("its position lies behind the last mini-batch"));
        }
        Ok(Self { state, ..fresh })
    }

    /// Goes on from this rank's file in `dir`.
    pub(crate) fn read(dir: &Path, recipe: Recipe, rank: u32, data: Dataset) -> Result<Self, StateError> {
        let path = dir.join(file_name(rank));
        let failed = |source| StateError::Io { path: path.clone(), action: "read", source };
        let length = std::fs::metadata(&path).map_err(failed)?.len();
        if length > FILE_MAX {
            return Err(damaged(format!("{length} bytes are far more than a state has")));
        }
        Self::decode(&std::fs::read(&path).map_err(failed)?, recipe, rank, data)
    }
}

/// The part between version and checksum, if these are good.
fn checked(bytes: &[u8]) -> Result<&[u8], StateError> {
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("it does not begin as one"))?;
    let (version, _) = rest.split_first_chunk().ok_or_else(|| damaged("it ends too early"))?;
    let found = u32::from_le_bytes(*version);
    if found != VERSION {
        return Err(StateError::Version { found });
    }
    let (body, checksum) =
        bytes.split_last_chunk::<CHECKSUM>().ok_or_else(|| damaged("it ends too early"))?;
    if blake3::hash(body) != *checksum {
        return Err(damaged("its checksum does not fit its bytes"));
    }
    body.get(MAGIC.len() + 4..).ok_or_else(|| damaged("it ends too early"))
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let (head, rest) = self.0.split_first_chunk().ok_or_else(|| damaged("it ends too early"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, StateError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, StateError> {
        self.take().map(u64::from_le_bytes)
    }

    fn length(&mut self, what: &str, wanted: usize) -> Result<(), StateError> {
        let found = self.u32()? as usize;
        if found != wanted {
            return Err(damaged(format!("it has {found} {what}, not {wanted}")));
        }
        Ok(())
    }

    fn floats(&mut self, what: &str) -> Result<Vec<f32>, StateError> {
        self.length(what, PARAMETERS)?;
        (0..PARAMETERS).map(|_| self.take().map(f32::from_le_bytes)).collect()
    }

    fn order(&mut self, rows: usize) -> Result<Vec<u16>, StateError> {
        self.length("rows", rows)?;
        let order: Vec<u16> =
            (0..rows).map(|_| self.take().map(u16::from_le_bytes)).collect::<Result<_, _>>()?;
        let mut sorted = order.clone();
        sorted.sort_unstable();
        match sorted.iter().enumerate().all(|(at, &row)| at == usize::from(row)) {
            true => Ok(order),
            false => Err(damaged("its order of rows is none")),
        }
    }

    fn state(&mut self, rows: usize) -> Result<State, StateError> {
        let step = self.u64()?;
        let epoch = self.u32()?;
        let batch = self.u32()?;
        let rng = Rng([self.u64()?, self.u64()?, self.u64()?, self.u64()?]);
        let order = self.order(rows)?;
        let parameters = self.floats("weights")?;
        let velocity = self.floats("momentum values")?;
        if !self.0.is_empty() {
            return Err(damaged(format!("{} bytes too many", self.0.len())));
        }
        Ok(State { step, epoch, batch, rng, order, parameters, velocity })
    }
}
