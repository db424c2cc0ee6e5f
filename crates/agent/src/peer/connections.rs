//! One transfer over several connections: chunk `k` goes over connection `k mod n`. So the bytes keep their order, and are
//! written and verified as those of a single one, which would fill neither a fast network nor a long one.
//!
//! The call of connection 0 is the transfer: it is counted, it says what is wrong, its answer is the answer. The others
//! lend it their streams; they meet by the number of the transfer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use outlast_proto::peer::v1 as pb;
use outlast_proto::status::Failure;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Of one transfer; more would only cost.
pub(crate) const CONNECTIONS_MAX: u32 = 16;
/// What is worth a connection of its own.
const CONNECTION_BYTES_MIN: u64 = 8 << 20;
/// The calls of a transfer leave one machine at the same time.
const MEET_WITHIN: Duration = Duration::from_secs(5);
/// Streams that wait for their transfer.
const WAITING_MAX: usize = 16 * CONNECTIONS_MAX as usize;

/// How many connections so many bytes get, where `limit` is wanted for many of them.
pub(super) fn connections_for(size_bytes: u64, limit: u32) -> u32 {
    let worth = u32::try_from(size_bytes / CONNECTION_BYTES_MIN).unwrap_or(u32::MAX);
    worth.clamp(1, limit.clamp(1, CONNECTIONS_MAX))
}

/// A connection of a transfer. The only one, where the message says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lane {
    transfer: u64,
    pub(super) index: u32,
    pub(super) count: u32,
}

impl Lane {
    /// All connections of a new transfer.
    pub(super) fn of_transfer(transfer: u64, count: u32) -> impl Iterator<Item = Self> {
        (0..count).map(move |index| Self { transfer, index, count })
    }

    fn is_alone(self) -> Failure {
        let Self { index, count, .. } = self;
        Failure::Unavailable {
            reason: format!("the others of connection {index} of {count} of this transfer did not come"),
            hint: "send it again".to_owned(),
            retry_after_ms: 500,
        }
    }

    /// The other connections of the same transfer.
    pub(super) fn others(self) -> impl Iterator<Item = Self> {
        (1..self.count).map(move |index| Self { index, ..self })
    }
}

impl From<Lane> for pb::Lane {
    fn from(Lane { transfer, index, count }: Lane) -> Self {
        Self { transfer, index, count }
    }
}

impl TryFrom<Option<pb::Lane>> for Lane {
    type Error = Failure;

    fn try_from(lane: Option<pb::Lane>) -> Result<Self, Failure> {
        let Some(pb::Lane { transfer, index, count }) = lane else {
            return Ok(Self { transfer: 0, index: 0, count: 1 });
        };
        if index < count && count <= CONNECTIONS_MAX {
            return Ok(Self { transfer, index, count });
        }
        Err(Failure::Rejected {
            reason: format!(
                "field `lane`: there is no connection {index} of {count}, at most {CONNECTIONS_MAX}"
            ),
            hint: String::new(),
        })
    }
}

/// What the connections of transfers leave for one another.
pub(super) struct Meetings<T> {
    within: Duration,
    places: Mutex<BTreeMap<Lane, Place<T>>>,
}

enum Place<T> {
    Left(T),
    Wanted(oneshot::Sender<T>),
}

/// Gives up the place of a lane when it is dropped, unless its partner came.
pub(super) struct Held<T> {
    meetings: Arc<Meetings<T>>,
    lane: Lane,
}

impl<T> Held<T> {
    /// Waits until the partner is done with what was left: until `done` says so.
    ///
    /// # Errors
    /// The partner does not come in time.
    pub(super) async fn until(self, mut done: oneshot::Receiver<()>) -> Result<(), Failure> {
        if timeout(self.meetings.within, &mut done).await.is_err() {
            if self.meetings.places.lock().contains_key(&self.lane) {
                return Err(self.lane.is_alone());
            }
            let _ = done.await;
        }
        Ok(())
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        self.meetings.places.lock().remove(&self.lane);
    }
}

impl<T> Meetings<T> {
    pub(super) fn new() -> Arc<Self> {
        Self::with(MEET_WITHIN)
    }

    fn with(within: Duration) -> Arc<Self> {
        Arc::new(Self { within, places: Mutex::default() })
    }

    /// Leaves something for the lane's partner, for as long as the answer is kept.
    ///
    /// # Errors
    /// Too many wait already.
    pub(super) fn leave(self: &Arc<Self>, lane: Lane, thing: T) -> Result<Held<T>, Failure> {
        let mut places = self.places.lock();
        if let Some(Place::Wanted(partner)) = places.remove(&lane) {
            // One that has gone away meanwhile needs nothing.
            let _ = partner.send(thing);
        } else {
            Self::check_room(&places)?;
            places.insert(lane, Place::Left(thing));
        }
        Ok(Held { meetings: Arc::clone(self), lane })
    }

    /// What the lane's partner leaves, now or soon.
    ///
    /// # Errors
    /// It does not come in time.
    pub(super) async fn take(self: &Arc<Self>, lane: Lane) -> Result<T, Failure> {
        let (sender, comes) = oneshot::channel();
        let _held = {
            let mut places = self.places.lock();
            if let Some(Place::Left(thing)) = places.remove(&lane) {
                return Ok(thing);
            }
            Self::check_room(&places)?;
            places.insert(lane, Place::Wanted(sender));
            Held { meetings: Arc::clone(self), lane }
        };
        match timeout(self.within, comes).await {
            Ok(Ok(thing)) => Ok(thing),
            Ok(Err(_)) | Err(_) => Err(lane.is_alone()),
        }
    }

    fn check_room(places: &BTreeMap<Lane, Place<T>>) -> Result<(), Failure> {
        if places.len() < WAITING_MAX {
            return Ok(());
        }
        Err(Failure::Exhausted {
            reason: "too many connections wait here for their transfers".to_owned(),
            hint: String::new(),
            retry_after_ms: 500,
        })
    }
}

/// The items of all streams, one of each in turn, until the first that has no more.
pub(super) fn in_turn<S: Stream + Unpin>(streams: Vec<S>) -> impl Stream<Item = S::Item> + Unpin {
    let items = futures::stream::unfold((streams, 0), |(mut streams, turn)| async move {
        let item = streams[turn].next().await?;
        let next = (turn + 1) % streams.len();
        Some((item, (streams, next)))
    });
    Box::pin(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(index: u32) -> Lane {
        Lane::of_transfer(7, 3).nth(index as usize).expect("one of three")
    }

    #[test]
    fn few_bytes_get_one_connection_and_many_get_all() {
        let sizes = [0, 1, CONNECTION_BYTES_MIN * 2, 1 << 40];
        assert_eq!(sizes.map(|size| connections_for(size, 4)), [1, 1, 2, 4]);
        assert_eq!(connections_for(1 << 40, 0), 1);
        assert_eq!(connections_for(1 << 40, 1_000), CONNECTIONS_MAX);
    }

    #[test]
    fn a_lane_is_what_it_was_after_its_way_and_nonsense_is_refused() {
        assert_eq!(Lane::try_from(Some(lane(2).into())).expect("valid"), lane(2));
        assert_eq!(Lane::try_from(None).expect("the only one").count, 1);
        for (index, count) in [(3, 3), (0, 0), (0, CONNECTIONS_MAX + 1)] {
            assert!(Lane::try_from(Some(pb::Lane { transfer: 1, index, count })).is_err());
        }
    }

    #[tokio::test]
    async fn partners_meet_whoever_comes_first_and_nothing_stays() {
        let meetings = Meetings::with(Duration::from_millis(50));
        let held = meetings.leave(lane(1), "left").expect("room");
        assert_eq!(meetings.take(lane(1)).await.expect("it is there"), "left");
        let (late, held_too) =
            tokio::join!(meetings.take(lane(2)), async { meetings.leave(lane(2), "late").expect("room") });
        assert_eq!(late.expect("it came"), "late");
        let unwanted = meetings.leave(lane(1), "unwanted").expect("room");
        assert_eq!(meetings.places.lock().len(), 1);
        drop((held, held_too, unwanted));
        let why = meetings.take(lane(1)).await.expect_err("its partner went");
        assert!(why.to_string().contains("connection 1 of 3"), "{why}");
        let (_unused, done) = oneshot::channel();
        let alone = meetings.leave(lane(1), "alone").expect("room");
        assert!(alone.until(done).await.is_err(), "nobody waits for ever");
        assert_eq!(meetings.places.lock().len(), 0);
    }

    #[tokio::test]
    async fn those_that_wait_are_bounded() {
        let meetings = Meetings::new();
        let lanes = (0..).flat_map(|transfer| Lane::of_transfer(transfer, CONNECTIONS_MAX));
        let held: Vec<_> = lanes.map_while(|lane| meetings.leave(lane, ()).ok()).collect();
        assert_eq!(held.len(), WAITING_MAX);
        assert!(meetings.take(lane(1)).await.is_err(), "there is no room to wait either");
    }

    #[tokio::test]
    async fn chunks_that_were_dealt_in_turn_come_back_in_their_order() {
        for count in 1..=4 {
            let dealt = |lane| futures::stream::iter((lane..10).step_by(count));
            let all: Vec<usize> = in_turn((0..count).map(dealt).collect()).collect().await;
            assert_eq!(all, (0..10).collect::<Vec<_>>());
        }
    }
}
