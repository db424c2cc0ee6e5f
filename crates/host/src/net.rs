//! Sockets: listening, reaching others, and the channels of gRPC over both.

use tonic::transport::{Channel, Endpoint};

#[cfg(not(feature = "simulated"))]
pub use tokio::net::{TcpListener, TcpStream};
#[cfg(feature = "simulated")]
pub use turmoil::net::{TcpListener, TcpStream};

/// The connections that come, for a gRPC server.
#[cfg(not(feature = "simulated"))]
pub fn incoming(
    listener: TcpListener,
) -> impl tokio_stream::Stream<Item = std::io::Result<TcpStream>> + Send + 'static {
    patient(tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true)))
}

/// Out of file descriptors the next try would fail at once, and so on.
#[cfg(not(feature = "simulated"))]
const ACCEPT_AGAIN_AFTER: std::time::Duration = std::time::Duration::from_millis(100);

/// Waits before the next connection where one could not be accepted.
#[cfg(not(feature = "simulated"))]
fn patient<T: Send + 'static>(
    accepted: impl tokio_stream::Stream<Item = std::io::Result<T>> + Send + 'static,
) -> impl tokio_stream::Stream<Item = std::io::Result<T>> + Send + 'static {
    tokio_stream::StreamExt::then(accepted, |accepted| async move {
        if let Err(error) = &accepted {
            tracing::warn!(%error, "a connection could not be accepted; if files are the limit, raise it (ulimit -n)");
            tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
        }
        accepted
    })
}

/// A channel that connects when it is first used, and again whenever it broke. Has to be called inside a tokio runtime.
#[cfg(not(feature = "simulated"))]
pub fn connect_lazy(endpoint: &Endpoint) -> Channel {
    endpoint.connect_lazy()
}

#[cfg(feature = "simulated")]
pub use simulated::incoming;

/// As the real one, over the simulated network.
#[cfg(feature = "simulated")]
pub fn connect_lazy(endpoint: &Endpoint) -> Channel {
    endpoint.connect_with_connector_lazy(tower::service_fn(simulated::connect))
}

#[cfg(feature = "simulated")]
mod simulated {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
    use tokio_stream::Stream;
    use tonic::codegen::http::Uri;
    use tonic::transport::server::Connected;
    use turmoil::net::{TcpListener, TcpStream};

    /// Accepted; tonic wants to know from where.
    pub struct Accepted(TcpStream);

    impl Connected for Accepted {
        type ConnectInfo = ();
        fn connect_info(&self) {}
    }

    impl AsyncRead for Accepted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, into)
        }
    }

    impl AsyncWrite for Accepted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, bytes)
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    /// The connections that come, for a gRPC server.
    pub fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<Accepted>> {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let accepted = listener.accept().await.map(|(stream, _)| Accepted(stream));
                if sender.send(accepted).await.is_err() {
                    return;
                }
            }
        });
        tokio_stream::wrappers::ReceiverStream::new(receiver)
    }

    pub(super) async fn connect(uri: Uri) -> io::Result<TokioIo<TcpStream>> {
        let address = uri.authority().map(ToString::to_string).unwrap_or_default();
        TcpStream::connect(address).await.map(TokioIo::new)
    }
}

#[cfg(all(test, not(feature = "simulated")))]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn after_an_accept_that_failed_there_is_a_pause_and_the_connection_comes_all_the_same() {
        let full = || std::io::Error::from_raw_os_error(24);
        let accepted = tokio_stream::iter([Ok(1), Err(full()), Err(full()), Ok(2)]);
        let began = std::time::Instant::now();
        let came: Vec<_> = patient(accepted).collect().await;
        assert!(began.elapsed() >= 2 * ACCEPT_AGAIN_AFTER);
        assert_eq!(came.into_iter().filter_map(Result::ok).collect::<Vec<_>>(), [1, 2]);
    }
}
