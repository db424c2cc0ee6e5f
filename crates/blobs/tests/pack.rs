//! Folders as archives: same bytes for the same folder, and attacks that must not get out.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use outlast_blobs::{BundleError, BundleStore, Keep, PackError, PackLimits, PackStats, pack_dir, unpack};
use tar::{Builder, EntryType, Header};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn sample(dir: &Path) {
    fs::create_dir_all(dir.join("src/deep")).expect("made");
    fs::write(dir.join("train.py"), "print('hi')").expect("made");
    fs::set_permissions(dir.join("train.py"), fs::Permissions::from_mode(0o755)).expect("mode");
    fs::write(dir.join("src/deep").join("n".repeat(180)), vec![7; 100_000]).expect("made");
    fs::write(dir.join("empty"), "").expect("made");
    symlink("../train.py", dir.join("src/link")).expect("made");
}

fn packed(dir: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack_dir(dir, &mut bytes, PackLimits::default()).expect("packed");
    bytes
}

#[test]
fn the_same_folder_gives_the_same_bytes_and_comes_back_whole() {
    let (one, two, out) = (folder(), folder(), folder());
    sample(one.path());
    std::thread::sleep(std::time::Duration::from_millis(5));
    sample(two.path());
    let bytes = packed(one.path());
    assert_eq!(bytes, packed(two.path()));
    let stats = unpack(&bytes[..], out.path(), PackLimits::default()).expect("unpacked");
    assert_eq!(stats, PackStats { entries: 6, total_bytes: 100_011 });
    let mode = fs::metadata(out.path().join("train.py")).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o755);
    assert_eq!(fs::read_to_string(out.path().join("src/link")).expect("read"), "print('hi')");
    assert_eq!(packed(out.path()), bytes, "there and back again");
    assert!(unpack(&bytes[..], out.path(), PackLimits::default()).is_err(), "the folder must be empty");
}

#[test]
fn what_cannot_travel_is_named_when_packing() {
    let dir = folder();
    fs::write(dir.path().join("ok"), "x").expect("made");
    let err = |limits| pack_dir(dir.path(), &mut Vec::new(), limits).expect_err("must fail");
    symlink("/etc/passwd", dir.path().join("out")).expect("made");
    assert!(matches!(err(PackLimits::default()), PackError::Escapes { entry } if entry == "out"));
    fs::remove_file(dir.path().join("out")).expect("removed");
    let socket = std::os::unix::net::UnixListener::bind(dir.path().join("sock")).expect("bound");
    assert!(matches!(err(PackLimits::default()), PackError::Kind { entry, .. } if entry == "sock"));
    drop(socket);
    fs::write(dir.path().join("big"), vec![0; 1000]).expect("made");
    fs::remove_file(dir.path().join("sock")).expect("removed");
    let limits = PackLimits { entry_bytes: 999, ..PackLimits::default() };
    assert!(
        matches!(err(limits), PackError::EntryTooLarge { entry, size_bytes: 1000, .. } if entry == "big")
    );
    let limits = PackLimits { total_bytes: 1000, ..PackLimits::default() };
    assert!(matches!(err(limits), PackError::TooLarge { .. }));
    assert!(matches!(err(PackLimits { entries: 1, ..PackLimits::default() }), PackError::TooMany { .. }));
}

/// An archive with raw names, as no honest packer writes them.
#[derive(Default)]
struct Evil {
    builder: Option<Builder<Vec<u8>>>,
}

impl Evil {
    fn add(mut self, kind: EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_gnu_mut().expect("gnu").name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().expect("gnu").linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o4777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        let mut builder = self.builder.take().unwrap_or_else(|| Builder::new(Vec::new()));
        builder.append(&header, content).expect("appended");
        Self { builder: Some(builder) }
    }
    fn file(self, name: &str) -> Self {
        self.add(EntryType::Regular, name, "", b"evil")
    }
    fn bytes(self) -> Vec<u8> {
        self.builder.expect("entries").into_inner().expect("bytes")
    }
    fn refused(self, why: &str) -> PackError {
        let outer = folder();
        let dest = outer.path().join("a/b/dest");
        let err = unpack(&self.bytes()[..], &dest, PackLimits::default()).expect_err(why);
        for name in ["evil", "a/evil", "a/b/evil"] {
            assert!(!outer.path().join(name).exists(), "{why}: it got out");
        }
        assert!(!Path::new("/tmp/outlast-evil").exists(), "{why}: it got out");
        err
    }
}

#[test]
fn nothing_leaves_the_folder() {
    let escapes = |evil: Evil, why: &str| {
        let err = evil.refused(why);
        assert!(matches!(err, PackError::Escapes { .. } | PackError::Twice { .. }), "{why}: {err:?}");
    };
    escapes(Evil::default().file("../evil"), "a parent");
    escapes(Evil::default().file("x/../../evil"), "a parent inside");
    escapes(Evil::default().file("/tmp/outlast-evil"), "an absolute path");
    let link = |target: &str| Evil::default().add(EntryType::Symlink, "link", target, b"");
    escapes(link("/tmp"), "an absolute link");
    escapes(link(".."), "a link to the parent");
    escapes(link("x/../../.."), "a link that steps out behind a name");
    escapes(link(""), "a link to nothing");
    let inner = Evil::default().add(EntryType::Directory, "real", "", b"").add(
        EntryType::Symlink,
        "link",
        "real",
        b"",
    );
    escapes(inner.file("link/evil"), "a file through a link");
    let twice = Evil::default().add(EntryType::Symlink, "evil", "elsewhere", b"");
    escapes(twice.file("evil"), "a file over a link");
    escapes(Evil::default().file("x").file("x/evil"), "a file as a folder");
}

#[test]
fn devices_pipes_and_hard_links_are_refused_by_name() {
    for (kind, what) in [
        (EntryType::Char, "device"),
        (EntryType::Block, "device"),
        (EntryType::Fifo, "pipe"),
        (EntryType::Link, "hard link"),
    ] {
        let err = Evil::default().file("x").add(kind, "odd", "x", b"").refused(what);
        assert!(
            matches!(&err, PackError::Kind { entry, kind } if entry == "odd" && *kind == what),
            "{err:?}"
        );
    }
}

#[test]
fn oversize_is_refused_before_it_is_written_and_special_bits_are_dropped() {
    let archive = Evil::default().file("a").file("b").file("c").bytes();
    let check = |limits, expected: fn(&PackError) -> bool| {
        let err = unpack(&archive[..], folder().path(), limits).expect_err("must fail");
        assert!(expected(&err), "{err:?}");
    };
    check(
        PackLimits { total_bytes: 11, ..PackLimits::default() },
        |err| matches!(err, PackError::TooLarge { entry, .. } if entry == "c"),
    );
    check(
        PackLimits { entry_bytes: 3, ..PackLimits::default() },
        |err| matches!(err, PackError::EntryTooLarge { entry, .. } if entry == "a"),
    );
    check(
        PackLimits { entries: 2, ..PackLimits::default() },
        |err| matches!(err, PackError::TooMany { entry, .. } if entry == "c"),
    );
    let out = folder();
    unpack(&archive[..], out.path(), PackLimits::default()).expect("fits");
    assert_eq!(
        fs::metadata(out.path().join("a")).expect("there").permissions().mode() & 0o7777,
        0o777,
        "no set-user-id"
    );
}

#[test]
fn a_cut_or_damaged_archive_never_panics() {
    let dir = folder();
    sample(dir.path());
    let bytes = packed(dir.path());
    for cut in (0..bytes.len() - 1024).step_by(4_099) {
        let _ = unpack(&bytes[..cut], folder().path(), PackLimits::default());
    }
    for at in (0..2048).step_by(3) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        let _ = unpack(&damaged[..], folder().path(), PackLimits::default());
    }
}

#[test]
fn bundles_are_what_their_name_says() {
    let dir = folder();
    let store = BundleStore::open(dir.path()).expect("a store");
    let (digest, size) = store.put(&b"bundle"[..], None, 100).expect("put");
    assert_eq!((size, store.put(&b"bundle"[..], Some(digest), 100).expect("again")), (6, (digest, 6)));
    let mismatch = store.put(&b"other"[..], Some(digest), 100).expect_err("must fail");
    assert!(matches!(mismatch, BundleError::Mismatch { expected, .. } if expected == digest));
    assert!(matches!(store.put(&b"too long"[..], None, 7), Err(BundleError::TooLarge { limit_bytes: 7 })));
    assert_eq!(fs::read_dir(dir.path().join("tmp")).expect("tmp").count(), 0);
    assert_eq!(std::io::read_to_string(store.open_bundle(&digest).expect("open")).expect("text"), "bundle");
    assert_eq!(store.list().expect("listed"), [(digest, 6)]);
    fs::write(dir.path().join(digest.to_string()), "bandle").expect("damaged");
    assert!(matches!(store.open_bundle(&digest), Err(BundleError::Corrupt(found)) if found == digest));
    assert!(
        store.remove(&digest).expect("removed")
            && !store.has(&digest)
            && !store.remove(&digest).expect("harmless")
    );
    assert!(matches!(store.open_bundle(&digest), Err(BundleError::Missing(_))));
}

#[test]
fn bundles_go_only_when_there_are_many_and_big_ones_that_nobody_wants_or_used_lately() {
    let tmp = tempfile::tempdir().expect("a folder");
    let store = BundleStore::open(tmp.path()).expect("opens");
    let put = |content: &[u8]| store.put(content, None, 100).expect("put").0;
    let (old, wanted, new) = (put(b"the oldest"), put(b"an old one"), put(b"the newest"));
    let week = Duration::from_secs(7 * 24 * 3_600);
    for (digest, weeks) in [(old, 3), (wanted, 2)] {
        let file = fs::File::options().write(true).open(tmp.path().join(digest.to_string())).expect("there");
        file.set_modified(SystemTime::now() - week * weeks).expect("set");
    }
    let keep = |count, bytes| Keep { count, bytes, age: week };
    let prune = |keep| store.prune(keep, |digest| *digest == wanted).expect("prunes");
    assert_eq!((prune(keep(3, 0)), prune(keep(0, 30))), (0, 0), "few, or small");
    assert_eq!(prune(keep(1, 10)), 1);
    assert!(!store.has(&old) && store.has(&wanted) && store.has(&new));
    assert_eq!(prune(keep(0, 0)), 0, "wanted, or used lately");
    let old = put(b"the oldest");
    let file = fs::File::options().write(true).open(tmp.path().join(old.to_string())).expect("there");
    file.set_modified(SystemTime::now() - week * 3).expect("set");
    store.open_bundle(&old).expect("used");
    assert_eq!(prune(keep(0, 0)), 0, "its use was noted");
}
