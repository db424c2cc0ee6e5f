//! What was done about a job's checkpoints, for its chain of causes: copies ordered and made, damage, quarantines.
//!
//! Told from the newest applied entries that this coordinator remembers: the state keeps what is true now, not how it came
//! about. A coordinator that was started a moment ago knows little; what is still in force is told by `now`.

use outlast_control::state::{Checkpoint, CheckpointState, ClusterState, Event, Job, ShardTask};
use outlast_types::{Durability, JobId, WallTime};

use crate::events::EventRing;

/// The newest that are told: a lost node with many checkpoints is one story, not thousands of lines.
const LINES_MAX: usize = 50;
/// Entries that are looked at under one lock.
const PAGE: usize = 2_000;

/// Time and sentence, oldest first; with the number of older ones that were left out.
pub(super) fn story(events: &EventRing, job: JobId) -> (Vec<(WallTime, String)>, usize) {
    let mut told = Vec::new();
    let mut from = 1;
    loop {
        let page = events.page(from, PAGE);
        for entry in &page.entries {
            let of_job = entry.events.iter().filter(|event| event.job() == Some(job) && matters(event));
            told.extend(of_job.map(|event| (entry.at, event.to_string())));
        }
        if page.entries.len() < PAGE {
            break;
        }
        from = page.through + 1;
    }
    let surplus = told.len().saturating_sub(LINES_MAX);
    told.drain(..surplus);
    (told, surplus)
}

/// Every checkpoint is sealed, proven and retired; that is no news.
fn matters(event: &Event) -> bool {
    matches!(
        event,
        Event::CheckpointAborted { .. }
            | Event::CheckpointQuarantined { .. }
            | Event::CheckpointStale { .. }
            | Event::ShardCopyOrdered { .. }
            | Event::ShardCopied { .. }
            | Event::ShardCopyFailed { .. }
            | Event::ShardDamaged { .. }
    )
}

/// What is being done at this moment, and what is out of use; `None` where there is nothing of it.
pub(super) fn now(state: &ClusterState, job: &Job, at: WallTime) -> Option<String> {
    let mut copies = Vec::new();
    for checkpoint in job.checkpoints.values().filter(|checkpoint| checkpoint.is_sealed()) {
        for shard in &checkpoint.shards {
            let target = shard.ordered(ShardTask::Copy);
            copies.extend(target.map(|node| format!("rank {} of {} to {node}", shard.rank, checkpoint.seq)));
        }
    }
    let quarantined = job.checkpoints.values().filter(|one| one.state == CheckpointState::Quarantined);
    let quarantined = quarantined.map(|checkpoint| {
        let why = checkpoint.reason.as_deref().unwrap_or("no reason was kept");
        format!("{} is quarantined ({why})", checkpoint.seq)
    });
    let copying = match copies.as_slice() {
        [] => None,
        [first] => Some(format!("{first} is being copied")),
        [first, others @ ..] => Some(format!("{first} and {} others are being copied", others.len())),
    };
    let lags = unstored(state, job).or_else(|| store_lags(job, at));
    let below = below_wanted(state, job);
    let parts: Vec<String> = lags.into_iter().chain(below).chain(copying).chain(quarantined).collect();
    if parts.is_empty() { None } else { Some(parts.join("; ")) }
}

/// The newest sealed checkpoint was to be on two failure domains, and only one is there to take it.
fn below_wanted(state: &ClusterState, job: &Job) -> Option<String> {
    let wanted = state.durability_wanted(&job.spec);
    let newest = job.checkpoints.values().filter(|one| one.is_sealed()).max_by_key(|one| one.recency())?;
    (newest.degraded && wanted >= Durability::Replicated && state.live_domains().len() < 2).then(|| {
        format!(
            "{} is on one failure domain, and {} is wanted: start agents in another one, or say `durability: local` \
             (more checkpoints than `keep` stay meanwhile)",
            newest.seq,
            wanted.as_str()
        )
    })
}

/// Checkpoints that are to be in the object store, where nobody could put them there.
fn unstored(state: &ClusterState, job: &Job) -> Option<String> {
    let is_left = |checkpoint: &&Checkpoint| checkpoint.is_sealed() && checkpoint.stored_at.is_none();
    let count = job.checkpoints.values().filter(is_left).count();
    let is_wanted = job.spec.checkpoint.durability == Some(Durability::Stored);
    (is_wanted && count > 0 && !state.reaches_store()).then(|| {
        format!(
            "{count} checkpoints are to be in the object store, and no node that is there was started with one: start \
             agents with --store URL"
        )
    })
}

/// How far the object store is behind, for a job whose checkpoints belong there.
fn store_lags(job: &Job, at: WallTime) -> Option<String> {
    if job.spec.checkpoint.durability != Some(Durability::Stored) {
        return None;
    }
    let sealed = || job.checkpoints.values().filter(|checkpoint| checkpoint.is_sealed());
    let newest = sealed().max_by_key(|one| one.recency()).filter(|newest| newest.stored_at.is_none())?;
    let stored = sealed().filter(|one| one.stored_at.is_some()).max_by_key(|one| one.recency());
    let has = match stored {
        Some(stored) => {
            let age_s = at.since(stored.sealed_at.unwrap_or(stored.opened_at)) / 1_000;
            format!("{} (step {}, sealed {age_s} s ago)", stored.seq, stored.step)
        }
        None => "nothing yet".to_owned(),
    };
    Some(format!("the object store has {has}, and not yet {} (step {})", newest.seq, newest.step))
}

#[cfg(test)]
mod tests {
    use outlast_consensus::AppliedEntry;
    use outlast_control::state::{Command, Envelope};
    use outlast_types::{Actor, CheckpointSeq, ClusterId, NodeId, Profile, RequestId, spec};
    use serde_json::json;

    use super::*;

    #[test]
    fn damage_and_copies_of_the_job_are_told_and_the_rest_is_not() {
        let (job, seq) = (JobId(1), CheckpointSeq(3));
        let node = NodeId::new("n2").expect("valid");
        let reason = "the bytes of extent 4 are not the ones that were sealed".to_owned();
        let damaged =
            |job| Event::ShardDamaged { job, seq, rank: 0, node: node.clone(), reason: reason.clone() };
        let copied = Event::ShardCopied { job, seq, rank: 0, node: node.clone() };
        let sealed = Event::CheckpointSealed { job, seq, step: 1 };
        let events = vec![sealed, damaged(job), damaged(JobId(2)), copied];
        let entry = AppliedEntry { index: 2, events, at: WallTime(5), replaced: false };
        let (told, left_out) = story(&EventRing::of_new_cluster(entry.clone()), job);
        let texts: Vec<&str> = told.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!((texts.len(), left_out), (2, 0), "{texts:?}");
        assert!(texts[0].contains("n2 lost its copy of rank 0 of ck3"), "{texts:?}");
        assert!(texts[1].contains("n2 has a copy of rank 0 of ck3"), "{texts:?}");

        let many = AppliedEntry { events: vec![damaged(job); LINES_MAX + 7], ..entry };
        let (told, left_out) = story(&EventRing::of_new_cluster(many), job);
        assert_eq!((told.len(), left_out), (LINES_MAX, 7));
    }

    #[test]
    fn checkpoints_that_nobody_can_put_into_the_object_store_are_told() {
        let mut state = ClusterState::new();
        let envelope = |request: &str, command| Envelope {
            request: Some(RequestId::new(request).expect("valid")),
            actor: Actor::System,
            source: None,
            cause: None,
            at: WallTime(1),
            command,
        };
        let cluster_id = ClusterId::new("test").expect("valid");
        let address = "a:1".to_owned();
        state.apply(1, &envelope("r-1", Command::InitCluster { cluster_id, profile: Profile::Lan, address }));
        let file = json!({"name": "a", "command": ["true"], "checkpoint": {"durability": "stored"}});
        let spec = Box::new(spec::parse(&file).expect("valid"));
        state.apply(2, &envelope("r-2", Command::SubmitJob { spec, bundle: None }));
        let mut job = state.jobs[&JobId(1)].clone();
        assert_eq!(now(&state, &job, WallTime(9_000)), None, "nothing is sealed yet");
        let sealed = json!({
            "seq": "ck1", "step": 1, "attempt": "j1/0@1.1", "world_size": 1, "state": "sealed", "opened_at": 1,
            "sealed_at": 2, "shards": [], "manifest_root": null, "durability": "local", "degraded": false,
            "proven": false, "pinned": false, "reason": null,
        });
        let sealed: Checkpoint = serde_json::from_value(sealed).expect("a checkpoint");
        job.checkpoints.insert(sealed.seq, sealed);
        let told = now(&state, &job, WallTime(9_000)).expect("told");
        assert!(
            told.contains("1 checkpoints are to be in the object store") && told.contains("--store"),
            "{told}"
        );
        job.spec.checkpoint.durability = None;
        assert_eq!(now(&state, &job, WallTime(9_000)), None, "not wanted");
        job.spec.checkpoint.durability = Some(Durability::Replicated);
        job.checkpoints.values_mut().for_each(|one| one.degraded = true);
        let told = now(&state, &job, WallTime(9_000)).expect("told");
        assert!(told.contains("one failure domain") && told.contains("durability: local"), "{told}");
    }
}
