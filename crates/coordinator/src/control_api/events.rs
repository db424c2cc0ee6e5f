//! What happened, as it happens.

use std::sync::Arc;
use std::time::Duration;

use outlast_consensus::AppliedEntry;
use outlast_proto::control::v1 as pb;
use outlast_proto::status::Failure;
use outlast_proto::view;
use outlast_types::JobId;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::Status;

use super::{ControlHandler, exhausted, find_job};
use crate::member::{Member, stopping};

/// Messages that wait for a slow watcher; it falls behind in the ring, not in memory.
const PAGES_MAX: usize = 4;
/// Entries in one look at the ring.
const PAGE_ENTRIES: usize = 256;
/// A watcher hears at least this often, so that it knows how far it is.
const IDLE_PERIOD: Duration = Duration::from_secs(10);

pub(crate) type EventStream = mpsc::Receiver<Result<pb::WatchEventsResponse, Status>>;

impl ControlHandler {
    pub(crate) async fn watch_events(&self, request: pb::WatchEventsRequest) -> Result<EventStream, Failure> {
        let member = self.seat.member()?;
        let permit = self.watchers.clone().try_acquire_owned().map_err(|_| exhausted("too many watchers"))?;
        let job = if request.job.is_empty() {
            None
        } else {
            member.confirm_read().await?;
            Some(member.state(|state| find_job(state, &request.job).map(|job| job.id))?)
        };
        let from = match request.from_index {
            0 => member.state(|state| state.applied) + 1,
            index => index,
        };
        let (pages, stream) = mpsc::channel(PAGES_MAX);
        tokio::spawn(watch(member, job, from, pages, permit));
        Ok(stream)
    }
}

async fn watch(
    member: Arc<Member>,
    job: Option<JobId>,
    mut from: u64,
    pages: mpsc::Sender<Result<pb::WatchEventsResponse, Status>>,
    _permit: OwnedSemaphorePermit,
) {
    let mut newest = member.events.newest();
    loop {
        newest.mark_unchanged();
        let page = member.events.page(from, PAGE_ENTRIES);
        let is_last = page.entries.len() < PAGE_ENTRIES;
        let through = page.through;
        for message in messages(job, page) {
            if pages.send(Ok(message)).await.is_err() {
                return;
            }
        }
        from = from.max(through + 1);
        if !is_last {
            continue;
        }
        tokio::select! {
            changed = newest.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(IDLE_PERIOD) => {}
            () = pages.closed() => return,
            () = member.shutdown.cancelled() => {
                let _ = pages.send(Err(stopping().into())).await;
                return;
            }
        }
    }
}

/// One message an entry that has something to say, and one at the end that says how far the watcher is.
fn messages(job: Option<JobId>, page: crate::events::Page) -> Vec<pb::WatchEventsResponse> {
    let mut lost_before = page.lost_before;
    let message = |entry: &Arc<AppliedEntry>| {
        let wanted = |event: &&outlast_control::state::Event| job.is_none() || event.job() == job;
        let events: Vec<_> = entry.events.iter().filter(wanted).map(view::event_view).collect();
        (!events.is_empty()).then(|| pb::WatchEventsResponse {
            index: entry.index,
            at: Some(entry.at.into()),
            events,
            lost_before: std::mem::take(&mut lost_before),
        })
    };
    let mut messages: Vec<_> = page.entries.iter().filter_map(message).collect();
    if messages.last().is_none_or(|last| last.index < page.through) {
        messages.push(pb::WatchEventsResponse {
            index: page.through,
            at: None,
            events: Vec::new(),
            lost_before,
        });
    }
    messages
}
