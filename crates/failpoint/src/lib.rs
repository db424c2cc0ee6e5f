//! Named places at which a test makes a process crash, wait or fail: `OUTLAST_FAILPOINT=NAME=ACTION[@N][;…]`, read once.
//!
//! ```text
//!  crash       SIGKILL to oneself: nothing is flushed, nothing is unwound, as a power cut would leave it
//!  pause:2s    waits (also in ms), then goes on        error   the place fails with an I/O error
//!  …@3         only the third time that it is passed; without it, each time
//! ```
//! Only in builds with debug assertions: in a release build every call is an empty function and nothing reads the variable.
//! A module of our own, because the crates for this (`fail`, `fail-parallel`) crash by a panic, which ends one task and runs
//! destructors, take names that exist nowhere, and want a registry set up, or handed through every type.

mod names;
mod plan;

use std::io;
use std::sync::LazyLock;

pub use names::{ALL, Failpoint};
use plan::{Action, Plan};

/// Names the places; see above.
pub const VARIABLE: &str = "OUTLAST_FAILPOINT";
/// Whether this build can be steered at all.
pub const STEERABLE: bool = cfg!(debug_assertions);

static PLAN: LazyLock<Plan> = LazyLock::new(|| match std::env::var(VARIABLE) {
    // A test that is steered wrongly would find nothing: it has to fail, and at once.
    Ok(text) => {
        Plan::parse(&text).unwrap_or_else(|why| panic!("{VARIABLE}={text:?} is not understood: {why}"))
    }
    Err(_) => Plan::default(),
});

/// Passes the place, on a thread that may block.
///
/// # Errors
/// Where a test wants one.
#[inline]
pub fn hit(at: Failpoint) -> io::Result<()> {
    if !STEERABLE {
        return Ok(());
    }
    match PLAN.next(at) {
        Some(Action::Pause(time)) => std::thread::sleep(time),
        Some(other) => return act(at, other),
        None => {}
    }
    Ok(())
}

/// Passes the place in async code.
///
/// # Errors
/// Where a test wants one.
#[inline]
pub async fn reach(at: Failpoint) -> io::Result<()> {
    if !STEERABLE {
        return Ok(());
    }
    match PLAN.next(at) {
        Some(Action::Pause(time)) => tokio::time::sleep(time).await,
        Some(other) => return act(at, other),
        None => {}
    }
    Ok(())
}

fn act(at: Failpoint, action: Action) -> io::Result<()> {
    if action == Action::Error {
        return Err(io::Error::other(format!("a test wants {} to fail", at.name())));
    }
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // The signal is on its way; nothing more is done.
    loop {
        std::thread::park();
    }
}
