//! How much time a call may take: as a whole, each try, and until another coordinator is asked beside the first.

use std::time::Duration;

/// A commit takes milliseconds and an election about a second: a try that lasts longer has met a dead or hung server,
/// and the same request somewhere else is the faster way.
const EACH: Duration = Duration::from_millis(1_800);
/// Several looks at others that do not answer, one after the other.
const STATUS_EACH: Duration = Duration::from_secs(5);
/// A healthy answer takes far less; asking twice is harmless, because a change carries its request id.
const HEDGE: Duration = Duration::from_millis(400);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub(crate) total: Duration,
    pub(crate) each: Duration,
    /// `None`: one try at a time, for calls that are dear.
    pub(crate) hedge: Option<Duration>,
    /// Whether the server is told the deadline of the try; not for streams, which outlive their opening.
    pub(crate) tell_server: bool,
}

impl Budget {
    /// A call that is answered at once.
    pub(crate) fn unary(total: Duration) -> Self {
        Self { total, each: EACH.min(total), hedge: Some(HEDGE), tell_server: true }
    }

    /// `cluster status`: who answers may wait for a leader that is not there before it says what it knows. Nobody is
    /// left waiting by a hung one, because the others are asked beside it.
    pub(crate) fn status(total: Duration) -> Self {
        Self { each: STATUS_EACH.min(total), ..Self::unary(total) }
    }

    /// A call that works for a while before it answers.
    pub(crate) fn slow(total: Duration, each: Duration) -> Self {
        Self { total: total.max(each), each, hedge: None, tell_server: true }
    }

    /// The opening of a stream.
    pub(crate) fn stream(total: Duration) -> Self {
        Self { tell_server: false, ..Self::unary(total) }
    }
}
