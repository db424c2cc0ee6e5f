//! Shards between two agents, over several connections. Between them is a proxy, which counts the connections and breaks
//! some.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const CONNECTIONS: u32 = 3;
/// Enough that each connection is worth it.
const BYTES: usize = 40 << 20;

#[derive(Clone, Copy, PartialEq)]
enum Break {
    /// Both sides are told.
    Cut,
    /// Nobody hears of the other side again.
    Freeze,
}

#[derive(Default)]
struct Seen {
    connections: AtomicU64,
    /// So many of the next ones break in the middle.
    to_break: Mutex<Vec<Break>>,
    broken: AtomicU64,
}

/// Leads to the agent.
async fn proxy(to: SocketAddr) -> (SocketAddr, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let (address, seen) = (listener.local_addr().expect("bound"), Arc::new(Seen::default()));
    let of = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (breaks, seen) = (of.to_break.lock().expect("sound").pop(), Arc::clone(&of));
            of.connections.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let Ok(mut server) = TcpStream::connect(to).await else { return };
                let Some(how) = breaks else {
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                    return;
                };
                pass_some(&mut client, &mut server).await;
                seen.broken.fetch_add(1, Ordering::SeqCst);
                if how == Break::Freeze {
                    std::future::pending().await
                }
            });
        }
    });
    (address, seen)
}

/// A part of what either of them sends.
async fn pass_some(client: &mut TcpStream, server: &mut TcpStream) {
    const SOME_BYTES: u64 = BYTES as u64 / CONNECTIONS as u64 / 2;
    let (asks, mut answers_to) = client.split();
    let (answers, mut asks_to) = server.split();
    let (mut asks, mut answers) = (asks.take(SOME_BYTES), answers.take(SOME_BYTES));
    tokio::select! {
        _ = tokio::io::copy(&mut asks, &mut asks_to) => {}
        _ = tokio::io::copy(&mut answers, &mut answers_to) => {}
    }
}

struct Pair {
    fake: Fake,
    tmp: tempfile::TempDir,
    agents: [RunningAgent; 2],
    peers: [pb::Peer; 2],
    /// What went to each.
    seen: [Arc<Seen>; 2],
}

impl Pair {
    async fn start() -> Self {
        let (fake, tmp) = (Fake::start().await, tempfile::tempdir().expect("a folder"));
        let start = async |name: &str| {
            let config = config(name, &tmp.path().join(name), &[&fake], keeper_exe());
            Agent::start(AgentConfig { data_connections: CONNECTIONS, ..config }).await.expect("starts")
        };
        let agents = [start("n1").await, start("n2").await];
        let (address1, seen1) = proxy(agents[0].address).await;
        let (address2, seen2) = proxy(agents[1].address).await;
        let peer =
            |node: &str, address: SocketAddr| pb::Peer { node: node.into(), address: address.to_string() };
        let peers = [peer("n1", address1), peer("n2", address2)];
        let weights = tmp.path().join("weights");
        std::fs::create_dir(&weights).expect("makes");
        let bytes: Vec<u8> = (0..BYTES as u64).map(|n| (n.wrapping_mul(2_654_435_761) >> 9) as u8).collect();
        std::fs::write(weights.join("w"), &bytes).expect("writes");
        Self { fake, tmp, agents, peers, seen: [seen1, seen2] }
    }

    /// A worker of the first node has saved; its copy to the second one breaks.
    async fn saved(breaks: Vec<Break>) -> Self {
        let pair = Self::start().await;
        let worker = shell(A1, LONG);
        let worker = pb::DesiredWorker { replicas: 2, replica_peers: vec![pair.peers[1].clone()], ..worker };
        pair.fake.desire("n1", 10, vec![worker]);
        eventually("started", || has(&pair.fake, "n1", started(A1))).await;
        *pair.seen[1].to_break.lock().expect("sound") = breaks;
        pair.save(0).await;
        pair
    }

    /// The rank's worker on the first node saves the same weights as any other.
    async fn save(&self, rank: u32) {
        let mut client = socket_of(&self.tmp.path().join("n1"), A1, rank).await;
        let directory = self.tmp.path().join("weights").to_string_lossy().into_owned();
        let request = worker_pb::SaveCheckpointRequest { step: 7, directory, in_turn: false };
        client.save_checkpoint(request).await.expect("saves");
    }

    /// A worker that ends well if it finds the weights that were saved.
    fn restored(&self, receipt: &pb::Receipt) -> pb::DesiredWorker {
        let restore = pb::Restore {
            checkpoint: receipt.checkpoint.clone(),
            step: 7,
            attempt: A1.into(),
            root: receipt.root.clone(),
            size_bytes: receipt.size_bytes,
            holders: self.peers.to_vec(),
            stored: false,
        };
        let weights = self.tmp.path().join("weights/w");
        let script = format!("cmp $OUTLAST_RESTORE_DIR/w {} && exit 5", weights.display());
        let worker = shell(A2, &script);
        pb::DesiredWorker { rank: receipt.rank, restore: Some(restore), ..worker }
    }

    /// How many of them ended well.
    fn ended_well(&self) -> usize {
        let good = |seen: &&Observation| matches!(seen, Observation::Exited { exit, .. } if exit.status == ExitStatus::Code(5));
        self.fake.observations("n2").iter().filter(good).count()
    }

    async fn copied(&self) -> pb::Receipt {
        let receipt = || self.fake.node("n1").receipts.first().filter(|one| one.holders.len() == 2).cloned();
        eventually("two holders", || receipt().is_some()).await;
        receipt().expect("just seen")
    }

    fn half_written(&self) -> usize {
        walk(&self.tmp.path().join("n2/shards/tmp")).len()
    }

    async fn end(self) {
        for agent in self.agents {
            agent.shutdown(StopWorkers::Yes).await;
        }
    }
}

fn count(of: &AtomicU64) -> u64 {
    of.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_bytes_go_over_several_connections_and_a_cut_one_harms_nothing() {
    let pair = Pair::saved(vec![Break::Cut]).await;
    let receipt = pair.copied().await;
    let [to_1, to_2] = &pair.seen;
    assert_eq!(count(&to_2.broken), 1, "the first try was cut in the middle");
    assert_eq!(count(&to_2.connections), 2 * u64::from(CONNECTIONS), "two tries");
    eventually("nothing is left of the first try", || pair.half_written() == 0).await;

    // The own copy of the second node is lost: it fetches from the first one.
    let blobs = walk(&pair.tmp.path().join("n2/shards/blobs"));
    blobs.iter().for_each(|path| std::fs::remove_file(path).expect("removed"));
    let fake = &pair.fake;
    fake.desire("n2", 20, vec![pair.restored(&receipt)]);
    eventually("released", || has(fake, "n2", released(A2))).await;
    assert_eq!(pair.ended_well(), 1, "{:?}", fake.observations("n2"));
    assert_eq!(count(&to_1.connections), u64::from(CONNECTIONS));
    pair.end().await;
}

fn of_three(worker: pb::DesiredWorker) -> pb::DesiredWorker {
    // Nobody listens there, and nobody asks.
    let rendezvous = "127.0.0.1:9".to_owned();
    pb::DesiredWorker { world_size: 3, local_world_size: 3, rendezvous, ..worker }
}

/// Three ranks of the first node have saved equal bytes, and three of the second one start from them. The transfers break.
async fn three_restored(breaks: Vec<Break>) -> Pair {
    let pair = Pair::start().await;
    let ranks = (0..3).map(|rank| pb::DesiredWorker { rank, ..of_three(shell(A1, LONG)) });
    pair.fake.desire("n1", 10, ranks.collect());
    let running = || pair.fake.observations("n1").iter().filter(|seen| started(A1)(seen)).count();
    eventually("all have started", || running() == 3).await;
    for rank in 0..3 {
        pair.save(rank).await;
    }
    let receipts = || pair.fake.node("n1").receipts.into_iter().filter(|one| !one.holders.is_empty());
    eventually("three receipts", || receipts().count() == 3).await;
    *pair.seen[0].to_break.lock().expect("sound") = breaks;
    pair.fake.desire("n2", 20, receipts().map(|one| of_three(pair.restored(&one))).collect());
    eventually("all have ended", || {
        pair.fake.observations("n2").iter().filter(|seen| released(A2)(seen)).count() == 3
    })
    .await;
    assert_eq!(pair.ended_well(), 3, "{:?}", pair.fake.observations("n2"));
    pair
}

#[tokio::test(flavor = "multi_thread")]
async fn ranks_of_a_node_with_equal_bytes_fetch_them_once() {
    let pair = three_restored(vec![]).await;
    assert_eq!(count(&pair.seen[0].connections), u64::from(CONNECTIONS), "one transfer");
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranks_with_equal_bytes_go_on_when_the_one_that_fetches_them_hears_nothing_more() {
    let pair = three_restored(vec![Break::Freeze; CONNECTIONS as usize]).await;
    assert_eq!(count(&pair.seen[0].broken), u64::from(CONNECTIONS), "it was in the middle");
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_vanished_in_the_middle_gives_its_place_back() {
    let pair = Pair::saved(vec![Break::Freeze; CONNECTIONS as usize]).await;
    eventually("all connections are frozen", || count(&pair.seen[1].broken) == u64::from(CONNECTIONS)).await;
    pair.copied().await;
    // The frozen connections are still there: their silence, or the call's deadline, ends them.
    eventually("nothing is left of the first try", || pair.half_written() == 0).await;
    pair.end().await;
}

/// So many are served at a time.
const VERIFIED: usize = 4;

/// Somebody who passes the bytes on.
struct Export {
    stream: tonic::Streaming<peer_pb::Chunk>,
    _client: PeerServiceClient<tonic::transport::Channel>,
}

impl Export {
    async fn begin(address: String, receipt: &pb::Receipt) -> Result<Self, tonic::Status> {
        let key = peer_pb::ShardKey {
            attempt: A1.into(),
            checkpoint: receipt.checkpoint.clone(),
            rank: receipt.rank,
            root: receipt.root.clone().into(),
            size_bytes: receipt.size_bytes,
        };
        let request =
            peer_pb::GetShardRequest { cluster_id: CLUSTER.into(), key: Some(key), ..Default::default() };
        let mut client = PeerServiceClient::connect(format!("http://{address}")).await.expect("connects");
        let stream = client.get_shard(request).await?.into_inner();
        Ok(Self { stream, _client: client })
    }

    async fn bytes(mut self) -> u64 {
        let mut bytes = 0;
        while let Some(chunk) = self.stream.message().await.expect("goes on") {
            bytes += chunk.data.len() as u64;
        }
        bytes
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_verified_before_it_is_sent_waits_its_turn_also_for_readers_that_vanished() {
    let pair = Pair::saved(vec![]).await;
    let receipt = pair.copied().await;
    let direct = pair.agents[0].address.to_string();
    *pair.seen[0].to_break.lock().expect("sound") = vec![Break::Freeze; VERIFIED];
    let began = Arc::new(AtomicU64::new(0));
    let export = |address: String| tokio::spawn(exported(address, receipt.clone(), Arc::clone(&began)));
    let vanished = [(); VERIFIED].map(|()| export(pair.peers[0].address.clone()));
    eventually("all are frozen", || count(&pair.seen[0].broken) == VERIFIED as u64).await;
    let next = export(direct);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(count(&began), VERIFIED as u64, "they hold as much memory as they may");

    // What needs little memory goes on meanwhile.
    let blobs = walk(&pair.tmp.path().join("n2/shards/blobs"));
    blobs.iter().for_each(|path| std::fs::remove_file(path).expect("removed"));
    pair.fake.desire("n2", 20, vec![pair.restored(&receipt)]);
    eventually("released", || has(&pair.fake, "n2", released(A2))).await;
    assert_eq!(pair.ended_well(), 1, "{:?}", pair.fake.observations("n2"));

    assert_eq!(next.await.expect("no panic"), receipt.size_bytes);
    vanished.iter().for_each(tokio::task::JoinHandle::abort);
    pair.end().await;
}

/// How many bytes came in the end: one that is told to come again does.
async fn exported(address: String, receipt: pb::Receipt, began: Arc<AtomicU64>) -> u64 {
    for _ in 0..20 {
        match Export::begin(address.clone(), &receipt).await {
            Ok(export) => {
                began.fetch_add(1, Ordering::SeqCst);
                return export.bytes().await;
            }
            Err(status) => assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status}"),
        }
    }
    panic!("the places of those that vanished were not given back");
}
