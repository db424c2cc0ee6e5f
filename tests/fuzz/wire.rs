//! Messages: what decodes as protobuf goes through the conversions to domain types, which check it or refuse it.

use outlast_control::plan::NodeHealth;
use outlast_control::state::{Command, Envelope, Holder, Observation, Registration, decode_batch};
use outlast_proto::convert::{ReportedDone, ReportedProgress, ReportedReceipt};
use outlast_proto::node::v1 as pb;
use proptest::prelude::*;
use prost::Message;

use crate::decode::BATCH;
use crate::edit::{edited, edits};

fn registration() -> pb::Registration {
    let all = decode_batch(BATCH).expect("golden").into_iter().map(|Envelope { command, .. }| command);
    let registrations = all.filter_map(|command| match command {
        Command::RegisterNode(registration) => Some(*registration),
        _ => None,
    });
    registrations.map(Into::into).next().expect("a registration is in the batch")
}

fn observations() -> Vec<pb::Observation> {
    let all = decode_batch(BATCH).expect("golden").into_iter().map(|Envelope { command, .. }| command);
    let observed = all.filter_map(|command| match command {
        Command::Observe { observations, .. } => Some(observations),
        _ => None,
    });
    observed.flatten().map(Into::into).collect()
}

fn heartbeat() -> pb::Heartbeat {
    let holder = pb::Holder { node: "n1".into(), boot_id: "boot-1".into(), disk_id: "disk-1".into() };
    let (attempt, checkpoint) = ("j1/0@1.1".to_owned(), "ck1".to_owned());
    let receipt = pb::Receipt {
        attempt: attempt.clone(),
        checkpoint: checkpoint.clone(),
        root: vec![7; 32],
        size_bytes: 9,
        holders: vec![holder],
        ..pb::Receipt::default()
    };
    let metrics = [("loss".to_owned(), 0.5)].into();
    pb::Heartbeat {
        seq: 3,
        progress: vec![pb::Progress {
            attempt: attempt.clone(),
            step: 7,
            metrics,
            ..pb::Progress::default()
        }],
        receipts: vec![receipt],
        health: Some(pb::Health { disk_size_bytes: 1, ..pb::Health::default() }),
        done: vec![pb::ShardDone { attempt, checkpoint, rank: 0, task: "copy".into() }],
    }
}

fn hear(heartbeat: pb::Heartbeat) {
    let pb::Heartbeat { seq: _, progress, receipts, health, done } = heartbeat;
    progress.into_iter().for_each(|progress| drop(ReportedProgress::try_from(progress)));
    for receipt in receipts {
        receipt.holders.iter().cloned().for_each(|holder| drop(Holder::try_from(holder)));
        drop(ReportedReceipt::try_from(receipt));
    }
    drop(health.map(|health| NodeHealth::from(health).complaint()));
    done.into_iter().for_each(|done| drop(ReportedDone::try_from(done)));
}

proptest! {
    #[test]
    fn registrations(edits in edits()) {
        let bytes = edited(&registration().encode_to_vec(), &edits);
        if let Ok(Ok(domain)) = pb::Registration::decode(bytes.as_slice()).map(Registration::try_from) {
            let again = Registration::try_from(pb::Registration::from(domain.clone()));
            prop_assert_eq!(again.expect("what was taken can be said again"), domain);
        }
    }

    #[test]
    fn every_observation(which in any::<prop::sample::Index>(), edits in edits()) {
        let bytes = edited(&which.get(&observations()).encode_to_vec(), &edits);
        if let Ok(Ok(domain)) = pb::Observation::decode(bytes.as_slice()).map(Observation::try_from) {
            let again = Observation::try_from(pb::Observation::from(domain.clone()));
            prop_assert_eq!(again.expect("what was taken can be said again"), domain);
        }
    }

    #[test]
    fn heartbeats(edits in edits()) {
        if let Ok(heartbeat) = pb::Heartbeat::decode(edited(&heartbeat().encode_to_vec(), &edits).as_slice()) {
            hear(heartbeat);
        }
    }
}
