//! Over a thousand seeded damages to the files of one store while another has good copies: single flipped bits mostly, and
//! files that are cut, grown or gone. Each is found by whoever looks next (a reader, the scrubber, a start), nothing wrong
//! is ever handed out, and all is repaired. `OUTLAST_SEED` repeats a run.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use outlast_blobs::{ReadError, SealNote, ShardKey, ShardMeta, ShardStore};
use outlast_types::{CheckpointSeq, Digest, JobId};

/// Small, so that a few kilobytes are several extents.
const EXTENT: u64 = 1024;
const SIZES: [usize; 7] = [1, 900, 1024, 1025, 2048, 5 * 1024 + 7, 9_000];
const DAMAGES: usize = 1_300;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

fn seed() -> u64 {
    let seed = std::env::var("OUTLAST_SEED").ok().map(|text| text.parse().expect("a number"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed: u64 = seed.unwrap_or_else(|| now.expect("after 1970").as_nanos() as u64) | 1;
    println!("OUTLAST_SEED={seed}");
    seed
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Data,
    Hashes,
    Seal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Harm {
    Bit,
    Cut,
    Grow,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Finder {
    Reader,
    Scrubber,
    Start,
}

/// A store whose disk lies, one whose disk does not, and what the log knows.
struct Pair {
    root: PathBuf,
    damaged: Option<ShardStore>,
    good: ShardStore,
    shards: Vec<(ShardMeta, Vec<u8>, SealNote)>,
}

fn key(rank: u32) -> ShardKey {
    let attempt = "j7/0@1.3".parse().expect("valid");
    ShardKey { job: JobId(7), attempt, seq: CheckpointSeq(4), rank }
}

fn write(store: &ShardStore, key: &ShardKey, bytes: &[u8]) -> ShardMeta {
    let mut writer = store.begin(Some(bytes.len() as u64)).expect("begun");
    io::Write::write_all(&mut writer, bytes).expect("written");
    writer.finish(key).expect("finished")
}

fn read(store: &ShardStore, key: &ShardKey, root: Digest) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    match store.open_shard(key, root)?.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(err) => Err(*err.into_inner().expect("an inner error").downcast::<ReadError>().expect("ours")),
    }
}

impl Pair {
    fn new(root: &Path, good: &Path, random: &mut Random) -> Self {
        let damaged = ShardStore::open_with_extents(root, EXTENT).expect("opens");
        let good = ShardStore::open_with_extents(good, EXTENT).expect("opens");
        let mut shards = Vec::new();
        for (rank, size) in SIZES.into_iter().enumerate() {
            let key = key(rank as u32);
            let bytes: Vec<u8> = (0..size).map(|_| random.below(256) as u8).collect();
            let meta = write(&damaged, &key, &bytes);
            assert_eq!(write(&good, &key, &bytes).root, meta.root);
            let json = format!(r#"{{"checkpoint": {{"step": 4{rank}, "seq": "ck4"}}, "index": 1234567}}"#);
            let note = SealNote::new(meta.root, &json).expect("JSON");
            damaged.mark_sealed(&key, &note).expect("sealed");
            shards.push((ShardMeta { sealed: true, ..meta }, bytes, note));
        }
        Self { root: root.to_owned(), damaged: Some(damaged), good, shards }
    }

    fn store(&self) -> &ShardStore {
        self.damaged.as_ref().expect("open")
    }

    fn restart(&mut self) {
        drop(self.damaged.take());
        self.damaged = Some(ShardStore::open_with_extents(&self.root, EXTENT).expect("opens again"));
    }

    fn path(&self, shard: usize, target: Target) -> PathBuf {
        let ShardMeta { key, root, .. } = &self.shards[shard].0;
        let folder = self.root.join("blobs").join(key.attempt.file_name()).join(key.seq.to_string());
        let suffix = match target {
            Target::Data => "",
            Target::Hashes => ".ext",
            Target::Seal => ".seal",
        };
        folder.join(format!("{}-{root}{suffix}", key.rank))
    }

    /// Whether anything was changed.
    fn harm(&self, shard: usize, target: Target, harm: Harm, random: &mut Random) -> bool {
        let path = self.path(shard, target);
        let mut bytes = fs::read(&path).expect("there");
        match harm {
            Harm::Bit => {
                // The ends are where mistakes are made.
                let at = match random.below(4) {
                    0 => 0,
                    1 => bytes.len() - 1,
                    _ => random.below(bytes.len()),
                };
                bytes[at] ^= 1 << random.below(8);
            }
            Harm::Cut => bytes.truncate(random.below(bytes.len())),
            Harm::Grow => (0..=random.below(2_000)).for_each(|_| bytes.push(random.below(256) as u8)),
            Harm::Gone => return fs::remove_file(&path).is_ok(),
        }
        fs::write(&path, bytes).is_ok()
    }

    /// What the scrubber does with one shard.
    fn scrub(&self, shard: usize) -> Result<(), ReadError> {
        let ShardMeta { key, root, .. } = &self.shards[shard].0;
        self.store().look(key, *root)?;
        self.store().read_back(key, *root, |_| true)
    }

    /// Whether the damage was seen: by an error, or because what can be made again was made again.
    fn is_found(&mut self, shard: usize, target: Target, finder: Finder) -> bool {
        let path = self.path(shard, target);
        let before = fs::read(&path).ok();
        if finder == Finder::Start {
            self.restart();
        }
        let (meta, bytes, note) = &self.shards[shard];
        let read = match finder {
            Finder::Reader => read(self.store(), &meta.key, meta.root).map(|read| assert!(read == *bytes)),
            Finder::Scrubber | Finder::Start => self.scrub(shard),
        };
        match target {
            Target::Data => matches!(read, Err(ReadError::Corrupt { .. } | ReadError::Missing)),
            Target::Hashes => {
                read.expect("the bytes are good");
                fs::read(&path).ok() != before
            }
            Target::Seal => {
                read.expect("the bytes are good");
                // Or it still says the very same: a flip in the case of a hex digit.
                self.store().seal_of(&meta.key, meta.root).map_or(true, |read| read == *note)
            }
        }
    }

    /// As the agent does it: aside with what is bad, then the good holder's bytes and the log's text.
    fn repair(&self, shard: usize, target: Target) {
        let (meta, bytes, note) = &self.shards[shard];
        let store = self.store();
        if target == Target::Data {
            store.set_aside(&meta.key, meta.root).expect("set aside");
            assert!(matches!(store.look(&meta.key, meta.root), Err(ReadError::Missing)));
            let mut from = self.good.open_shard(&meta.key, meta.root).expect("a good holder");
            let mut writer = store.begin(Some(meta.size_bytes)).expect("begun");
            io::copy(&mut from, &mut writer).expect("copied");
            writer.finish_as(&meta.key, meta.root, meta.size_bytes).expect("the sealed bytes");
        }
        if store.seal_of(&meta.key, meta.root).is_err() {
            store.mark_sealed(&meta.key, note).expect("sealed again");
        }
        assert_eq!(read(store, &meta.key, meta.root).expect("good"), *bytes);
        assert_eq!(store.seal_of(&meta.key, meta.root).expect("a seal"), *note);
    }
}

#[test]
fn every_damage_is_found_by_whoever_looks_next_and_repaired_from_the_good_holder() {
    let mut random = Random(seed());
    let (dir, good) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let mut pair = Pair::new(dir.path(), good.path(), &mut random);
    let mut bits: BTreeMap<(Target, Finder), usize> = BTreeMap::new();
    for round in 0..DAMAGES {
        let shard = random.below(SIZES.len());
        let target = random.one(&[Target::Data, Target::Data, Target::Hashes, Target::Seal]);
        let harm = match random.below(8) {
            0 => random.one(&[Harm::Cut, Harm::Grow, Harm::Gone]),
            _ => Harm::Bit,
        };
        let finder = random.one(&[Finder::Reader, Finder::Scrubber, Finder::Start]);
        assert!(pair.harm(shard, target, harm, &mut random));
        let what = format!("round {round}: {harm:?} in {target:?} of {} bytes, {finder:?}", SIZES[shard]);
        assert!(pair.is_found(shard, target, finder), "not found: {what}");
        pair.repair(shard, target);
        if harm == Harm::Bit {
            *bits.entry((target, finder)).or_default() += 1;
        }
    }
    println!("flipped bits, all found: {bits:?}");
    assert!(bits.values().sum::<usize>() >= 1_000 && bits.len() == 9, "{bits:?}");
    pair.restart();
    let found: Vec<Digest> =
        pair.store().list().iter().filter(|meta| meta.sealed).map(|meta| meta.root).collect();
    assert_eq!(found.len(), SIZES.len(), "all are whole and sealed");
    assert_eq!(pair.store().aside(), [], "and nothing bad is left");
    let all = fs::read_dir(pair.path(0, Target::Data).parent().expect("a folder")).expect("listed").count();
    assert_eq!(all, 3 * SIZES.len(), "bytes, hashes and seal of each");
}
