//! One rank's bytes for an operator, passed on from whichever holder has them.
//!
//! Where no holder is left, a node that reaches the object store reads it from there.
//!
//! The holder verifies each extent before it sends it; here the whole is hashed once more, and the last piece is kept back
//! until the root is the sealed one. So a stream that ends well is the shard, whatever happened on the way; the client
//! hashes it again all the same.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outlast_proto::control::v1 as pb;
use outlast_proto::peer::v1::{GetShardRequest, ShardKey};
use outlast_proto::status::Failure;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

use super::checkpoints::{address_of, check_has_bytes, find_checkpoint, shard_key, store_readers};
use super::{ControlHandler, exhausted};
use crate::member::Member;

/// Pieces of up to 1 MiB that wait for a slow reader; the holder waits with them.
const PIECES_MAX: usize = 4;
/// Until a holder begins to send: it reads its extent hashes first.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// Between two pieces of a holder: one extent is read and hashed meanwhile.
const PIECE_DEADLINE: Duration = Duration::from_secs(20);
/// The same from the object store, with some tries. Less than the client waits.
const STORED_PIECE_DEADLINE: Duration = Duration::from_secs(50);
/// So long holders are asked again that serve as many as they can. Less than the client waits, too.
const TURN_WITHIN: Duration = Duration::from_secs(45);
const TURN_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// A reader that takes nothing for this long has gone, and others wait for its place.
const READER_DEADLINE: Duration = Duration::from_secs(60);

pub(crate) type Pieces = mpsc::Receiver<Result<pb::ReadShardResponse, Status>>;

/// What one holder's stream came to.
enum Trouble {
    /// The bytes are damaged or gone there.
    Bad(String),
    /// It cannot be read there now.
    Away(String),
    /// Others have their turn there.
    Busy(String),
    /// Nobody listens any more.
    Gone,
}

impl From<Status> for Trouble {
    /// Only the holder's own word counts as damage: whatever the network did may be over at the next try.
    fn from(status: Status) -> Self {
        let reason = status.message().to_owned();
        match status.code() {
            Code::DataLoss | Code::NotFound => Trouble::Bad(reason),
            Code::ResourceExhausted => Trouble::Busy(reason),
            _ => Trouble::Away(reason),
        }
    }
}

struct Relay {
    member: Arc<Member>,
    /// `rank 1 of ck7`
    name: String,
    key: ShardKey,
    /// Node, and where to ask it or why it cannot be asked.
    holders: Vec<(String, Result<String, String>)>,
    /// The same for its bytes in the object store, which are asked for last.
    readers: Vec<(String, Result<String, String>)>,
    pieces: mpsc::Sender<Result<pb::ReadShardResponse, Status>>,
    /// Bytes that the reader has: the next holder's stream goes on behind them.
    sent: u64,
}

impl ControlHandler {
    pub(crate) async fn read_shard(&self, request: pb::ReadShardRequest) -> Result<Pieces, Failure> {
        let pb::ReadShardRequest { job, checkpoint, rank } = request;
        let member = self.seat.member()?;
        let permit = self.shard_streams.clone().try_acquire_owned();
        let permit = permit.map_err(|_| exhausted("this coordinator passes on as many shards as it can"))?;
        member.confirm_read().await?;
        let (name, key, holders, readers) = member.state(|state| {
            let (job, checkpoint) = find_checkpoint(state, &job, &checkpoint)?;
            check_has_bytes(checkpoint)?;
            let name = format!("rank {rank} of {}", checkpoint.seq);
            let shard = checkpoint.shard(rank).ok_or_else(|| Failure::NotFound {
                what: name.clone(),
                hint: format!("`outlast checkpoint show {} {}` lists the ranks", job.id, checkpoint.seq),
            })?;
            let holder = |holder| (address_of(state, holder), holder);
            let mut holders: Vec<_> = shard.holders.iter().map(holder).collect();
            holders.sort_by_key(|(address, _)| address.is_err());
            let holders = holders.into_iter().map(|(address, holder)| (holder.node.to_string(), address));
            let readers = store_readers(state, checkpoint);
            Ok::<_, Failure>((name, shard_key(checkpoint, shard), holders.collect(), readers))
        })?;
        let (pieces, stream) = mpsc::channel(PIECES_MAX);
        let relay = Relay { member, name, key, holders, readers, pieces, sent: 0 };
        tokio::spawn(async move {
            let _permit = permit;
            relay.run().await;
        });
        Ok(stream)
    }
}

impl Relay {
    /// Asks one holder after the other, until one of them has sent everything; those that are busy again, when all the
    /// others were asked.
    async fn run(mut self) {
        let until = Instant::now() + TURN_WITHIN;
        let mut said = Vec::new();
        let mut is_lost = true;
        let holders = std::mem::take(&mut self.holders).into_iter().map(|holder| (holder, false));
        let readers = std::mem::take(&mut self.readers).into_iter().map(|reader| (reader, true));
        let mut sources: Vec<_> = holders.chain(readers).collect();
        while !sources.is_empty() {
            let mut busy = Vec::new();
            for ((node, address), stored) in sources {
                let passed_on = match &address {
                    Ok(address) => self.pass_on(&node, address, stored).await,
                    Err(why) => Err(Trouble::Away(why.clone())),
                };
                match passed_on {
                    Ok(()) | Err(Trouble::Gone) => return,
                    Err(Trouble::Busy(_)) if Instant::now() < until => busy.push(((node, address), stored)),
                    Err(Trouble::Bad(why)) => said.push(format!("{node}: {why}")),
                    Err(Trouble::Away(why) | Trouble::Busy(why)) => {
                        is_lost = false;
                        said.push(format!("{node}: {why}"));
                    }
                }
            }
            sources = busy;
            if !sources.is_empty() {
                tokio::select! {
                    () = tokio::time::sleep(TURN_AGAIN_AFTER) => {}
                    () = self.pieces.closed() => return,
                }
            }
        }
        let failure = verdict(&self.name, &said, is_lost);
        let _ = self.pieces.send(Err(failure.into())).await;
    }

    async fn pass_on(&mut self, node: &str, address: &str, stored: bool) -> Result<(), Trouble> {
        let cluster_id = self.member.cluster_id.to_string();
        let request = GetShardRequest { cluster_id, key: Some(self.key.clone()), ..Default::default() };
        let agent = self.member.peers.agent(address);
        let mut agent = agent.map_err(|failure| Trouble::Away(failure.to_string()))?;
        let opened = async {
            match stored {
                true => agent.get_stored_shard(request).await,
                false => agent.get_shard(request).await,
            }
        };
        let opened = timeout(OPEN_DEADLINE, opened).await;
        let piece_within = if stored { STORED_PIECE_DEADLINE } else { PIECE_DEADLINE };
        let mut chunks = opened.map_err(|_| Trouble::Away("no answer in time".to_owned()))??.into_inner();
        let mut head = pb::ReadShardResponse {
            data: Vec::new(),
            root: self.key.root.to_vec(),
            size_bytes: self.key.size_bytes,
            node: node.to_owned(),
        };
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        let mut kept_back = Bytes::new();
        loop {
            let chunk = timeout(piece_within, chunks.message()).await;
            let chunk = chunk.map_err(|_| Trouble::Away("it stopped in the middle".to_owned()))?;
            let Some(chunk) = chunk? else { break };
            hasher.update(&chunk.data);
            let is_known = usize::try_from(self.sent.saturating_sub(at)).unwrap_or(usize::MAX);
            at += chunk.data.len() as u64;
            let news = chunk.data.slice(is_known.min(chunk.data.len())..);
            if !news.is_empty() {
                let ready = std::mem::replace(&mut kept_back, news);
                self.send(&mut head, ready).await?;
            }
        }
        if at != self.key.size_bytes || *hasher.finalize().as_bytes() != *self.key.root {
            return Err(Trouble::Bad("it sent other bytes than were sealed".to_owned()));
        }
        self.send(&mut head, kept_back).await
    }

    /// With the head the first time that this holder sends something.
    async fn send(&mut self, head: &mut pb::ReadShardResponse, data: Bytes) -> Result<(), Trouble> {
        if data.is_empty() && head.root.is_empty() {
            return Ok(());
        }
        self.sent += data.len() as u64;
        let piece = pb::ReadShardResponse { data: data.into(), ..std::mem::take(head) };
        match timeout(READER_DEADLINE, self.pieces.send(Ok(piece))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Trouble::Gone),
        }
    }
}

/// Damaged or gone at every holder is not the same as away: only the former is lost.
fn verdict(name: &str, said: &[String], is_lost: bool) -> Failure {
    let said = if said.is_empty() { "no holder is left".to_owned() } else { said.join("; ") };
    if is_lost {
        return Failure::Conflict {
            reason: format!("no holder has good bytes of {name}: {said}"),
            hint: "`outlast checkpoint list JOB` shows the others".to_owned(),
        };
    }
    Failure::Unavailable {
        reason: format!("{name} cannot be read now: {said}"),
        hint: "wait for the holders to come back: `outlast node list`".to_owned(),
        retry_after_ms: 1_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_that_are_bad_everywhere_are_lost() {
        let said = vec!["n1: damaged".to_owned()];
        assert!(matches!(verdict("rank 0 of ck1", &said, true), Failure::Conflict { .. }));
        assert!(verdict("rank 0 of ck1", &said, false).is_retryable());
        assert!(matches!(Trouble::from(Status::data_loss("extent 3")), Trouble::Bad(_)));
        for away in [Status::unavailable("busy"), Status::internal("h2 protocol error")] {
            assert!(matches!(Trouble::from(away), Trouble::Away(_)));
        }
    }
}
