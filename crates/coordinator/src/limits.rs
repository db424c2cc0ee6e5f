//! Bounds of the services that more than one of them needs.

use std::time::Duration;

/// Of one gRPC message, both ways. The largest that we make ourselves are log pages and heartbeat batches, each cut
/// well below this.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// Calls that one connection may have open at a time; more wait at the client.
pub(crate) const STREAMS_PER_CONNECTION_MAX: u32 = 1_024;
/// How long a change may take until the client is told that its outcome is unknown.
pub(crate) const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a read waits for its confirmation: longer than a change of leader.
pub(crate) const READ_DEADLINE: Duration = Duration::from_secs(5);
/// One try of a call to the leader, of several within the deadline.
pub(crate) const TRY_DEADLINE: Duration = Duration::from_secs(2);
/// Between two tries where nothing tells us that the leader has changed.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(50);
