//! Between agents: shards, bundles and logs, served on the agent's port beside its health and metrics, and fetched from
//! others.

pub(crate) mod client;
mod connections;
mod http;
mod logs;
mod probe;
mod seals;
mod server;
mod service;
mod shards;
mod stored;

pub(crate) use connections::CONNECTIONS_MAX;
pub(crate) use probe::{NetworkTest, test_network};
pub(crate) use server::serve;
pub(crate) use shards::drop_late;
