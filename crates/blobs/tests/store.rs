//! The shard store on a real disk: round trips, restarts, damage, a full disk.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use outlast_blobs::{OpenError, ReadError, SealNote, ShardKey, ShardMeta, ShardStore, WriteError};
use outlast_types::{CheckpointSeq, Digest, JobId};

const EXTENT: u64 = 4096;

fn store(root: &Path) -> ShardStore {
    ShardStore::open_with_extents(root, EXTENT).expect("a store")
}

fn key(seq: u64, rank: u32) -> ShardKey {
    let attempt = "j7/0@1.3".parse().expect("valid");
    ShardKey { job: JobId(7), attempt, seq: CheckpointSeq(seq), rank }
}

fn content(len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}

fn put(store: &ShardStore, key: &ShardKey, bytes: &[u8]) -> ShardMeta {
    let mut writer = store.begin(Some(bytes.len() as u64)).expect("begun");
    writer.write_all(bytes).expect("written");
    writer.finish(key).expect("finished")
}

fn get(store: &ShardStore, key: &ShardKey, root: Digest) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut reader = store.open_shard(key, root).map_err(io::Error::other)?;
    reader.read_to_end(&mut bytes).map(|_| bytes)
}

fn pieces(store: &ShardStore, meta: &ShardMeta) -> Result<Vec<u8>, ReadError> {
    let pieces = store.open_shard(&meta.key, meta.root)?.into_pieces();
    Ok(pieces.collect::<Result<Vec<_>, _>>()?.concat())
}

fn data_path(root: &Path, meta: &ShardMeta) -> PathBuf {
    let folder = root.join("blobs").join(meta.key.attempt.file_name()).join(meta.key.seq.to_string());
    folder.join(format!("{}-{}", meta.key.rank, meta.root))
}

#[test]
fn shards_of_every_size_come_back_as_they_were() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store(dir.path());
    let extent = EXTENT as usize;
    for (seq, len) in
        [0, 1, 1023, 1024, extent - 1, extent, extent + 1, 3 * extent, 5 * extent + 7].into_iter().enumerate()
    {
        let (key, bytes) = (key(seq as u64, 0), content(len));
        let meta = put(&store, &key, &bytes);
        assert_eq!(meta.root.to_string(), root_of(&bytes), "{len} bytes");
        assert_eq!((meta.size_bytes, meta.extents.len()), (len as u64, len.div_ceil(extent)));
        assert_eq!(get(&store, &key, meta.root).expect("read"), bytes);
        assert_eq!(pieces(&store, &meta).expect("read"), bytes);
        store.verify(&key, meta.root).expect("sound");
        assert_eq!(store.find(JobId(7), key.seq, 0), Some(meta));
    }
    assert_eq!(fs::read_dir(dir.path().join("tmp")).expect("tmp").count(), 0);
}

fn root_of(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

#[test]
fn an_extent_at_a_time_is_the_same_as_a_stream() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store(dir.path());
    let bytes = content(10_000);
    let meta = put(&store, &key(1, 0), &bytes);
    let open = || store.open_shard(&meta.key, meta.root).expect("open");
    for mut reader in [open(), open().with_little_memory()] {
        let mut again = Vec::new();
        while let Some(extent) = reader.next_extent().expect("sound") {
            again.extend_from_slice(extent);
        }
        assert_eq!(again, bytes);
        for index in [2, 0, 1] {
            reader.seek_extent(index);
            let at = (index * EXTENT) as usize;
            let wanted = &bytes[at..bytes.len().min(at + EXTENT as usize)];
            assert_eq!(reader.next_extent().expect("sound"), Some(wanted));
        }
        reader.seek_extent(3);
        assert_eq!(reader.next_extent().expect("sound"), None);
        assert_eq!((reader.size_bytes(), reader.extent_bytes()), (10_000, EXTENT));
    }
}

#[test]
fn a_restart_finds_whole_shards_and_their_seals_and_forgets_the_rest() {
    let dir = tempfile::tempdir().expect("a folder");
    let first = store(dir.path());
    let disk = first.disk_id();
    let sealed = put(&first, &key(1, 0), &content(9_000));
    let plain = put(&first, &key(2, 1), &content(100));
    let torn = put(&first, &key(3, 0), &content(9_000));
    let note = SealNote::new(sealed.root, r#"{"step": 40}"#).expect("JSON");
    first.mark_sealed(&sealed.key, &note).expect("sealed");
    assert!(matches!(first.mark_sealed(&key(9, 9), &note), Err(ReadError::Missing)));
    let mut unfinished = first.begin(None).expect("begun");
    unfinished.write_all(&content(5_000)).expect("written");
    unfinished.flush().expect("flushed");
    std::mem::forget(unfinished);
    let busy = ShardStore::open(dir.path());
    assert!(matches!(busy, Err(OpenError::InUse { .. })), "one store a folder");
    drop(first);
    fs::File::options()
        .write(true)
        .open(data_path(dir.path(), &torn))
        .expect("open")
        .set_len(8_999)
        .expect("cut");
    fs::create_dir_all(dir.path().join("blobs/not-ours/x")).expect("a stranger");

    // The forgotten writer above still holds the old store's lock; a copy of the folder stands for the restarted machine.
    let copy = tempfile::tempdir().expect("a folder");
    let status =
        std::process::Command::new("cp").arg("-a").arg(dir.path().join(".")).arg(copy.path()).status();
    assert!(status.expect("cp").success());
    let second = store(copy.path());
    assert_eq!(second.disk_id(), disk);
    let listed = second.list();
    assert_eq!(listed, [ShardMeta { sealed: true, ..sealed.clone() }, plain]);
    assert_eq!(second.seal_of(&sealed.key, sealed.root).expect("a seal"), note);
    assert!(matches!(second.open_shard(&torn.key, torn.root), Err(ReadError::Corrupt { .. })));
    assert!(data_path(copy.path(), &torn).exists(), "what is not understood is kept");
    assert_eq!(fs::read_dir(copy.path().join("tmp")).expect("tmp").count(), 0);
}

#[test]
fn a_seal_with_a_flipped_bit_or_without_its_sum_is_no_seal() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store(dir.path());
    let meta = put(&store, &key(1, 0), &content(100));
    let note =
        SealNote::new(meta.root, r#"{"spec": {"command": ["train", "0.1"]}, "rate": 0.30000000000000004}"#);
    let note = note.expect("JSON");
    store.mark_sealed(&meta.key, &note).expect("sealed");
    let seal = data_path(dir.path(), &meta).with_extension("seal");
    let sound = fs::read(&seal).expect("there");
    for bit in 0..sound.len() * 8 {
        let mut flipped = sound.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&seal, &flipped).expect("damaged");
        // A name of a field that is not known is not read; every other change is seen.
        if let Ok(read) = store.seal_of(&meta.key, meta.root) {
            assert_eq!(read.record["spec"], note.record["spec"], "bit {bit}");
        }
    }
    // One flip may take the sum's name away; with the next one it would say something else.
    let mut bare: serde_json::Value = serde_json::from_slice(&sound).expect("JSON");
    assert!(bare.as_object_mut().expect("an object").remove("blake3").is_some());
    fs::write(&seal, bare.to_string()).expect("written");
    assert!(matches!(store.seal_of(&meta.key, meta.root), Err(ReadError::Corrupt { .. })));
}

#[test]
fn no_flipped_bit_is_ever_handed_out() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store(dir.path());
    let bytes = content(5 * EXTENT as usize + 100);
    let meta = put(&store, &key(1, 0), &bytes);
    let data = data_path(dir.path(), &meta);
    let hashes = PathBuf::from(format!("{}.ext", data.display()));
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut seen = 0;
    for round in 0..300 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let path = if round % 3 == 0 { &hashes } else { &data };
        let sound = fs::read(path).expect("bytes");
        let mut flipped = sound.clone();
        let bit = (random >> 20) as usize % (sound.len() * 8);
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(path, &flipped).expect("damaged");
        match get(&store, &meta.key, meta.root) {
            Ok(read) => {
                assert!(path == &hashes && read == bytes, "only hashes can be made again from the bytes")
            }
            Err(err) => {
                assert_eq!(path, &data, "{err}");
                let inner = err.get_ref().and_then(|inner| inner.downcast_ref::<ReadError>());
                let extent = (bit / 8) as u64 / EXTENT;
                assert!(
                    matches!(inner, Some(ReadError::Corrupt { extent: found }) if *found == extent),
                    "{err}"
                );
                seen += 1;
            }
        }
        fs::write(path, &sound).expect("mended");
    }
    assert_eq!(seen, 200);
    store.verify(&meta.key, meta.root).expect("sound again");
}

#[test]
fn bytes_before_a_bad_extent_are_good_and_nothing_of_it_is_given() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store(dir.path());
    let bytes = content(4 * EXTENT as usize);
    let meta = put(&store, &key(1, 0), &bytes);
    let mut damaged = bytes.clone();
    damaged[2 * EXTENT as usize + 4000] ^= 1;
    fs::write(data_path(dir.path(), &meta), damaged).expect("damaged");
    let mut read = Vec::new();
    let err =
        store.open_shard(&meta.key, meta.root).expect("open").read_to_end(&mut read).expect_err("must fail");
    assert_eq!((err.kind(), read.as_slice()), (io::ErrorKind::InvalidData, &bytes[..2 * EXTENT as usize]));
    assert!(matches!(store.verify(&meta.key, meta.root), Err(ReadError::Corrupt { extent: 2 })));
    let mut in_pieces = store.open_shard(&meta.key, meta.root).expect("open").into_pieces();
    let before: usize = in_pieces.by_ref().map_while(Result::ok).map(|piece| piece.len()).sum();
    assert!(before >= 2 * EXTENT as usize, "{before}");
    assert!(in_pieces.next().is_none(), "an error is the last item");
    assert!(matches!(pieces(&store, &meta), Err(ReadError::Corrupt { extent: 2 })));
    let other = store.open_shard(&meta.key, Digest([1; 32]));
    assert!(matches!(other, Err(ReadError::Missing)));
}

/// Beside the bytes of a shard.
fn beside(data: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}.{suffix}", data.display()))
}

#[test]
fn what_a_crash_in_a_write_or_a_removal_left_is_gone_after_a_start() {
    let dir = tempfile::tempdir().expect("a folder");
    let first = store(dir.path());
    let (half_removed, whole) = (put(&first, &key(1, 0), b"one"), put(&first, &key(2, 0), b"two"));
    let lost = put(&first, &key(4, 0), b"three");
    for meta in [&half_removed, &whole, &lost] {
        first.mark_sealed(&meta.key, &SealNote::new(meta.root, "{}").expect("JSON")).expect("sealed");
        first.mark_stored(&meta.key, meta.root).expect("noted");
    }
    drop(first);
    let data = data_path(dir.path(), &half_removed);
    fs::remove_file(beside(&data, "stored")).expect("the first step of a removal");
    fs::remove_file(&data).expect("the second");
    fs::remove_file(data_path(dir.path(), &lost)).expect("a disk that lost it");
    let unnamed = ShardMeta { key: key(3, 0), ..half_removed };
    fs::create_dir_all(data_path(dir.path(), &unnamed).parent().expect("a folder")).expect("made");
    fs::write(beside(&data_path(dir.path(), &unnamed), "ext"), b"hashes")
        .expect("the last but one of a write");
    let second = store(dir.path());
    assert_eq!(second.list(), [ShardMeta { sealed: true, ..whole.clone() }]);
    assert!(!data.parent().expect("a folder").exists(), "nothing is left of it");
    assert!(!data_path(dir.path(), &unnamed).parent().expect("a folder").exists());
    assert!(beside(&data_path(dir.path(), &whole), "stored").exists(), "the other one is untouched");
    assert_eq!(second.aside(), [(lost.key, lost.root)], "the object store may have it");
    assert!(second.is_stored(&lost.key, lost.root) && second.seal_of(&lost.key, lost.root).is_ok());
}

#[test]
fn what_went_bad_is_known_after_a_start_and_goes_when_its_checkpoint_does() {
    let dir = tempfile::tempdir().expect("a folder");
    let first = store(dir.path());
    let (rotten, torn) = (put(&first, &key(1, 0), &content(9_000)), put(&first, &key(1, 1), &content(9_000)));
    first.set_aside(&rotten.key, rotten.root).expect("set aside");
    assert_eq!(first.aside(), [(rotten.key, rotten.root)]);
    fs::write(data_path(dir.path(), &torn), b"short").expect("cut");
    drop(first);
    let second = store(dir.path());
    assert_eq!((second.list(), second.aside().len()), (Vec::new(), 2), "neither is a shard, both are known");
    assert!(beside(&data_path(dir.path(), &rotten), "bad").exists(), "evidence");
    for (key, root) in second.aside() {
        second.remove(&key, root).expect("removed");
    }
    assert_eq!(fs::read_dir(dir.path().join("blobs")).expect("blobs").count(), 0);
}

#[test]
fn a_seal_with_a_flipped_bit_is_refused_or_says_the_very_same() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store(dir.path());
    let meta = put(&store, &key(1, 0), b"bytes");
    let note = SealNote::new(meta.root, r#"{"checkpoint": {"step": 40}}"#).expect("JSON");
    store.mark_sealed(&meta.key, &note).expect("sealed");
    let path = beside(&data_path(dir.path(), &meta), "seal");
    let sound = fs::read(&path).expect("a note");
    for bit in 0..sound.len() * 8 {
        let mut flipped = sound.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &flipped).expect("damaged");
        let read = store.seal_of(&meta.key, meta.root);
        // A flip in the case of a hex digit changes nothing that is said.
        let is_right = read.as_ref().is_ok_and(|read| *read == note);
        assert!(is_right || matches!(read, Err(ReadError::Corrupt { .. })), "bit {bit}: {read:?}");
    }
}

#[test]
fn removal_is_exact_and_can_be_repeated() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store(dir.path());
    let (first, second) = (put(&store, &key(1, 0), b"one"), put(&store, &key(1, 0), b"two"));
    assert_ne!(first.root, second.root);
    assert!(store.remove(&first.key, first.root).expect("removed"));
    assert!(!store.remove(&first.key, first.root).expect("harmless"));
    assert_eq!(store.list(), std::slice::from_ref(&second));
    assert_eq!(get(&store, &second.key, second.root).expect("read"), b"two");
    assert!(store.remove(&second.key, second.root).expect("removed"));
    assert_eq!(fs::read_dir(dir.path().join("blobs")).expect("blobs").count(), 0);
}

#[test]
fn a_key_that_contradicts_itself_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let writer = store(dir.path()).begin(None).expect("begun");
    let wrong = ShardKey { job: JobId(8), ..key(1, 0) };
    assert!(matches!(writer.finish(&wrong), Err(WriteError::Key { .. })));
    assert_eq!(fs::read_dir(dir.path().join("tmp")).expect("tmp").count(), 0);
}

#[test]
fn a_damaged_disk_id_is_not_replaced_silently() {
    let dir = tempfile::tempdir().expect("a folder");
    drop(store(dir.path()));
    fs::write(dir.path().join("disk-id"), [0xff, 0xfe]).expect("damaged");
    let err = ShardStore::open(dir.path()).err().expect("must fail");
    assert!(matches!(&err, OpenError::DiskId { .. }) && err.to_string().contains("disk-id"), "{err}");
}

/// A small disk of its own, where this process may mount one.
struct SmallDisk {
    at: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(size_bytes: u64) -> Option<Self> {
        let at = tempfile::tempdir().expect("a folder");
        let options = std::ffi::CString::new(format!("size={size_bytes}")).expect("no NUL");
        match rustix::mount::mount(
            "tmpfs",
            at.path(),
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            Some(options.as_c_str()),
        ) {
            Ok(()) => Some(Self { at }),
            Err(err) => {
                eprintln!("skipped: no small disk could be mounted here ({err}); root is needed");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.at.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_is_known_before_the_first_byte_and_survived_in_the_middle() {
    let Some(disk) = SmallDisk::mount(1 << 20) else { return };
    let store = store(disk.at.path());
    let kept = put(&store, &key(1, 0), &content(300_000));
    let free = store.free_bytes().expect("asked");
    assert!(free < 1 << 20);

    let told = store.begin(Some(2 << 20)).err().expect("must fail");
    assert!(
        matches!(told, WriteError::Full { wanted_bytes, free_bytes } if wanted_bytes == 2 << 20 && free_bytes == free),
        "{told}"
    );

    let mut writer = store.begin(None).expect("without a hint nobody knows");
    let written = writer.write_all(&content(3 << 20)).and_then(|()| writer.flush());
    assert_eq!(written.expect_err("must fail").kind(), io::ErrorKind::StorageFull);
    assert!(matches!(writer.finish(&key(2, 0)), Err(WriteError::Failed)));

    assert_eq!(store.free_bytes().expect("asked"), free, "nothing is left of what failed");
    store.verify(&kept.key, kept.root).expect("what was there is untouched");
    put(&store, &key(2, 0), &content(300_000));
}

#[test]
fn a_disk_that_is_full_in_the_middle_of_many_pieces_is_an_error_that_says_so() {
    let Some(disk) = SmallDisk::mount(24 << 20) else { return };
    let store = ShardStore::open(disk.at.path()).expect("a store");
    let free = store.free_bytes().expect("asked");
    for _ in 0..2 {
        let mut writer = store.begin(None).expect("without a hint nobody knows");
        let written = writer.take_from(&mut io::repeat(7), 40 << 20).expect_err("must fail");
        assert_eq!(written.kind(), io::ErrorKind::StorageFull);
        assert!(writer.write_all(b"more").is_err(), "nothing is written behind a gap");
        assert!(matches!(writer.finish(&key(2, 0)), Err(WriteError::Failed)));
        assert_eq!(store.free_bytes().expect("asked"), free, "nothing is left of what failed");
    }
    let meta = put(&store, &key(2, 0), &content(18 << 20));
    store.verify(&meta.key, meta.root).expect("a smaller one has room");
}

#[test]
fn a_bad_extent_that_was_read_ahead_is_told_in_its_turn_and_read_again_when_asked_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store(dir.path());
    let bytes = content(3 * EXTENT as usize);
    let meta = put(&store, &key(1, 0), &bytes);
    let mut damaged = bytes.clone();
    damaged[EXTENT as usize] ^= 1;
    let open = || store.open_shard(&meta.key, meta.root).expect("open");
    for mut reader in [open(), open().with_little_memory()] {
        fs::write(data_path(dir.path(), &meta), &damaged).expect("damaged");
        assert_eq!(reader.next_extent().expect("sound"), Some(&bytes[..EXTENT as usize]));
        for _ in 0..2 {
            assert!(matches!(reader.next_extent(), Err(ReadError::Corrupt { extent: 1 })));
        }
        fs::write(data_path(dir.path(), &meta), &bytes).expect("mended");
        let second = &bytes[EXTENT as usize..2 * EXTENT as usize];
        assert_eq!(reader.next_extent().expect("mended"), Some(second));
    }
}

#[test]
fn bytes_that_are_kept_as_evidence_outlive_a_copy_that_could_not_take_their_place() {
    let dir = tempfile::tempdir().expect("a folder");
    let bytes = content(3 * EXTENT as usize);
    let meta = put(&store(dir.path()), &key(1, 0), &bytes);
    let data = data_path(dir.path(), &meta);
    fs::write(&data, b"what is left").expect("damaged");
    fs::remove_file(beside(&data, "ext")).expect("removed");
    let store = store(dir.path());
    assert_eq!(store.list(), []);
    // The hashes of the copy cannot be written, as on a full disk.
    fs::create_dir_all(beside(&data, "ext").join("in the way")).expect("made");
    let mut writer = store.begin(None).expect("begun");
    writer.write_all(&bytes).expect("written");
    assert!(matches!(writer.finish(&key(1, 0)), Err(WriteError::Io { .. })));
    assert_eq!(fs::read(&data).expect("kept"), b"what is left");
}

#[test]
fn a_shard_that_cannot_get_its_name_leaves_nothing_beside_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store(dir.path());
    let bytes = content(3 * EXTENT as usize);
    let meta = put(&store, &key(1, 0), &bytes);
    let data = data_path(dir.path(), &meta);
    store.remove(&meta.key, meta.root).expect("removed");
    // Something is in the way of the name; that it is not a file makes the last step fail, after the hashes were written.
    fs::create_dir_all(data.join("in the way")).expect("made");
    let mut writer = store.begin(None).expect("begun");
    writer.write_all(&bytes).expect("written");
    assert!(matches!(writer.finish(&key(1, 0)), Err(WriteError::Io { .. })));
    assert!(!beside(&data, "ext").exists(), "hashes of no bytes");
    assert_eq!(fs::read_dir(dir.path().join("tmp")).expect("tmp").count(), 0);
    assert_eq!(store.list(), []);
}

#[test]
fn bytes_other_than_the_announced_ones_get_no_name_and_harm_nothing_that_is_there() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = store(dir.path());
    let key = key(1, 0);
    let good = put(&store, &key, b"good");
    let send = |bytes: &[u8], root, size_bytes| {
        let mut writer = store.begin(Some(size_bytes)).expect("begins");
        io::Write::write_all(&mut writer, bytes).expect("writes");
        writer.finish_as(&key, root, size_bytes)
    };
    let other = send(b"evil", good.root, 4).expect_err("other bytes");
    assert!(matches!(other, WriteError::Mismatch { .. }), "{other}");
    assert!(send(b"good", good.root, 9).is_err(), "a lie about the size");
    assert_eq!(store.list(), std::slice::from_ref(&good), "nothing came, and nothing went");
    store.verify(&key, good.root).expect("sound");
    assert_eq!(send(b"good", good.root, 4).expect("the same"), good);
}
