//! The channels to the other coordinators: made once each, shared by every replication stream and read round.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outlast_proto::raft::v1::{self as pb, raft_service_client::RaftServiceClient};
use outlast_types::{BootTime, ClusterId, Millis};
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

use super::MESSAGE_BYTES_MAX;
use crate::clock::boot_now;
use crate::disk::LogMark;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A dead connection is noticed within two seconds although nothing is sent.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// One other coordinator.
pub(crate) struct Peer {
    pub(crate) route: pb::Route,
    /// Votes and log entries. HTTP/2 has one TCP stream a channel: a snapshot must not stand before a heartbeat.
    pub(crate) control: RaftServiceClient<Channel>,
    /// Snapshots.
    pub(crate) bulk: RaftServiceClient<Channel>,
    matched: Mutex<Matched>,
    /// When it last said that its disk has room to lead, on the boot clock; zero where it said the opposite.
    room_at_ms: AtomicU64,
}

/// The highest entry that the peer said it has, within one term.
#[derive(Default)]
struct Matched {
    term: u64,
    upto: Option<LogMark>,
}

impl Peer {
    /// Remembers that the peer has everything up to `upto`, said to the leader of `term`.
    pub(crate) fn has(&self, term: u64, upto: Option<LogMark>) {
        let mut matched = self.matched.lock();
        if matched.term != term {
            *matched = Matched { term, upto: None };
        }
        matched.upto = matched.upto.max(upto);
    }

    pub(crate) fn said_room(&self, has_room: bool) {
        let at_ms = if has_room { boot_now().0 } else { 0 };
        self.room_at_ms.store(at_ms, Ordering::Relaxed);
    }

    /// Whether the peer once said to this leader that it has this entry.
    pub(crate) fn had(&self, term: u64, entry: Option<LogMark>) -> bool {
        let matched = self.matched.lock();
        matched.term == term && entry.is_some() && entry <= matched.upto
    }
}

/// `None`: an address that cannot be used.
type Known = BTreeMap<(u64, String), Option<Arc<Peer>>>;

/// All peers by id and address; an id never changes its address, but a test or an operator may try.
#[derive(Clone)]
pub(crate) struct Peers {
    cluster_id: ClusterId,
    own_id: u64,
    known: Arc<Mutex<Known>>,
}

impl Peers {
    pub(crate) fn new(cluster_id: ClusterId, own_id: u64) -> Self {
        Self { cluster_id, own_id, known: Arc::default() }
    }

    /// `None`: the address is none, which was logged. Must be called within a tokio runtime.
    pub(crate) fn get(&self, id: u64, address: &str) -> Option<Arc<Peer>> {
        let mut known = self.known.lock();
        known.entry((id, address.to_owned())).or_insert_with(|| self.connect(id, address)).clone()
    }

    /// Whether one of these coordinators said within this time that its disk has room to lead.
    pub(crate) fn any_has_room(&self, ids: &BTreeSet<u64>, within_ms: Millis) -> bool {
        let known = self.known.lock();
        let has_room = |peer: &Arc<Peer>| {
            boot_now().since(BootTime(peer.room_at_ms.load(Ordering::Relaxed))) <= within_ms
        };
        known.iter().any(|((id, _), peer)| ids.contains(id) && peer.as_ref().is_some_and(has_room))
    }

    fn connect(&self, id: u64, address: &str) -> Option<Arc<Peer>> {
        let endpoint = match Endpoint::from_shared(format!("http://{address}")) {
            Ok(endpoint) => endpoint,
            Err(err) => {
                tracing::error!(coordinator = id, address, %err, "the address of a member cannot be used");
                return None;
            }
        };
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let client = |endpoint: &Endpoint| {
            RaftServiceClient::new(outlast_host::net::connect_lazy(endpoint))
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX)
        };
        let route = pb::Route { cluster_id: self.cluster_id.to_string(), from: self.own_id, to: id };
        let (control, bulk) = (client(&endpoint), client(&endpoint));
        Some(Arc::new(Peer {
            route,
            control,
            bulk,
            matched: Mutex::default(),
            room_at_ms: AtomicU64::new(0),
        }))
    }
}
