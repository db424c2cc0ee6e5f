//! The agent's data folder: private, locked, and the property of one node of one cluster. Owns `agent.json`.
//!
//! ```text
//!  DIR/agent.lock   held while an agent runs        DIR/shards, DIR/bundles   the blob stores
//!  DIR/agent.json   node, cluster, newest index     DIR/workers/ATTEMPT-RANK  one folder a worker
//!  DIR/canary       written to see whether the disk takes it
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use outlast_process::boot_now;
use outlast_staging::{find_outside, mark_outside, remove_outside};
use outlast_types::{ClusterId, NodeId};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

const IDENTITY_VERSION: u32 = 1;
/// A Unix socket's path has room for 108 bytes; the longest socket name of ours is far below 48.
const SOCKET_DIR_BYTES_MAX: usize = 108 - 48;

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("the folder {0} is in use by another agent: stop that one, or give this one a folder of its own")]
    InUse(PathBuf),
    #[error(
        "the folder {dir} belongs to node {owner}, not to {wanted}: use another folder, or say --name {owner}"
    )]
    OtherNode { dir: PathBuf, owner: NodeId, wanted: NodeId },
    #[error(
        "the folder {dir} belongs to cluster {owner}, and the coordinators are those of cluster {met}: check their addresses, or use another folder"
    )]
    OtherCluster { dir: PathBuf, owner: ClusterId, met: ClusterId },
    #[error("{path} is damaged or of a newer version; move the folder away to start anew")]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{0} belongs to another user, or is not a folder: what workers use must be private")]
    NotPrivate(PathBuf),
    #[error("{path} cannot be used")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io { path, source }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    version: u32,
    node: NodeId,
    /// `None` until the first welcome.
    cluster: Option<ClusterId>,
    /// The clusters that this one goes on from: their coordinators' words mean nothing any more.
    #[serde(default)]
    predecessors: Vec<ClusterId>,
    /// The newest desired state that was acted on: an agent never goes back (design section 2).
    acted_index: u64,
    /// How many agents were started on this folder.
    #[serde(default)]
    starts: u64,
}

/// More milliseconds than a machine is up.
const SERIALS_PER_START: u64 = 1 << 40;

/// The folder of a running agent.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    sockets: PathBuf,
    slots: Option<PathBuf>,
    identity: Mutex<Identity>,
    /// Of the newest registration.
    serial: AtomicU64,
    _lock: File,
    /// The marks of what lies outside it.
    _outside: Vec<File>,
}

impl Folder {
    /// Makes it where it is missing, locks it, and checks whose it is.
    ///
    /// # Errors
    /// In use, of another node, damaged, or not usable.
    pub(crate) fn open(root: &Path, node: &NodeId) -> Result<Self, FolderError> {
        private_dir(root)?;
        let root = root.canonicalize().map_err(io_error(root))?;
        let lock = lock(&root)?;
        let path = root.join("agent.json");
        let identity = match fs::read(&path) {
            Ok(bytes) => parse(&path, &bytes)?,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                let new = Identity {
                    version: IDENTITY_VERSION,
                    node: node.clone(),
                    cluster: None,
                    predecessors: Vec::new(),
                    acted_index: 0,
                    starts: 0,
                };
                write_json(&path, &new).map_err(io_error(&path))?;
                new
            }
            Err(source) => return Err(FolderError::Io { path, source }),
        };
        if identity.node != *node {
            return Err(FolderError::OtherNode { dir: root, owner: identity.node, wanted: node.clone() });
        }
        sweep_outside();
        let mut outside = Vec::new();
        let sockets = socket_dir(&root, &mut outside)?;
        private_dir(&root.join("workers"))?;
        let slots = slots_dir(&root, &mut outside)?;
        let serial = AtomicU64::new((identity.starts + 1) * SERIALS_PER_START + boot_now().0);
        let identity = Mutex::new(identity);
        let folder = Self { root, sockets, slots, identity, serial, _lock: lock, _outside: outside };
        if let Err(err) = folder.change(|identity| identity.starts += 1) {
            // A full disk must not keep the agent from ending what runs, and from making room. Within one boot, the clock
            // tells such starts apart.
            tracing::warn!(error = %err, "this start cannot be counted: after a reboot, a registration that was sent before may pass for a newer one");
        }
        Ok(folder)
    }

    /// For a new registration: greater than any that was made of this folder before.
    pub(crate) fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }
    pub(crate) fn shards(&self) -> PathBuf {
        self.root.join("shards")
    }
    pub(crate) fn bundles(&self) -> PathBuf {
        self.root.join("bundles")
    }
    pub(crate) fn workers(&self) -> PathBuf {
        self.root.join("workers")
    }
    /// Where the workers' sockets are.
    pub(crate) fn sockets(&self) -> &Path {
        &self.sockets
    }
    /// Where workers stage checkpoints in memory; made with the first slot. `None`: this machine has no such place.
    pub(crate) fn slots(&self) -> Option<&Path> {
        self.slots.as_deref()
    }
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        self.identity.lock().cluster.clone()
    }
    /// The clusters that this folder's goes on from, oldest first.
    pub(crate) fn predecessors(&self) -> Vec<ClusterId> {
        self.identity.lock().predecessors.clone()
    }
    pub(crate) fn acted_index(&self) -> u64 {
        self.identity.lock().acted_index
    }

    /// Learns the cluster at the first welcome, and checks it ever after. Blocks on the disk.
    ///
    /// # Errors
    /// Another cluster, or a disk that does not take it.
    pub(crate) fn meet_cluster(
        &self,
        met: &ClusterId,
        predecessors: &[ClusterId],
    ) -> Result<(), FolderError> {
        let Identity { cluster, predecessors: known, .. } = self.identity.lock().clone();
        match cluster {
            Some(owner) if owner != *met => {
                Err(FolderError::OtherCluster { dir: self.root.clone(), owner, met: met.clone() })
            }
            Some(_) if known == predecessors => Ok(()),
            _ => self.change(|identity| {
                identity.cluster = Some(met.clone());
                identity.predecessors = predecessors.to_vec();
            }),
        }
    }

    /// Goes over to a cluster that goes on from this folder's. Its log may be shorter than what was acted on, so that is
    /// forgotten in the same write. Says whether anything changed. Blocks on the disk.
    ///
    /// # Errors
    /// The cluster does not go on from this folder's, or was left before; or a disk that does not take it.
    pub(crate) fn follow_cluster(
        &self,
        to: &ClusterId,
        predecessors: &[ClusterId],
    ) -> Result<bool, FolderError> {
        match self.cluster() {
            None => Ok(false),
            Some(own) if own == *to => Ok(false),
            Some(own) if predecessors.contains(&own) && !self.has_left(to.as_str()) => {
                self.change(|identity| {
                    identity.cluster = Some(to.clone());
                    identity.predecessors = predecessors.to_vec();
                    identity.acted_index = 0;
                })?;
                Ok(true)
            }
            Some(owner) => Err(FolderError::OtherCluster { dir: self.root.clone(), owner, met: to.clone() }),
        }
    }

    /// Whether this folder's cluster goes on from that one.
    pub(crate) fn has_left(&self, cluster: &str) -> bool {
        self.identity.lock().predecessors.iter().any(|left| left.as_str() == cluster)
    }

    /// To be called before acting on a desired state. Blocks on the disk.
    ///
    /// # Errors
    /// A disk that does not take it: then nothing may be done.
    pub(crate) fn remember_acted(&self, index: u64) -> Result<(), FolderError> {
        if index <= self.acted_index() {
            return Ok(());
        }
        self.change(|identity| identity.acted_index = index)
    }

    fn change(&self, change: impl FnOnce(&mut Identity)) -> Result<(), FolderError> {
        let mut identity = self.identity.lock();
        let mut next = identity.clone();
        change(&mut next);
        let path = self.root.join("agent.json");
        write_json(&path, &next).map_err(io_error(&path))?;
        *identity = next;
        Ok(())
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Identity, FolderError> {
    let damaged = |source| FolderError::Damaged { path: path.to_owned(), source };
    let identity: Identity = serde_json::from_slice(bytes).map_err(damaged)?;
    if identity.version > IDENTITY_VERSION {
        let text = format!("version {} is newer than {IDENTITY_VERSION}", identity.version);
        return Err(damaged(serde::de::Error::custom(text)));
    }
    Ok(identity)
}

fn lock(root: &Path) -> Result<File, FolderError> {
    let path = root.join("agent.lock");
    let file =
        File::options().create(true).truncate(false).write(true).open(&path).map_err(io_error(&path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(FolderError::InUse(root.to_owned())),
        Err(errno) => Err(FolderError::Io { path, source: errno.into() }),
    }
}

/// Makes a folder that only its user can enter.
///
/// # Errors
/// When it cannot be made or its mode cannot be set.
pub(crate) fn private_dir(path: &Path) -> Result<(), FolderError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error(path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io_error(path))
}

/// Inside the data folder where the path is short enough, else in the user's runtime folder or `/tmp`. The name is made
/// of the data folder's, so that a restarted agent finds the sockets that its workers know.
fn socket_dir(root: &Path, outside: &mut Vec<File>) -> Result<PathBuf, FolderError> {
    let inside = root.join("run");
    if inside.as_os_str().len() <= SOCKET_DIR_BYTES_MAX {
        private_dir(&inside)?;
        return Ok(inside);
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let base = runtime.filter(|dir| dir.is_absolute() && dir.as_os_str().len() <= SOCKET_DIR_BYTES_MAX - 28);
    let dir = base.unwrap_or_else(|| PathBuf::from("/tmp")).join(private_name(root));
    outside.push(mark_outside(&dir, root).map_err(io_error(&dir))?);
    owned_dir(&dir)?;
    Ok(dir)
}

/// Removes what agents of this user have left outside data folders that are gone.
fn sweep_outside() {
    for dir in find_outside(|owner| matches!(owner.try_exists(), Ok(false))) {
        if let Err(err) = remove_outside(&dir) {
            tracing::warn!(path = %dir.display(), error = %err, "a folder of an agent that is gone stays");
        }
    }
}

/// Makes a folder that only its user can enter, where somebody else may have been first.
///
/// # Errors
/// When it is another user's, or cannot be made.
pub(crate) fn owned_dir(dir: &Path) -> Result<(), FolderError> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => {
            return Err(FolderError::Io { path: dir.to_owned(), source: err });
        }
        _ => {}
    }
    let meta = fs::symlink_metadata(dir).map_err(io_error(dir))?;
    if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(FolderError::NotPrivate(dir.to_owned()));
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io_error(dir))
}

/// In the machine's shared memory. The name is made of the data folder's, so that a restarted agent finds the slots.
fn slots_dir(root: &Path, outside: &mut Vec<File>) -> Result<Option<PathBuf>, FolderError> {
    let shared = Path::new("/dev/shm");
    if !crate::worker::is_tmpfs(shared) {
        return Ok(None);
    }
    let dir = shared.join(private_name(root));
    outside.push(mark_outside(&dir, root).map_err(io_error(&dir))?);
    Ok(Some(dir))
}

/// A name for this agent's folder in a place that belongs to everybody.
fn private_name(root: &Path) -> String {
    let hash = blake3::hash(root.as_os_str().as_encoded_bytes()).to_hex();
    format!("outlast-{}-{}", rustix::process::geteuid().as_raw(), &hash[..12])
}

/// Writes a file so that after a crash it is the old one or the new one, whole.
///
/// # Errors
/// What the disk says.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec_pretty(value)?;
    let tmp = path.with_extension("tmp");
    let mut file = File::options().create(true).truncate(true).write(true).open(&tmp)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&tmp, path)?;
    let parent = path.parent().expect("a file lies in a folder");
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("a name")
    }

    #[test]
    fn registrations_are_numbered_across_starts_also_where_the_disk_does_not_take_the_count() {
        let tmp = tempfile::tempdir().expect("a folder");
        let open = || Folder::open(tmp.path(), &node("a")).expect("opens");
        let mut last = 0;
        for is_full in [false, false, true, true, false] {
            // Stands where the next `agent.json` is written first.
            let blocker = tmp.path().join("agent.tmp");
            let _ = fs::remove_dir(&blocker);
            if is_full {
                fs::create_dir(&blocker).expect("made");
            }
            let folder = open();
            for serial in [folder.next_serial(), folder.next_serial()] {
                assert!(serial > last, "{serial}, {last}, full: {is_full}");
                last = serial;
            }
            // A process is not started twice within some milliseconds.
            drop(folder);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    #[test]
    fn a_folder_belongs_to_one_running_agent_one_node_and_one_cluster() {
        let tmp = tempfile::tempdir().expect("a folder");
        let dir = tmp.path().join("data");
        let folder = Folder::open(&dir, &node("a")).expect("opens");
        assert_eq!(fs::metadata(&dir).expect("exists").mode() & 0o777, 0o700);
        assert!(matches!(Folder::open(&dir, &node("a")), Err(FolderError::InUse(_))));
        let (one, two) = (ClusterId::new("one").expect("valid"), ClusterId::new("two").expect("valid"));
        folder.meet_cluster(&one, &[]).expect("learns");
        folder.remember_acted(7).expect("writes");
        folder.remember_acted(5).expect("ignores");
        drop(folder);
        let err = Folder::open(&dir, &node("b")).expect_err("another node");
        assert!(err.to_string().contains("belongs to node a, not to b"), "{err}");
        let folder = Folder::open(&dir, &node("a")).expect("opens again");
        assert_eq!(folder.acted_index(), 7, "an agent never goes back");
        folder.meet_cluster(&one, &[]).expect("the same");
        assert!(matches!(folder.meet_cluster(&two, &[]), Err(FolderError::OtherCluster { .. })));
    }

    #[test]
    fn a_folder_follows_its_cluster_into_a_new_one_and_never_back() {
        let tmp = tempfile::tempdir().expect("a folder");
        let dir = tmp.path().join("data");
        let folder = Folder::open(&dir, &node("a")).expect("opens");
        let cluster = |name: &str| ClusterId::new(name).expect("valid");
        let (one, two, other) = (cluster("one"), cluster("two"), cluster("other"));
        folder.meet_cluster(&one, &[]).expect("learns");
        folder.remember_acted(70).expect("writes");
        let stranger = folder.follow_cluster(&other, std::slice::from_ref(&other));
        assert!(matches!(stranger, Err(FolderError::OtherCluster { .. })), "it does not go on from ours");
        assert_eq!((folder.cluster(), folder.acted_index()), (Some(one.clone()), 70));
        assert!(folder.follow_cluster(&two, std::slice::from_ref(&one)).expect("follows"));
        drop(folder);
        let folder = Folder::open(&dir, &node("a")).expect("opens again");
        assert_eq!(folder.cluster(), Some(two.clone()), "durably");
        assert_eq!(folder.acted_index(), 0, "the new log may be shorter");
        assert!(folder.has_left("one") && !folder.has_left("two"));
        assert!(!folder.follow_cluster(&two, std::slice::from_ref(&one)).expect("the same"));
        assert!(folder.follow_cluster(&one, std::slice::from_ref(&two)).is_err(), "never back");
        assert!(folder.meet_cluster(&one, &[]).is_err());
    }

    #[test]
    fn sockets_have_a_short_private_place_under_any_data_folder() {
        let tmp = tempfile::tempdir().expect("a folder");
        let deep = tmp.path().join("x".repeat(90));
        let folder = Folder::open(&deep, &node("a")).expect("opens");
        assert!(folder.sockets().as_os_str().len() <= SOCKET_DIR_BYTES_MAX);
        assert_eq!(fs::metadata(folder.sockets()).expect("exists").mode() & 0o777, 0o700);
        fs::remove_dir_all(folder.sockets()).expect("removes");
    }

    #[test]
    fn what_lies_outside_goes_after_its_data_folder() {
        let tmp = tempfile::tempdir().expect("a folder");
        let (old, new) = (tmp.path().join("old"), tmp.path().join("new"));
        let folder = Folder::open(&old, &node("a")).expect("opens");
        let Some(slots) = folder.slots().map(Path::to_owned) else { return };
        drop(folder);
        owned_dir(&slots).expect("made");
        drop(Folder::open(&new, &node("b")).expect("opens"));
        assert!(slots.exists(), "the agent may come again");
        fs::remove_dir_all(&old).expect("removes");
        drop(Folder::open(&new, &node("b")).expect("opens"));
        let all = find_outside(|owner| owner.starts_with(tmp.path()));
        assert!(!slots.exists() && all.iter().all(|dir| *dir != slots));
        all.iter().for_each(|dir| assert!(remove_outside(dir).expect("removes")));
    }
}
