//! Why a stream is not taken apart.

use super::{MAX_BLOCKS, MAX_DEVICES, MAX_NAME, MAX_RAM};

/// What ends the reading of a stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The bytes cannot be had.
    #[error("the migration stream cannot be read at byte {offset}: {source}")]
    Input {
        /// How far it had come.
        offset: u64,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a stream that can be written again. It may still be a good one.
    #[error("the migration stream is not taken apart: byte {offset}: {what}")]
    Refused {
        /// Where.
        offset: u64,
        /// What is there.
        what: Refusal,
    },
}

/// What is not taken apart.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// Ends too early.
    #[error("it ends here")]
    Truncated,
    /// Not QEMU's.
    #[error("no migration stream begins so")]
    Magic,
    /// Another version of the format, or of the RAM section.
    #[error("version {0} is not known here")]
    Version(u32),
    /// Another part of a stream stands where only some may.
    #[error("{found:#04x} stands where {wanted} belongs")]
    Mark {
        /// What stands there.
        found: u8,
        /// What may.
        wanted: &'static str,
    },
    /// A name is empty, too long or not text.
    #[error("a name has 1 to {MAX_NAME} bytes of text")]
    Name,
    /// Another section than RAM has parts.
    #[error("section {0:?} is sent in parts")]
    Section(String),
    /// Not the number of the RAM section.
    #[error("section {0} is not the one that is open")]
    SectionId(u32),
    /// A command that means more than can be written again.
    #[error("command {number} of {length} bytes")]
    Command {
        /// Its number.
        number: u16,
        /// Bytes of its data.
        length: u16,
    },
    /// The sizes of the blocks.
    #[error("RAM of {0} bytes: not 1 to {MAX_BLOCKS} blocks and {MAX_RAM} bytes, each in whole pages")]
    Sizes(u64),
    /// A block is named twice.
    #[error("block {0:?} is named twice")]
    BlockTwice(String),
    /// A record that is not a page or zeros.
    #[error("a record with the flags {0:#x}")]
    Flags(u64),
    /// A page filled with something else than zeros.
    #[error("a page filled with {0:#04x}")]
    Fill(u8),
    /// A page of a block that there is not.
    #[error("a page of an unknown block")]
    NoBlock,
    /// A page behind its block's end.
    #[error("page {page} of block {block:?} is behind its end")]
    NoPage {
        /// The block.
        block: String,
        /// The page in it.
        page: u64,
    },
    /// A page was sent again: the guest ran.
    #[error("page {0} comes twice")]
    PageTwice(u64),
    /// Pages are missing.
    #[error("{missing} of {pages} pages are missing")]
    Missing {
        /// How many.
        missing: u64,
        /// Of so many.
        pages: u64,
    },
    /// The devices' state does not begin and end as it should, or is too large.
    #[error("the devices' state is not whole, or has more than {MAX_DEVICES} bytes")]
    Devices,
}
