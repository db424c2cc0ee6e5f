//! Every place there is, in the order of a checkpoint's life. A place that is not here cannot be placed, and a test looks
//! for each of these in the sources.

macro_rules! failpoints {
    ($($variant:ident => $name:literal,)*) => {
        /// A place; its name says whose process passes it and when.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Failpoint {
            $($variant,)*
        }

        /// All of them, in order.
        pub const ALL: &[Failpoint] = &[$(Failpoint::$variant,)*];

        impl Failpoint {
            pub const fn name(self) -> &'static str {
                match self {
                    $(Failpoint::$variant => $name,)*
                }
            }
        }
    };
}

failpoints! {
    // Open.
    WorkerOpenBeforeCall => "worker.open.before_call",
    AgentOpenBeforePropose => "agent.open.before_propose",
    LeaderOpenBeforeReply => "leader.open.before_reply",
    AgentOpenAfterAnswer => "agent.open.after_answer",
    // Stage.
    WorkerStageBeforeCopy => "worker.stage.before_copy",
    WorkerStageBeforeMark => "worker.stage.before_mark",
    WorkerStageAfterMark => "worker.stage.after_mark",
    AgentStageTaken => "agent.stage.taken",
    // Write: the worker's own agent, and every receiver of a copy.
    AgentWriteReserve => "agent.write.reserve",
    AgentWriteMiddle => "agent.write.middle",
    AgentWriteBeforeFsync => "agent.write.before_fsync",
    AgentWriteAfterRename => "agent.write.after_rename",
    // Replicate.
    AgentReplicateSend => "agent.replicate.send",
    AgentReplicateSent => "agent.replicate.sent",
    AgentReplicateBeforeFsync => "agent.replicate.before_fsync",
    AgentReplicateAfterFsync => "agent.replicate.after_fsync",
    // Seal.
    LeaderSealBeforePropose => "leader.seal.before_propose",
    LeaderSealAfterCommit => "leader.seal.after_commit",
    AgentSealBeforeNote => "agent.seal.before_note",
    // Publish in the object store.
    AgentPublishBeforeData => "agent.publish.before_data",
    AgentPublishBeforeManifest => "agent.publish.before_manifest",
    AgentPublishBeforeCommit => "agent.publish.before_commit",
    AgentPublishAfterCommit => "agent.publish.after_commit",
    // Retire.
    LeaderRetireBeforePropose => "leader.retire.before_propose",
    AgentRetireBeforeUnlink => "agent.retire.before_unlink",
    AgentRetireAfterUnlink => "agent.retire.after_unlink",
    // Restore.
    AgentRestoreBeforeRead => "agent.restore.before_read",
    AgentRestoreUnpacked => "agent.restore.unpacked",
}
