//! Whether a service replica can serve: its port answers. (A worker that says so itself does it through its socket.)
//! Either way it is written beside the worker before anybody hears of it: an agent that restarts says it again, as the
//! log may not have it yet and the worker says it once.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::handle::WorkerHandle;
use crate::assigned::Readiness;
use crate::context::{Context, blocking};
use crate::event::Event;

const CHECK_EVERY: Duration = Duration::from_millis(500);
const CHECK_WITHIN: Duration = Duration::from_secs(2);
/// Enough for `HTTP/1.1 200`.
const STATUS_LINE_BYTES: usize = 12;

/// Watches until the worker is ready, once; ends with the worker.
pub(crate) fn watch_ready(context: &Arc<Context>, handle: &Arc<WorkerHandle>) {
    let readiness = handle.assigned.borrow().readiness.clone();
    if readiness == Readiness::Worker {
        return;
    }
    let (context2, handle2, cancel) = (Arc::clone(context), Arc::clone(handle), handle.cancel.clone());
    let work = async move {
        while !passes(&readiness).await {
            tokio::time::sleep(CHECK_EVERY).await;
        }
        tell_ready(&context2, &handle2).await;
    };
    context.tasks.spawn(async move { cancel.run_until_cancelled(work).await });
}

/// Written first, then said. A disk that does not take the mark is no reason to keep a replica from its work: only a
/// restarted agent would not know.
pub(crate) async fn tell_ready(context: &Context, handle: &WorkerHandle) {
    let (key, dir) = (handle.key, handle.dir.clone());
    if let Err(err) = blocking(move || dir.mark_ready()).await {
        tracing::warn!(attempt = %key.attempt, rank = key.rank, error = %err, "that the worker is ready is not written down: an agent that restarts now would not know");
    }
    let _ = context.events.send(Event::Ready(key)).await;
}

async fn passes(readiness: &Readiness) -> bool {
    let check = async {
        match readiness {
            Readiness::Worker => true,
            Readiness::Tcp { port } => TcpStream::connect(("127.0.0.1", *port)).await.is_ok(),
            Readiness::Http { port, path } => answers_2xx(*port, path).await.unwrap_or(false),
        }
    };
    timeout(CHECK_WITHIN, check).await.unwrap_or(false)
}

async fn answers_2xx(port: u16, path: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = [0; STATUS_LINE_BYTES];
    stream.read_exact(&mut head).await?;
    Ok(head.starts_with(b"HTTP/1.") && head[9] == b'2')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_is_ready_when_it_answers_well() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = listener.local_addr().expect("bound").port();
        assert!(passes(&Readiness::Tcp { port }).await);
        let answers = ["HTTP/1.1 503 No\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"];
        let server = tokio::spawn(async move {
            // The connection of the first check, which said nothing.
            drop(listener.accept().await);
            for answer in answers {
                let (mut stream, _) = listener.accept().await.expect("accepts");
                let mut request = [0; 512];
                let _ = stream.read(&mut request).await;
                stream.write_all(answer.as_bytes()).await.expect("writes");
            }
        });
        let http = Readiness::Http { port, path: "health".into() };
        assert!(!passes(&http).await);
        assert!(passes(&http).await);
        server.await.expect("ends");
        assert!(!passes(&Readiness::Tcp { port }).await);
    }
}
