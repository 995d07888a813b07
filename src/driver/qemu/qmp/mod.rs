//! QMP, QEMU's control channel: JSON lines over a socket.

mod client;
mod codec;

pub use client::{Event, Qmp, QmpError};
