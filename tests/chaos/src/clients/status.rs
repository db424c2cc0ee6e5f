//! Asks every coordinator who leads.

use std::time::Duration;

use outlast_proto::control::v1 as pb;
use tokio::sync::watch;

use super::asker::Asker;
use crate::history::What;

const ASK_MAX: Duration = Duration::from_secs(3);

pub(crate) async fn run(mut asker: Asker, stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        let (from, mut stub) = asker.any();
        let answer = tokio::time::timeout(ASK_MAX, stub.cluster_status(pb::ClusterStatusRequest {})).await;
        if let Ok(Ok(status)) = answer {
            let status = status.into_inner();
            let (by, leader, term) = (status.answered_by, status.leader, status.term);
            asker.recorder.put(What::Status { from, by, leader, term });
        }
        asker.pause(150, 500).await;
    }
}
