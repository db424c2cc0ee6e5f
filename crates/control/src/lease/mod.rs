//! Leases: both sides' timers as pure state machines.
