//! A file in the bucket, read in pieces as it is needed.

use std::{
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use futures::stream::BoxStream;

use super::{error::error, objects::Objects};

/// So much is fetched at once: a pack is one piece.
const PIECE: u64 = 10 << 20;
/// Of the end of a file, where a pack says what is in it, as much comes with its last bytes.
const TAIL: u64 = 128 << 10;
/// So much is passed on at once.
const PASSED_ON: u64 = 4 << 20;

/// A file in the bucket.
#[derive(Debug)]
pub(in crate::repository) struct Remote {
    objects: Arc<Objects>,
    below: PathBuf,
    length: u64,
    position: u64,
    /// What was fetched last, and from where.
    piece: (u64, Bytes),
}

impl Remote {
    pub(super) fn new(objects: Arc<Objects>, below: PathBuf, length: u64) -> Self {
        Self { objects, below, length, position: 0, piece: (0, Bytes::new()) }
    }

    /// Its length.
    pub(in crate::repository) fn length(&self) -> u64 {
        self.length
    }

    fn early_end(&self) -> io::Error {
        error(format!("{} is shorter in the bucket than it was", self.below.display()))
    }

    /// Its bytes for somebody who waits without blocking.
    pub(in crate::repository) fn stream(self, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let next = async |(remote, Range { start, end }): (Self, Range<u64>)| {
            if start >= end {
                return Ok(None);
            }
            let to = end.min(start + PASSED_ON);
            let fetched = remote.objects.begin_range(&remote.below, start..to).await;
            let bytes = fetched.unwrap_or_else(|failed| Err(io::Error::other(failed)))?;
            if bytes.is_empty() {
                return Err(remote.early_end());
            }
            let at = start + bytes.len() as u64;
            Ok(Some((bytes, (remote, at..end))))
        };
        Box::pin(futures::stream::try_unfold((self, range), next))
    }
}

impl Read for Remote {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.length || to.is_empty() {
            return Ok(0);
        }
        let held = self.piece.0..self.piece.0 + self.piece.1.len() as u64;
        if !held.contains(&self.position) {
            let tail = self.length.saturating_sub(TAIL);
            let start = self.position.min(tail);
            let end = self.length.min(start + PIECE);
            self.piece = (start, self.objects.range(&self.below, start..end)?);
        }
        let at = usize::try_from(self.position - self.piece.0).unwrap_or(usize::MAX);
        let Some(bytes) = self.piece.1.get(at..).filter(|bytes| !bytes.is_empty()) else {
            return Err(self.early_end());
        };
        let count = bytes.len().min(to.len());
        to[..count].copy_from_slice(&bytes[..count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Remote {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
