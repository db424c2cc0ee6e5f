//! Known bugs that a simulation switches on, to see that its observers find them. Only with the feature `planted`, which no
//! build that supervises anything has; without it `planted!` is `false`, and nothing of this is compiled.

#[cfg(feature = "planted")]
use std::cell::Cell;

/// Whether the bugs are in this build. The `outlast` binary does not compile with them.
pub const IS_IN_THIS_BUILD: bool = cfg!(feature = "planted");

#[cfg(feature = "planted")]
macro_rules! bugs {
    ($($(#[$doc:meta])* $bug:ident = $name:literal,)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug { $($(#[$doc])* $bug,)+ }

        impl Bug {
            /// Each with its name.
            pub const ALL: &[(&'static str, Bug)] = &[$(($name, Bug::$bug),)+];
        }
    };
}

#[cfg(feature = "planted")]
bugs! {
    /// The next attempt of a group gets the number of the last one.
    ReuseAttemptNumber = "reuse-attempt-number",
    /// A seal asks for no attempt, and an attempt's end leaves its checkpoints open.
    SealWithoutAttempt = "seal-without-attempt",
    /// What is older goes before anything newer was read back.
    RetireWithoutProof = "retire-without-proof",
    /// One newer checkpoint is enough, however many are to be kept.
    KeepTooFew = "keep-too-few",
    /// A gang's last rank is left out.
    LoseLastRank = "lose-last-rank",
    /// What is held on a node is not taken from what is free.
    DoubleCapacity = "double-capacity",
    /// A checkpoint that cannot be read now is taken for none.
    UnreadIsNone = "unread-is-none",
    /// `apply` asks something that differs between replicas.
    ApplyAsksClock = "apply-asks-clock",
    /// A new leader gives nobody a grace.
    NoGrace = "no-grace",
    /// Whoever led once may still decide.
    AnyIncarnation = "any-incarnation",
    /// Answers are not remembered.
    ForgetRequests = "forget-requests",
    /// A cancelled job may be started again.
    StartCancelled = "start-cancelled",
    /// An exclusive group does not wait for what it holds.
    ShareExclusive = "share-exclusive",
    /// The leader's patience is shorter than the lease.
    ShortPatience = "short-patience",
    /// Two nodes of one failure domain count as two.
    CountNodes = "count-nodes",
    /// A worker that its restarted agent adopts counts as gone.
    AdoptedIsGone = "adopted-is-gone",
}

#[cfg(feature = "planted")]
thread_local! {
    static BUG: Cell<Option<Bug>> = const { Cell::new(None) };
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// The bug is on for this thread until the guard is dropped.
#[cfg(feature = "planted")]
pub struct Switched(());

#[cfg(feature = "planted")]
impl Drop for Switched {
    fn drop(&mut self) {
        BUG.set(None);
    }
}

#[cfg(feature = "planted")]
pub fn switch_on(bug: Bug) -> Switched {
    BUG.set(Some(bug));
    CALLS.set(0);
    Switched(())
}

#[cfg(feature = "planted")]
pub(crate) fn is_on(bug: Bug) -> bool {
    BUG.get() == Some(bug)
}

/// What a clock is to replicas: another answer at each.
#[cfg(feature = "planted")]
pub(crate) fn clock() -> u64 {
    CALLS.set(CALLS.get() + 1);
    CALLS.get()
}

/// Whether the named bug is on.
macro_rules! planted {
    ($bug:ident) => {{
        #[cfg(feature = "planted")]
        let is_on = crate::planted::is_on(crate::planted::Bug::$bug);
        #[cfg(not(feature = "planted"))]
        let is_on = false;
        is_on
    }};
}

pub(crate) use planted;
