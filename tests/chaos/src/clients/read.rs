//! Reads single jobs and lists, from any coordinator.

use std::sync::Arc;

use tokio::sync::watch;

use super::asker::Asker;
use super::board::Board;
use crate::history::Answer;

const LIST_LIMIT: u32 = 60;

pub(crate) async fn run(mut asker: Asker, board: Arc<Board>, stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        asker.pause(60, 250).await;
        if asker.rng.chance(15) {
            if let Answer::Jobs { seen, .. } = asker.list(LIST_LIMIT).await {
                seen.iter().for_each(|job| board.saw(job));
            }
            continue;
        }
        let Some(job) = board.pick(&mut asker.rng) else { continue };
        if let Answer::Job { seen, .. } = asker.get(&job).await {
            board.saw(&seen);
        }
    }
}
