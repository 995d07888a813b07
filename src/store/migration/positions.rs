//! Where each byte of the canonical stream goes, for a restore that writes pages as they come.

use super::{
    PAGE_BYTES, Skeleton,
    bitmap::{Bitmap, Counted},
    write::{Header, SHORT, closing, opening},
};

/// Bytes of zero records that are handed out at once.
const PIECE: usize = 64 << 10;
/// Bytes of a record of zeros, but for a block's name.
const ZERO_RECORD: u64 = SHORT as u64 + 1;

/// Pages one after the other that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Whether they have content; else they are zeros.
    pub data: bool,
}

/// Runs that leave something open.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("runs of pages do not cover the {pages} pages once each: at page {page}")]
pub struct RunError {
    /// The first page that is missing or too much.
    pub page: u64,
    /// Pages there are.
    pub pages: u64,
}

/// The canonical stream of a skeleton and of pages of which it is known whether they are zeros.
///
/// The records of pages that follow each other do so in the stream as well: a run of data pages is written
/// at [`Self::offset`] of its first as [`Self::header`] and content of each. The rest comes from
/// [`Self::frame`].
pub struct Positions<'a> {
    skeleton: &'a Skeleton,
    opening: Vec<u8>,
    /// Bytes of the names up to each block's own.
    names: Vec<u64>,
    data: Counted,
}

impl<'a> Positions<'a> {
    /// The stream of these runs: ascending, and every page in one of them.
    pub fn new(skeleton: &'a Skeleton, runs: impl IntoIterator<Item = Run>) -> Result<Self, RunError> {
        let pages = skeleton.pages();
        let (mut data, mut next) = (Bitmap::new(pages), 0);
        for run in runs {
            if run.first != next || run.count > pages - next {
                return Err(RunError { page: next.min(run.first), pages });
            }
            next += run.count;
            if run.data {
                for page in run.first..next {
                    data.set(page);
                }
            }
        }
        if next != pages {
            return Err(RunError { page: next, pages });
        }
        let mut sum = 0;
        let upto = |name: usize| {
            sum += name as u64 + 1;
            sum
        };
        let names = skeleton.blocks().iter().map(|block| block.name.len()).map(upto).collect();
        Ok(Self { skeleton, opening: opening(skeleton), names, data: data.counted() })
    }

    /// Bytes of the whole stream.
    pub fn length(&self) -> u64 {
        self.offset(self.skeleton.pages()) + closing(self.skeleton).len() as u64 + self.skeleton.devices().len() as u64
    }

    /// Where the record of a page begins. Behind the last page this is the end of all records.
    pub fn offset(&self, page: u64) -> u64 {
        let page = page.min(self.skeleton.pages());
        // the first page of a block has the block's name behind its place
        let named = match self.skeleton.place(page) {
            Some((at, _, first)) => at + usize::from(page > first),
            None => self.names.len(),
        };
        let names = named.checked_sub(1).and_then(|last| self.names.get(last)).copied().unwrap_or_default();
        self.opening.len() as u64 + names + page * ZERO_RECORD + self.data.before(page) * (PAGE_BYTES - 1)
    }

    /// What stands before the content of a page, if there is such a page.
    pub fn header(&self, page: u64) -> Option<Header> {
        Header::of(self.skeleton, page, self.data.has(page))
    }

    /// Everything but the records of data pages: ascending pieces, and where they go.
    pub fn frame<E>(&self, mut put: impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        put(0, &self.opening)?;
        let pages = self.skeleton.pages();
        let (mut zeros, mut start) = (Vec::with_capacity(PIECE), 0);
        for page in 0..pages {
            let header = if self.data.has(page) { None } else { self.header(page) };
            if !zeros.is_empty() && (header.is_none() || zeros.len() >= PIECE) {
                put(start, &zeros)?;
                zeros.clear();
            }
            if let Some(header) = header {
                if zeros.is_empty() {
                    start = self.offset(page);
                }
                zeros.extend_from_slice(&header);
                zeros.push(0);
            }
        }
        if !zeros.is_empty() {
            put(start, &zeros)?;
        }
        let end = closing(self.skeleton);
        put(self.offset(pages), &end)?;
        put(self.offset(pages) + end.len() as u64, self.skeleton.devices())
    }
}
