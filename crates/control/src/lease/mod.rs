//! Both sides' lease timers as pure state machines: [`LeaderLeases`] in the leader's memory, [`AgentLease`] in the
//! agent's. Rules L1 to L5 and A1, A2, A3, A8, A9 of the lease protocol; each side uses only its own boot clock.
//!
//! ```text
//!  agent: sent(k) at s ──► leader: received at r ≥ s ──► quorum round begun ≥ r ──► confirmed ──► agent: granted(k)
//!         deadline = s + D                                expiry = r + D(1+ε) + δ
//! ```
//! The agent counts from before it sent, the leader from after it received, and the leader waits longer by what two
//! clocks may differ: so the agent's deadline is never later than the leader's expiry (invariant 25).

mod agent;
mod leader;

pub use agent::{AgentLease, GrantVerdict, Hedge};
pub use leader::{Grant, HeartbeatReceipt, LeaderHealth, LeaderLeases, LeaseCondition, LeaseEvent};
