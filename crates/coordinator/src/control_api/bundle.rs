//! Bundles: received into a file, checked, and given to two nodes in different failure domains.
//!
//! What was uploaded here is remembered until a job names it; a retry that meets another coordinator finds the bundle by
//! asking the nodes.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use outlast_control::state::{Bundle, ClusterState, Node};
use outlast_proto::control::v1 as pb;
use outlast_proto::peer::v1::{GetBundleRequest, PutBundleRequest};
use outlast_proto::status::Failure;
use outlast_proto::view::LeaderNotes;
use outlast_types::{Digest, NodeId};
use parking_lot::Mutex;
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;
use tonic::Streaming;

use super::upload::{self, Received, Spool, UploadLimits, disk_failure};
use super::{ControlHandler, exhausted, random_hex, rejected};
use crate::member::Member;
use crate::peers::call;

const CHUNK_BYTES: usize = 1 << 20;
/// Nodes that a bundle is given to at first; agents fetch from these and become holders too.
const HOLDERS_WANTED: usize = 2;
/// Nodes that are tried for them.
const NODES_TRIED_MAX: usize = 6;
const PUSH_DEADLINE: Duration = Duration::from_secs(60);
/// Uploads that no job has named yet.
const REMEMBERED_MAX: usize = 256;
/// Nodes that are asked for a bundle that nobody here remembers.
const ASKED_MAX: usize = 32;
const ASK_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct BundleCache {
    recent: Mutex<VecDeque<Bundle>>,
}

impl BundleCache {
    fn remember(&self, bundle: Bundle) {
        let mut recent = self.recent.lock();
        recent.retain(|known| known.digest != bundle.digest);
        if recent.len() == REMEMBERED_MAX {
            recent.pop_front();
        }
        recent.push_back(bundle);
    }

    /// The bundle with the nodes that have it now.
    pub(super) async fn find(&self, member: &Member, digest: Digest) -> Option<Bundle> {
        if let Some(known) = self.known(member, digest) {
            return Some(known);
        }
        let found = ask_nodes(member, digest).await?;
        self.remember(found.clone());
        Some(found)
    }

    /// Without asking anybody: from an upload, or from another job.
    fn known(&self, member: &Member, digest: Digest) -> Option<Bundle> {
        let recent = self.recent.lock().iter().find(|known| known.digest == digest).cloned();
        member.state(|state| {
            let jobs = state.active_jobs().filter_map(|job| job.bundle.as_ref());
            let of_job = jobs.filter(|bundle| bundle.digest == digest).cloned();
            recent.into_iter().chain(of_job).find_map(|bundle| alive(state, bundle))
        })
    }
}

/// The bundle with its holders that are not lost; `None` where none is left.
fn alive(state: &ClusterState, mut bundle: Bundle) -> Option<Bundle> {
    bundle.holders.retain(|holder| state.nodes.get(holder).is_some_and(is_registered));
    (!bundle.holders.is_empty()).then_some(bundle)
}

fn is_registered(node: &Node) -> bool {
    node.condition == outlast_control::state::NodeCondition::Registered
}

async fn ask_nodes(member: &Member, digest: Digest) -> Option<Bundle> {
    let nodes: Vec<(NodeId, String)> = member.state(|state| {
        let nodes = state.nodes.values().filter(|node| is_registered(node)).take(ASKED_MAX);
        nodes.map(|node| (node.id.clone(), node.address.clone())).collect()
    });
    let asked = nodes.into_iter().map(|(node, address)| async move {
        let size = tokio::time::timeout(ASK_DEADLINE, size_at(member, &address, digest)).await.ok()?.ok()?;
        Some((node, size))
    });
    let found: Vec<(NodeId, u64)> =
        futures::stream::iter(asked).buffer_unordered(4).filter_map(std::future::ready).collect().await;
    let size_bytes = found.first()?.1;
    Some(Bundle { digest, size_bytes, holders: found.into_iter().map(|(node, _)| node).collect() })
}

/// Reads the bundle through: its size is not told in any other way, and a holder that cannot read it is none.
async fn size_at(member: &Member, address: &str, digest: Digest) -> Result<u64, Failure> {
    let request =
        GetBundleRequest { cluster_id: member.cluster_id.to_string(), digest: digest.0.to_vec().into() };
    let mut chunks = call(ASK_DEADLINE, member.peers.agent(address)?.get_bundle(request)).await?;
    let mut size = 0;
    while let Some(chunk) = chunks.message().await.map_err(|status| Failure::from_status(&status))? {
        size += chunk.data.len() as u64;
    }
    Ok(size)
}

impl ControlHandler {
    pub(crate) async fn upload_bundle(
        &self,
        mut chunks: Streaming<pb::UploadBundleRequest>,
    ) -> Result<pb::UploadBundleResponse, Failure> {
        let member = self.seat.member()?;
        let _permit = self.uploads.clone().try_acquire_owned().map_err(|_| exhausted("too many uploads"))?;
        let head = upload::head(&mut chunks).await?;
        let named: Option<Digest> = match head.digest.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|error| rejected(error, "send the BLAKE3 digest as hex"))?),
        };
        if let Some(known) = named.and_then(|digest| self.bundles.known(&member, digest)) {
            return Ok(answer(&known));
        }
        let limits = UploadLimits::of(head.size_bytes)?;
        let targets = targets(&member, named.unwrap_or(Digest([0; 32]))).await?;
        let spool = Spool(self.seat.uploads_dir.join(random_hex()?));
        let received = upload::receive(&spool.0, head, &mut chunks, limits).await?;
        if named.is_some_and(|named| named != received.digest) {
            return Err(rejected(
                format!("the bytes have the digest {}, not the one that was named", received.digest),
                "the bundle changed while it was sent: send it again",
            ));
        }
        let bundle = distribute(&member, &received, targets).await?;
        self.bundles.remember(bundle.clone());
        Ok(answer(&bundle))
    }
}

fn answer(bundle: &Bundle) -> pb::UploadBundleResponse {
    pb::UploadBundleResponse {
        digest: bundle.digest.to_string(),
        size_bytes: bundle.size_bytes,
        holders: bundle.holders.iter().map(ToString::to_string).collect(),
    }
}

/// Ready nodes, in the order in which they are tried: one of each failure domain first.
async fn targets(member: &Member, digest: Digest) -> Result<Vec<(NodeId, String)>, Failure> {
    let notes = member.notes().await;
    let targets = member.state(|state| order(state, &notes, digest));
    if targets.is_empty() {
        return Err(Failure::Unavailable {
            reason: "no node is registered that could keep the bundle".to_owned(),
            hint: "start an agent: `outlast agent --coordinators ADDRESS`".to_owned(),
            retry_after_ms: 2_000,
        });
    }
    Ok(targets)
}

fn order(state: &ClusterState, notes: &LeaderNotes, digest: Digest) -> Vec<(NodeId, String)> {
    let is_ready = |node: &&Node| {
        is_registered(node)
            && notes.conditions.get(&node.id).is_none_or(|word| word == "ready")
            && !node.draining
    };
    let mut nodes: Vec<&Node> = state.nodes.values().filter(is_ready).collect();
    // Bundles spread over the nodes by their digest.
    let turn = usize::from(digest.0[0]) % nodes.len().max(1);
    nodes.rotate_left(turn);
    let mut seen = std::collections::BTreeSet::new();
    let (first, others): (Vec<&Node>, Vec<&Node>) =
        nodes.into_iter().partition(|node| seen.insert(node.failure_domain()));
    let ordered = first.into_iter().chain(others).take(NODES_TRIED_MAX);
    ordered.map(|node| (node.id.clone(), node.address.clone())).collect()
}

async fn distribute(
    member: &Member,
    received: &Received,
    targets: Vec<(NodeId, String)>,
) -> Result<Bundle, Failure> {
    let mut holders = Vec::new();
    let mut last_failure = None;
    for (node, address) in targets {
        match push(member, received, &address).await {
            Ok(()) => holders.push(node),
            Err(failure) => {
                tracing::warn!(%node, %failure, "a bundle could not be given to a node");
                last_failure = Some(failure);
            }
        }
        if holders.len() == HOLDERS_WANTED {
            break;
        }
    }
    match (holders.is_empty(), last_failure) {
        (true, Some(failure)) => Err(Failure::Unavailable {
            reason: format!("no node took the bundle; the last one said: {failure}"),
            hint: "look at `outlast node list`".to_owned(),
            retry_after_ms: 1_000,
        }),
        _ => Ok(Bundle { digest: received.digest, size_bytes: received.size_bytes, holders }),
    }
}

async fn push(member: &Member, received: &Received, address: &str) -> Result<(), Failure> {
    let file = File::open(&received.path).await.map_err(disk_failure)?;
    let head = PutBundleRequest {
        cluster_id: member.cluster_id.to_string(),
        digest: received.digest.0.to_vec().into(),
        size_bytes: received.size_bytes,
        data: Bytes::new(),
    };
    let body = futures::stream::unfold((Some(head), file), |(head, mut file)| async move {
        if let Some(head) = head {
            return Some((head, (None, file)));
        }
        let mut data = vec![0; CHUNK_BYTES];
        // A file of ours that cannot be read ends the stream; the agent then misses bytes and says so.
        let read = file.read(&mut data).await.ok().filter(|read| *read > 0)?;
        data.truncate(read);
        let message = PutBundleRequest { data: data.into(), ..PutBundleRequest::default() };
        Some((message, (None, file)))
    });
    call(PUSH_DEADLINE, member.peers.agent(address)?.put_bundle(body)).await?;
    Ok(())
}
