//! Watches everything from the beginning on, through one coordinator after the other.

use std::time::Duration;

use outlast_proto::control::v1 as pb;
use tokio::sync::watch;

use super::asker::Asker;
use crate::history::{Happened, What};

const OPEN_MAX: Duration = Duration::from_secs(2);
/// A healthy stream says something every ten seconds.
const SILENT_MAX: Duration = Duration::from_secs(15);
/// Percent of messages after which the watcher goes elsewhere, though nothing is wrong.
const LEAVE: u64 = 2;

pub(crate) async fn run(mut asker: Asker, mut stop: watch::Receiver<bool>) {
    let mut next = 1;
    while !*stop.borrow() {
        tokio::select! {
            () = follow(&mut asker, &mut next) => {}
            _ = stop.changed() => return,
        }
        asker.pause(50, 300).await;
    }
}

/// One stream until it breaks, falls silent, or is left.
async fn follow(asker: &mut Asker, next: &mut u64) {
    let (from, mut stub) = asker.any();
    let request = pb::WatchEventsRequest { job: String::new(), from_index: *next };
    let Ok(Ok(stream)) = tokio::time::timeout(OPEN_MAX, stub.watch_events(request)).await else { return };
    let mut stream = stream.into_inner();
    while let Ok(Ok(Some(message))) = tokio::time::timeout(SILENT_MAX, stream.message()).await {
        let pb::WatchEventsResponse { index, events, lost_before, .. } = message;
        // One that lags behind the one before it says how far it is; that is no news.
        if events.is_empty() && lost_before == 0 && index < *next {
            continue;
        }
        *next = (*next).max(index + 1);
        let one = |event: pb::Event| Happened {
            kind: event.kind,
            job: event.job,
            attempt: event.attempt,
            node: event.node,
            text: event.text,
        };
        let (watcher, from) = (asker.name.clone(), from.clone());
        let events = events.into_iter().map(one).collect();
        asker.recorder.put(What::Watched { watcher, from, index, lost_before, events });
        if asker.rng.chance(LEAVE) {
            return;
        }
    }
}
