//! Coordinators as their clients see them: on their real ports, in this process.

mod single;
mod support;
mod three;
