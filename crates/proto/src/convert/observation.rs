//! What an agent saw.

use outlast_control::state::Observation;
use outlast_types::{AttemptId, CheckpointSeq, Digest};

use super::{FieldError, parse};
use crate::node::v1 as pb;
use crate::node::v1::observation::What;

impl From<Observation> for pb::Observation {
    fn from(observation: Observation) -> Self {
        let (place, what) = match observation {
            Observation::Rendezvous { attempt, address } => (Some((attempt, 0)), What::Rendezvous(address)),
            Observation::Started { attempt, rank } => (Some((attempt, rank)), What::Started(true)),
            Observation::Ready { attempt, rank } => (Some((attempt, rank)), What::Ready(true)),
            Observation::Restored { attempt, rank, seq } => {
                (Some((attempt, rank)), What::Restored(seq.to_string()))
            }
            Observation::RestoreFailed { attempt, rank, seq, corrupt, reason } => {
                let failed = pb::RestoreFailed { checkpoint: seq.to_string(), corrupt, reason };
                (Some((attempt, rank)), What::RestoreFailed(failed))
            }
            Observation::StartFailed { attempt, rank, reason } => {
                (Some((attempt, rank)), What::StartFailed(reason))
            }
            Observation::Exited { attempt, rank, exit } => (Some((attempt, rank)), What::Exited(exit.into())),
            Observation::Released { attempt, rank } => (Some((attempt, rank)), What::Released(true)),
            Observation::BundleHeld { digest } => (None, What::BundleHeld(digest.0.to_vec())),
            Observation::ShardHeld { attempt, seq, rank, root } => {
                (Some((attempt, rank)), What::ShardHeld(shard_state(seq, Some(root), String::new())))
            }
            Observation::ShardLost { attempt, seq, rank, root, reason } => {
                (Some((attempt, rank)), What::ShardLost(shard_state(seq, Some(root), reason)))
            }
            Observation::CopyFailed { attempt, seq, rank, reason } => {
                (Some((attempt, rank)), What::CopyFailed(shard_state(seq, None, reason)))
            }
        };
        let (attempt, rank) = place.map_or((String::new(), 0), |(attempt, rank)| (attempt.to_string(), rank));
        Self { attempt, rank, what: Some(what) }
    }
}

impl TryFrom<pb::Observation> for Observation {
    type Error = FieldError;

    fn try_from(observation: pb::Observation) -> Result<Self, FieldError> {
        let pb::Observation { attempt, rank, what } = observation;
        let what = what.ok_or(FieldError::missing("what"))?;
        if let What::BundleHeld(digest) = &what {
            let digest =
                Digest::try_from(digest.as_slice()).map_err(|error| FieldError::new("bundle_held", error))?;
            return Ok(Observation::BundleHeld { digest });
        }
        let attempt: AttemptId = parse("attempt", &attempt)?;
        Ok(match what {
            What::Rendezvous(address) => Observation::Rendezvous { attempt, address },
            What::Started(_) => Observation::Started { attempt, rank },
            What::Ready(_) => Observation::Ready { attempt, rank },
            What::Restored(seq) => Observation::Restored { attempt, rank, seq: parse("restored", &seq)? },
            What::RestoreFailed(pb::RestoreFailed { checkpoint, corrupt, reason }) => {
                let seq = parse("restore_failed.checkpoint", &checkpoint)?;
                Observation::RestoreFailed { attempt, rank, seq, corrupt, reason }
            }
            What::StartFailed(reason) => Observation::StartFailed { attempt, rank, reason },
            What::Exited(exit) => Observation::Exited { attempt, rank, exit: exit.try_into()? },
            What::Released(_) => Observation::Released { attempt, rank },
            What::BundleHeld(_) => unreachable!("answered above"),
            What::ShardHeld(held) => {
                let (seq, root) = sealed_root("shard_held", &held)?;
                Observation::ShardHeld { attempt, seq, rank, root }
            }
            What::ShardLost(lost) => {
                let (seq, root) = sealed_root("shard_lost", &lost)?;
                Observation::ShardLost { attempt, seq, rank, root, reason: lost.reason }
            }
            What::CopyFailed(pb::ShardState { checkpoint, root: _, reason }) => {
                let seq = parse("copy_failed.checkpoint", &checkpoint)?;
                Observation::CopyFailed { attempt, seq, rank, reason }
            }
        })
    }
}

fn shard_state(seq: CheckpointSeq, root: Option<Digest>, reason: String) -> pb::ShardState {
    let root = root.map(|root| root.0.to_vec()).unwrap_or_default();
    pb::ShardState { checkpoint: seq.to_string(), root, reason }
}

fn sealed_root(what: &'static str, state: &pb::ShardState) -> Result<(CheckpointSeq, Digest), FieldError> {
    let seq = parse(what, &state.checkpoint)?;
    let root = Digest::try_from(state.root.as_slice()).map_err(|error| FieldError::new(what, error))?;
    Ok((seq, root))
}

#[cfg(test)]
mod tests {
    use outlast_control::state::ExitRecord;
    use outlast_types::{ExitStatus, WallTime};

    use super::*;

    #[test]
    fn every_observation_survives_the_wire() {
        let attempt: AttemptId = "j1/0@1.2".parse().expect("valid");
        let seq = CheckpointSeq(7);
        let exit =
            |status| ExitRecord { status, at: WallTime(5), detail: "d".into(), last_lines: vec!["l".into()] };
        let mut all = vec![
            Observation::Rendezvous { attempt, address: "127.0.0.1:1".into() },
            Observation::Started { attempt, rank: 3 },
            Observation::Ready { attempt, rank: 3 },
            Observation::Restored { attempt, rank: 3, seq },
            Observation::RestoreFailed { attempt, rank: 3, seq, corrupt: true, reason: "r".into() },
            Observation::StartFailed { attempt, rank: 3, reason: "r".into() },
            Observation::Released { attempt, rank: 3 },
            Observation::BundleHeld { digest: Digest([7; 32]) },
            Observation::ShardHeld { attempt, seq, rank: 3, root: Digest([8; 32]) },
            Observation::ShardLost { attempt, seq, rank: 3, root: Digest([8; 32]), reason: "r".into() },
            Observation::CopyFailed { attempt, seq, rank: 3, reason: "r".into() },
        ];
        let statuses = [
            ExitStatus::Code(0),
            ExitStatus::Signal(9),
            ExitStatus::OutOfMemory,
            ExitStatus::KeeperLost,
            ExitStatus::NotStarted,
            ExitStatus::Fenced,
        ];
        all.extend(statuses.map(|status| Observation::Exited { attempt, rank: 3, exit: exit(status) }));
        for observation in all {
            let wire = pb::Observation::from(observation.clone());
            assert_eq!(Observation::try_from(wire).expect("valid"), observation);
        }
        let damaged = pb::Observation { attempt: "zzz".into(), rank: 0, what: Some(What::Started(true)) };
        assert_eq!(Observation::try_from(damaged).expect_err("bad attempt").field, "attempt");
    }
}
