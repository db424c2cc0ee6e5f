//! The clocks of the machine.

pub(crate) use outlast_host::{boot_now, wall_now};
