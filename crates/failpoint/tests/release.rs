//! What a release build makes of the variable: `cargo test -p outlast-failpoint --release` runs this as such a build.

use outlast_failpoint::{Failpoint, STEERABLE, VARIABLE, hit};

/// Runs itself with the variable set, and looks at how that ended.
#[test]
fn only_a_build_with_debug_assertions_can_be_steered() {
    assert_eq!(STEERABLE, cfg!(debug_assertions));
    if std::env::var_os(VARIABLE).is_some() {
        hit(Failpoint::AgentWriteMiddle).expect("a crash is no error");
        return;
    }
    let own = std::env::current_exe().expect("a test program");
    let mut again = std::process::Command::new(own);
    again.args(["--exact", "only_a_build_with_debug_assertions_can_be_steered"]);
    let status = again.env(VARIABLE, "agent.write.middle=crash").output().expect("runs").status;
    let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9);
    assert_eq!(killed, STEERABLE, "{status}");
    assert_eq!(status.success(), !STEERABLE, "{status}");
}
