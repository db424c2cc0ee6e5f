//! Work beside the tasks that answer. A simulation has one thread, and does it all there.

use std::io;
use std::time::Duration;

use tokio::runtime::Handle;
#[cfg(not(feature = "simulated"))]
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinError;

/// Threads of a part's own, so that load elsewhere does not hold it up. Dropped, its tasks end at their next await.
#[derive(Debug)]
pub struct Threads {
    #[cfg(not(feature = "simulated"))]
    runtime: Option<Runtime>,
}

#[cfg(not(feature = "simulated"))]
impl Threads {
    /// # Errors
    /// The system gives no more threads.
    pub fn start(name: &str, count: usize) -> io::Result<Self> {
        let runtime =
            Builder::new_multi_thread().worker_threads(count).thread_name(name).enable_all().build()?;
        Ok(Self { runtime: Some(runtime) })
    }

    pub fn handle(&self) -> Handle {
        self.runtime.as_ref().expect("there until it is dropped").handle().clone()
    }
}

/// A runtime must not be dropped where async code runs.
#[cfg(not(feature = "simulated"))]
impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(feature = "simulated")]
impl Threads {
    /// # Errors
    /// None; as the real one's.
    pub fn start(_name: &str, _count: usize) -> io::Result<Self> {
        Ok(Self {})
    }

    pub fn handle(&self) -> Handle {
        Handle::current()
    }
}

/// Does what blocks where it holds up nobody.
///
/// # Errors
/// The work panicked.
#[cfg(not(feature = "simulated"))]
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    tokio::task::spawn_blocking(work).await
}

/// # Errors
/// None; as the real one's.
#[cfg(feature = "simulated")]
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    // Others run in between, as they would.
    tokio::task::yield_now().await;
    Ok(work())
}

/// Does something that may hang, again and again with a pause before each, on a thread of its own until it says `false`.
///
/// # Errors
/// The system gives no more threads.
#[cfg(not(feature = "simulated"))]
pub fn every(name: &str, pause: Duration, mut work: impl FnMut() -> bool + Send + 'static) -> io::Result<()> {
    let go = move || {
        std::thread::sleep(pause);
        while work() {
            std::thread::sleep(pause);
        }
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(go).map(drop)
}

/// # Errors
/// None; as the real one's.
#[cfg(feature = "simulated")]
pub fn every(
    _name: &str,
    pause: Duration,
    mut work: impl FnMut() -> bool + Send + 'static,
) -> io::Result<()> {
    tokio::spawn(async move {
        tokio::time::sleep(pause).await;
        while work() {
            tokio::time::sleep(pause).await;
        }
    });
    Ok(())
}
