//! What only the leader knows, for views: from the own board, or asked of the leader and kept for a moment.

use std::time::Duration;

use outlast_proto::relay::v1::{LeaderViewRequest, LeaderViewResponse, MemberView};
use outlast_proto::status::Failure;
use outlast_proto::view::LeaderNotes;
use outlast_types::NodeId;

use crate::clock::Deadline;
use crate::member::{Member, no_leader};
use crate::membership;
use crate::peers::call;

const ASK_DEADLINE: Duration = Duration::from_millis(500);
/// A dashboard that reloads and a client that polls share one question to the leader.
const CACHE_FOR: Duration = Duration::from_millis(250);

impl Member {
    /// Empty where the leader cannot be asked: views then show what the log says.
    pub(crate) async fn notes(&self) -> LeaderNotes {
        if let Some(office) = self.office() {
            return office.board.notes();
        }
        if let Some((until, notes)) = &*self.notes_cache.lock()
            && !until.is_over()
        {
            return notes.clone();
        }
        let notes = match self.ask_leader().await {
            Ok(view) => read_notes(view),
            Err(failure) => {
                tracing::debug!(%failure, "the leader's view is not known");
                return LeaderNotes::default();
            }
        };
        *self.notes_cache.lock() = Some((Deadline::after(CACHE_FOR), notes.clone()));
        notes
    }

    /// How far the members are, where the leader can be asked.
    pub(crate) async fn member_views(&self) -> Vec<MemberView> {
        if self.leads() {
            return membership::views(self);
        }
        self.ask_leader().await.map(|view| view.members).unwrap_or_default()
    }

    async fn ask_leader(&self) -> Result<LeaderViewResponse, Failure> {
        let address = self.other_leader().ok_or_else(no_leader)?;
        let request = LeaderViewRequest { cluster_id: self.cluster_id.to_string() };
        call(ASK_DEADLINE, self.peers.relay(&address)?.leader_view(request)).await
    }
}

/// What does not parse is left out: notes are for people.
fn read_notes(view: LeaderViewResponse) -> LeaderNotes {
    let mut notes = LeaderNotes::default();
    for node in view.nodes {
        if let Ok(id) = node.node.parse() {
            notes.health.extend(node.health.map(|health| (NodeId::clone(&id), health.into())));
            notes.conditions.insert(id, node.condition);
        }
    }
    for progress in view.progress {
        if let Ok(attempt) = progress.attempt.parse() {
            let metrics = progress.metrics.into_iter().collect();
            notes.progress.insert((attempt, progress.rank), (progress.step, metrics));
        }
    }
    for waiting in view.waiting {
        if let Ok(group) = waiting.group.parse() {
            notes.waiting.insert(group, waiting.reason);
        }
    }
    notes
}
