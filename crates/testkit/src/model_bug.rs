//! Bugs in what is modelled here and lies outside the pure crates: the log's durability, the quorum rounds, the agents.

/// One of them at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ModelBug {
    /// Entries count before they are on the disk.
    AckBeforeSync,
    /// A leader renews leases without asking a quorum.
    RenewWithoutQuorum,
    /// A heartbeat that comes while a round is under way is confirmed by it.
    JoinRunningRound,
    /// A coordinator starts with less log than it had synced.
    IgnoreLostLog,
    /// A snapshot replaces the log before it is on the disk.
    PurgeFirst,
    /// The agent counts its lease from when the grant came.
    LeaseFromAnswer,
    /// An agent acts on an older desired state than one that it acted on.
    AgentGoesBack,
    /// A restarted agent forgets a worker that still runs.
    ForgetToAdopt,
    /// What a disk read back is not compared with the sealed hash.
    TrustBytes,
    /// A copy is confirmed before it is durable.
    ConfirmCopyEarly,
    /// A worker that runs is said to be released when it is told to stop.
    ReleaseEarly,
}
