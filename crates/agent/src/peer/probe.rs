//! The test of the data network when an agent registers: does the address that peers are given lead here, and how fast do
//! bytes come from two of them. A checkpoint that goes over the wrong network card is noticed now, not when a job waits
//! for it. What is found is told with the heartbeats; it keeps no work away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use outlast_proto::peer::v1 as pb;
use outlast_proto::status::Failure;
use outlast_types::{ByteSize, NodeId};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::client;
use super::service::Chunks;
use crate::assigned::Peer;
use crate::context::Context;
use crate::coordinators::timed;
use crate::transfer::CHUNK_BYTES;

const PROBE_BYTES_MAX: u64 = 64 << 20;
/// Long enough for a connection to get up to speed, too short to disturb anybody.
const PROBE_BYTES: u64 = 16 << 20;
/// Enough to see who answers.
const OWN_BYTES: u64 = 1;
/// A peer that starts at the same time, or has its hands full, answers some moments later.
const TRIES: u32 = 5;
const AGAIN_AFTER: Duration = Duration::from_secs(2);
const PROBE_WITHIN: Duration = Duration::from_secs(10);
/// 1 Gbit/s, less what protocols take: checkpoints of slower networks are a trouble that somebody should know of.
const SLOW_BYTES_PER_S: u64 = 100 << 20;

/// What the newest test found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NetworkTest {
    /// Of the slowest peer; 0: none was there.
    pub(crate) bytes_per_s: u64,
    pub(crate) error: Option<String>,
}

/// Serves zeros, if this node is meant.
pub(super) fn answer(
    own: &NodeId,
    request: &pb::ProbeRequest,
    permit: OwnedSemaphorePermit,
) -> Result<Chunks, Status> {
    let rejected = |reason| Status::from(Failure::Rejected { reason, hint: String::new() });
    if request.node != own.as_str() {
        return Err(rejected(format!("this is node {own}, not {}", request.node)));
    }
    if request.size_bytes > PROBE_BYTES_MAX {
        return Err(rejected(format!("a probe has at most {PROBE_BYTES_MAX} bytes")));
    }
    let zeros = Bytes::from_static(&[0; CHUNK_BYTES]);
    let mut left = request.size_bytes as usize;
    let chunks = std::iter::from_fn(move || {
        let _held = &permit;
        let size = left.min(CHUNK_BYTES);
        left -= size;
        (size > 0).then(|| Ok(pb::Chunk { data: zeros.slice(..size) }))
    });
    Ok(Box::pin(futures::stream::iter(chunks)))
}

/// Tries the own address, then the peers, and keeps what was found.
pub(crate) async fn test_network(context: Arc<Context>, peers: Vec<Peer>) {
    let found = tokio::select! {
        () = context.shutdown.cancelled() => return,
        found = test(&context, &peers) => found,
    };
    let (node, address) = (&context.node, context.peer_address());
    match &found.error {
        Some(error) => tracing::warn!(
            %node, address, error,
            "the data network is not as it should be: check --data-address (or --advertise), routes and firewalls"
        ),
        None => tracing::info!(%node, address, bytes_per_s = found.bytes_per_s, "the data network was tried"),
    }
    *context.network.lock() = found;
}

async fn test(context: &Context, peers: &[Peer]) -> NetworkTest {
    let own = Peer { node: context.node.to_string(), address: context.peer_address().to_owned() };
    let mut found = NetworkTest::default();
    if let Err(reason) = try_probe(context, &own, OWN_BYTES).await {
        found.error =
            Some(format!("peers are given {}, where this node is not reached: {reason}", own.address));
    }
    for peer in peers {
        match try_probe(context, peer, PROBE_BYTES).await {
            Ok(rate) if found.bytes_per_s == 0 || rate < found.bytes_per_s => found.bytes_per_s = rate,
            Ok(_) => {}
            Err(reason) => {
                let said = format!("{} at {}: {reason}", peer.node, peer.address);
                found.error.get_or_insert(said);
            }
        }
    }
    if (1..SLOW_BYTES_PER_S).contains(&found.bytes_per_s) {
        let said = format!("bytes come with {}/s only", ByteSize(found.bytes_per_s));
        found.error.get_or_insert(said);
    }
    found
}

async fn try_probe(context: &Context, peer: &Peer, size_bytes: u64) -> Result<u64, String> {
    let mut tries = 1;
    loop {
        match probe(context, peer, size_bytes).await {
            Err(Failed { is_passing: true, .. }) if tries < TRIES => tries += 1,
            Err(Failed { reason, .. }) => return Err(reason),
            Ok(rate) => return Ok(rate),
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

struct Failed {
    reason: String,
    /// It may be over soon.
    is_passing: bool,
}

/// Bytes a second, from the answer's beginning to its end.
async fn probe(context: &Context, peer: &Peer, size_bytes: u64) -> Result<u64, Failed> {
    let failed = |reason: String, is_passing| Err(Failed { reason, is_passing });
    let mut client = match client::connect(peer) {
        Ok(client) => client,
        Err(err) => return failed(err.to_string(), false),
    };
    let request =
        pb::ProbeRequest { cluster_id: context.cluster_text(), node: peer.node.clone(), size_bytes };
    let fetch = async {
        let mut chunks = client.probe(timed(request, PROBE_WITHIN)).await?.into_inner();
        let (began, mut received) = (Instant::now(), 0);
        while let Some(chunk) = chunks.next().await {
            received += chunk?.data.len() as u64;
        }
        Ok::<_, Status>((received, began.elapsed()))
    };
    match timeout(PROBE_WITHIN, fetch).await {
        Err(_) => failed(format!("no {} within {} s", ByteSize(size_bytes), PROBE_WITHIN.as_secs()), false),
        Ok(Err(status)) => {
            let is_passing = matches!(status.code(), Code::Unavailable | Code::ResourceExhausted);
            failed(status.message().to_owned(), is_passing)
        }
        Ok(Ok((received, _))) if received != size_bytes => {
            failed(format!("{received} of {size_bytes} bytes came"), false)
        }
        Ok(Ok((received, took))) => Ok((received as f64 / took.as_secs_f64().max(1e-6)) as u64),
    }
}
