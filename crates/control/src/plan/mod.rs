//! The planner: one pure function from what is (state, observations, time) to what should happen next.
