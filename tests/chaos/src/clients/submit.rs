//! Submits and cancels.

use std::sync::Arc;

use tokio::sync::watch;

use super::asker::Asker;
use super::board::{Board, Open};
use super::jobs::{JobMaker, Made};
use crate::history::Answer;

/// Jobs with workers at a time: two cores carry no more beside everything else.
const RUNNING_MAX: usize = 5;
const TRIES_MAX: usize = 5;

pub(crate) struct Submitter {
    asker: Asker,
    board: Arc<Board>,
    maker: JobMaker,
    number: u64,
}

impl Submitter {
    pub(crate) fn new(asker: Asker, board: Arc<Board>, maker: JobMaker) -> Self {
        Self { asker, board, maker, number: 0 }
    }

    pub(crate) async fn run(mut self, stop: watch::Receiver<bool>) {
        let service = self.maker.service();
        self.submit(service).await;
        while !*stop.borrow() {
            self.number += 1;
            let wants_real = self.board.running().len() < RUNNING_MAX && self.asker.rng.chance(60);
            let made = match wants_real {
                true => self.maker.real(self.number, &mut self.asker.rng),
                false => JobMaker::parked(self.number),
            };
            self.submit(made).await;
            self.asker.pause(150, 600).await;
        }
    }

    /// Repeats the request until somebody acknowledges it; sometimes once more than needed.
    async fn submit(&mut self, made: Made) {
        let request = self.asker.request_id();
        let Made { name, spec, is_real } = made;
        for _ in 0..TRIES_MAX {
            match self.asker.submit(&request, &name, &spec).await {
                Answer::Submitted { job } => {
                    self.board.add(&job, &name, is_real);
                    if self.asker.rng.chance(25) {
                        self.asker.submit(&request, &name, &spec).await;
                    }
                    return;
                }
                Answer::Refused { reason } => {
                    eprintln!("chaos: a submission was refused: {reason}");
                    return;
                }
                _ => self.asker.pause(50, 400).await,
            }
        }
        self.board.leave_open(Open { request, name, spec });
    }
}

/// Cancels most of the parked jobs, and now and then one that runs.
pub(crate) async fn cancel(mut asker: Asker, board: Arc<Board>, stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        asker.pause(300, 1_200).await;
        let mut from = board.parked();
        if asker.rng.chance(6) {
            from = board
                .running()
                .into_iter()
                .filter(|known| !known.name.starts_with(super::jobs::SERVICE))
                .collect();
        }
        let Some(id) = asker.rng.pick(&from).map(|known| known.id.clone()) else { continue };
        let request = asker.request_id();
        for _ in 0..TRIES_MAX {
            if !matches!(asker.cancel(&request, &id).await, Answer::Unknown { .. }) {
                break;
            }
        }
        board.cancelled(&id);
    }
}
