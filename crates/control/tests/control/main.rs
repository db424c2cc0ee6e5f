//! The control logic as a whole, from its public face: tables of rules, golden bytes and transcripts, properties.

mod generation;
mod golden;
mod invariants;
mod plan_rules;
mod remains;
mod scale;
mod state_rules;
mod transcript;
mod upkeep_rules;
mod world;
