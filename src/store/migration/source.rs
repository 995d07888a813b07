//! The stream's bytes in pieces of known size, through one buffer.

use std::io::{ErrorKind, Read};

use super::{Refusal, StreamError};

/// Bytes of the buffer: many pages, and within a processor's cache.
const BUFFER: usize = 256 << 10;

/// Reads an input from beginning to end.
pub(super) struct Source<R> {
    input: R,
    buffer: Box<[u8]>,
    /// What of the buffer is read and not yet taken.
    filled: std::ops::Range<usize>,
    offset: u64,
}

impl<R: Read> Source<R> {
    /// A source of what the input has.
    pub(super) fn new(input: R) -> Self {
        Self { input, buffer: vec![0; BUFFER].into_boxed_slice(), filled: 0..0, offset: 0 }
    }

    /// Bytes taken so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next `length` bytes, which must be there and fit the buffer.
    pub(super) fn take(&mut self, length: usize) -> Result<&[u8], StreamError> {
        if self.filled.len() < length {
            self.fill(length)?;
        }
        let start = self.filled.start;
        self.filled.start += length;
        self.offset += length as u64;
        Ok(&self.buffer[start..start + length])
    }

    /// The next bytes as an array.
    pub(super) fn array<const N: usize>(&mut self) -> Result<&[u8; N], StreamError> {
        let offset = self.offset;
        // `take` gives as many as it is asked for
        self.take(N)?.first_chunk().ok_or(StreamError::Refused { offset, what: Refusal::Truncated })
    }

    /// The next byte.
    pub(super) fn byte(&mut self) -> Result<u8, StreamError> {
        self.array().map(|[byte]| *byte)
    }

    /// The next two bytes.
    pub(super) fn u16(&mut self) -> Result<u16, StreamError> {
        self.array().map(|bytes| u16::from_be_bytes(*bytes))
    }

    /// The next four bytes.
    pub(super) fn u32(&mut self) -> Result<u32, StreamError> {
        self.array().map(|bytes| u32::from_be_bytes(*bytes))
    }

    /// The next eight bytes.
    pub(super) fn u64(&mut self) -> Result<u64, StreamError> {
        self.array().map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// All that is left after `first`; at most one byte more than `most`, which tells that it is too much.
    pub(super) fn rest(mut self, first: u8, most: usize) -> Result<Vec<u8>, StreamError> {
        let mut rest = vec![first];
        rest.extend_from_slice(&self.buffer[self.filled.clone()]);
        let room = (most + 1).saturating_sub(rest.len());
        let offset = self.offset + self.filled.len() as u64;
        let read = self.input.by_ref().take(room as u64).read_to_end(&mut rest);
        read.map_err(|source| StreamError::Input { offset, source })?;
        Ok(rest)
    }

    /// Reads on until so many bytes are in the buffer.
    fn fill(&mut self, wanted: usize) -> Result<(), StreamError> {
        let offset = self.offset + self.filled.len() as u64;
        self.buffer.copy_within(self.filled.clone(), 0);
        self.filled = 0..self.filled.len();
        while self.filled.len() < wanted {
            match self.input.read(&mut self.buffer[self.filled.end..]) {
                Ok(0) => {
                    return Err(StreamError::Refused { offset, what: Refusal::Truncated });
                }
                Ok(count) => self.filled.end += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(StreamError::Input { offset, source }),
            }
        }
        Ok(())
    }
}
