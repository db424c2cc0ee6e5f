//! When a session computes its node's desired state again. Every session is shown every entry, and where a thousand
//! nodes register at once each of them concerns every other a little: what is its own is looked at at once, what changed
//! among its peers is looked at together, a little later.

use std::collections::BTreeSet;
use std::time::Duration;

use outlast_control::state::Event;
use outlast_types::{JobId, NodeId};
use tokio::time::Instant;

/// How long a change among the peers may wait for others. They are places for copies and holders of bytes: an agent
/// that meets an older list asks the next one on it.
const PEERS_PERIOD: Duration = Duration::from_millis(200);

/// How much the events of an entry matter to one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Concern {
    Nothing,
    /// Another node came, went or changed: it may be a peer for copies, bundles and restores.
    Peers,
    /// The node itself, or a job that it runs.
    Own,
}

impl Concern {
    /// Cheap: every session asks it of every entry.
    pub(super) fn of(node: &NodeId, jobs: &BTreeSet<JobId>, events: &[Event]) -> Self {
        let of_event = |event: &Event| match event {
            Event::NodeRegistered { node: other }
            | Event::NodeLost { node: other }
            | Event::NodeChanged { node: other, .. } => {
                if other == node {
                    Concern::Own
                } else {
                    Concern::Peers
                }
            }
            other if other.job().is_some_and(|job| jobs.contains(&job)) => Concern::Own,
            _ => Concern::Nothing,
        };
        events.iter().map(of_event).max().unwrap_or(Concern::Nothing)
    }
}

/// The look that changes among the peers wait for.
#[derive(Debug, Default)]
pub(super) struct PeerLook {
    due: Option<Instant>,
}

impl PeerLook {
    /// Further changes wait for the look that is due already, so that it comes however many follow.
    pub(super) fn want(&mut self, now: Instant) {
        self.due.get_or_insert(now + PEERS_PERIOD);
    }

    /// The state was looked at, for whatever reason.
    pub(super) fn done(&mut self) {
        self.due = None;
    }

    /// Comes when the look is due; never, where none is wanted.
    pub(super) async fn due(&self) {
        match self.due {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).expect("valid")
    }

    #[test]
    fn what_is_a_nodes_own_comes_before_what_its_peers_do() {
        let jobs = BTreeSet::from([JobId(1)]);
        let registered = |name| Event::NodeRegistered { node: node(name) };
        let submitted = |job| Event::JobSubmitted { job: JobId(job) };
        for (events, expected) in [
            (vec![], Concern::Nothing),
            (vec![submitted(2)], Concern::Nothing),
            (vec![registered("n2")], Concern::Peers),
            (vec![Event::NodeLost { node: node("n2") }, submitted(2)], Concern::Peers),
            (vec![registered("n2"), registered("n1")], Concern::Own),
            (vec![Event::NodeChanged { node: node("n1"), what: "labelled".to_owned() }], Concern::Own),
            (vec![registered("n2"), submitted(1)], Concern::Own),
        ] {
            assert_eq!(Concern::of(&node("n1"), &jobs, &events), expected, "{events:?}");
        }
    }

    #[test]
    fn a_storm_of_peers_is_one_look_and_does_not_put_it_off() {
        let begun = Instant::now();
        let mut look = PeerLook::default();
        for ms in 0..1_000 {
            look.want(begun + Duration::from_millis(ms));
        }
        assert_eq!(look.due, Some(begun + PEERS_PERIOD));
        look.done();
        assert_eq!(look.due, None);
        look.want(begun + Duration::from_secs(5));
        assert_eq!(
            look.due,
            Some(begun + Duration::from_secs(5) + PEERS_PERIOD),
            "the next one is due again"
        );
    }
}
