//! Why a coordinator did not start.

use std::io;
use std::net::SocketAddr;

use outlast_consensus::OpenError;
use outlast_proto::status::Failure;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "{address} is not a loopback address, and there is no TLS yet: listen on 127.0.0.1, or say --insecure if \
         everybody who can reach that address may command this cluster"
    )]
    NotLoopback { address: SocketAddr },
    #[error("{address} means every address of this machine: say with --advertise which one others shall use")]
    NoAdvertise { address: SocketAddr },
    #[error("a coordinator either makes a cluster (--init) or joins one (--join), not both")]
    InitAndJoin,
    #[error("the address {address} is in use: stop what listens there, or choose another one with --listen")]
    AddressInUse { address: SocketAddr },
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot start the threads for Raft")]
    Threads(#[source] io::Error),
    #[error("cannot write and sync in the data folder {folder}")]
    Disk {
        folder: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot open the data folder {folder}")]
    Open {
        folder: String,
        #[source]
        source: OpenError,
    },
    #[error("cannot make the cluster")]
    Init(#[source] Failure),
    #[error("cannot join the cluster through {tried}: is one of them running, and is it a member?")]
    Join {
        tried: String,
        #[source]
        source: Failure,
    },
}
