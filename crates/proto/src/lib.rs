//! Everything on the wire: generated code, and the conversions between wire and domain types. The only crate that sees
//! both.

pub mod convert;
pub mod json;
pub mod raft;
pub mod status;
pub mod time;
pub mod view;

/// The operator's API.
pub mod control {
    pub mod v1 {
        tonic::include_proto!("outlast.control.v1");
    }
}
/// Agent and coordinator.
pub mod node {
    pub mod v1 {
        #![expect(clippy::large_enum_variant, reason = "generated")]
        tonic::include_proto!("outlast.node.v1");
    }
}
/// Coordinator and coordinator.
pub mod relay {
    pub mod v1 {
        tonic::include_proto!("outlast.relay.v1");
    }
}
/// Agent and agent.
pub mod peer {
    pub mod v1 {
        tonic::include_proto!("outlast.peer.v1");
    }
}
/// Worker and agent.
pub mod worker {
    pub mod v1 {
        tonic::include_proto!("outlast.worker.v1");
    }
}

pub use convert::FieldError;

/// For gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
