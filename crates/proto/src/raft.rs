//! Coordinator and coordinator: Raft itself.

pub mod v1 {
    tonic::include_proto!("outlast.raft.v1");
}
