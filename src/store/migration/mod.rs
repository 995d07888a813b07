//! QEMU's migration stream, taken apart into pages and written again. Pure: bytes come from a `Read` and
//! go to a `Write`; no file is opened here.
//!
//! A capture is one long stream of memory pages, in any order, and the state of the devices. [`read()`] gives
//! the pages, numbered over all RAM blocks, and a [`Skeleton`] of everything else. From both, the
//! *canonical* stream is written: every page exactly once and ascending, in a single section. [`Writer`]
//! writes it from beginning to end, [`Positions`] knows where each page goes when they come in any order.
//!
//! ```text
//! "QEVM" version  7 length machine                                          header, configuration
//! 1 section "ram" instance version  total|4 (name length)...  16  7e section       start
//! 2 section  (offset|flags [name] (4096 bytes | 0))...        16  7e section       parts
//! 8 command length                                                                 before the end, or not
//! 3 section  (offset|flags [name] (4096 bytes | 0))...        16  7e section       end, or not
//! 4 ... 0  6 length JSON                                                           devices
//! ```
//!
//! What has not been seen of QEMU is refused, and with it whatever cannot be written again byte for byte in
//! its meaning: pages that come twice, sections of others than RAM, compressed or shared memory. Whoever
//! captures then keeps the stream as it is. The bytes may come from anybody: nothing here grows with what
//! a stream merely claims, but for one bit for each page.

mod bitmap;
mod error;
mod positions;
mod read;
mod skeleton;
mod source;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod write;

pub use error::{Refusal, StreamError};
pub use positions::{Positions, Run, RunError};
pub use read::{Found, Page, read};
pub use skeleton::{Block, Skeleton};
pub use write::{Header, WriteError, Writer};

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// The same, for sums.
const PAGE_BYTES: u64 = PAGE as u64;
/// Longest name of a block or machine.
pub const MAX_NAME: usize = 255;
/// Most RAM blocks.
pub const MAX_BLOCKS: usize = 1024;
/// Most bytes of all blocks.
pub const MAX_RAM: u64 = 1 << 42;
/// Most bytes of the devices' state.
pub const MAX_DEVICES: usize = 64 << 20;

/// First four bytes.
const MAGIC: u32 = 0x5145_564d;
/// Version of the format.
const VERSION: u32 = 3;
/// The section that has the pages.
const RAM: &[u8] = b"ram";
/// Its version.
const RAM_VERSION: u32 = 4;
/// What a capture of a stopped guest says before the last pages.
const SWITCHOVER_START: u16 = 11;

/// The first byte of each part of the stream.
mod mark {
    pub(super) const END_OF_SECTIONS: u8 = 0x00;
    pub(super) const START: u8 = 0x01;
    pub(super) const PART: u8 = 0x02;
    pub(super) const END: u8 = 0x03;
    pub(super) const FULL: u8 = 0x04;
    pub(super) const DESCRIPTION: u8 = 0x06;
    pub(super) const CONFIGURATION: u8 = 0x07;
    pub(super) const COMMAND: u8 = 0x08;
    pub(super) const FOOTER: u8 = 0x7e;
}

/// The low bits of the number that each record in the RAM section begins with.
mod flag {
    pub(super) const ALL: u64 = 0xfff;
    pub(super) const ZERO: u64 = 0x02;
    pub(super) const SIZES: u64 = 0x04;
    pub(super) const DATA: u64 = 0x08;
    pub(super) const END: u64 = 0x10;
    pub(super) const SAME_BLOCK: u64 = 0x20;
}
