//! The place where the ranks of an attempt meet: a port on rank 0's node, fresh for each attempt, so that a zombie rank
//! finds nobody to talk to.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use super::handle::WorkerHandle;

/// A port that is held until just before the worker starts.
pub(super) struct Reservation {
    pub(super) address: String,
    _listener: TcpListener,
}

/// Binds a free port and keeps it bound, so that nobody else gets it meanwhile. Connections to it are refused by nobody
/// but answered by nobody either: it is never accepted from, and closed before the worker binds it.
pub(super) fn reserve(host: &str) -> io::Result<Reservation> {
    let ip = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) if ip.is_loopback() => ip,
        // A name, or an address of this machine: the port has to be free everywhere.
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let listener = TcpListener::bind(SocketAddr::new(ip, 0))?;
    let port = listener.local_addr()?.port();
    Ok(Reservation { address: format!("{host}:{port}"), _listener: listener })
}

/// Waits until the log knows where rank 0 is. The start's cancellation ends it.
pub(super) async fn wait(handle: &Arc<WorkerHandle>) -> String {
    let mut assigned = handle.assigned.subscribe();
    loop {
        if let Some(address) = assigned.borrow_and_update().rendezvous.clone() {
            return address;
        }
        assigned.changed().await.expect("the handle that we hold owns the sender");
    }
}
