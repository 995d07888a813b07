//! How much of a file is not what it was when the node kept it last. Blocking.

use std::{io, vec};

use super::{Kept, names};
use crate::{
    driver::repository::parts::named::{Entry, NamedFile},
    store::manifest::FileKind,
};

/// Blocks of the file that are looked at together.
const AT_ONCE: usize = 4096;

impl Kept {
    /// Bytes of blocks, other than zeros, that are not what they were in the newest generation whose names are here;
    /// nothing if there are none. Blocks are compared place by place: one that has only moved counts as well.
    pub(in super::super) fn changed(&self, kind: FileKind, file: &NamedFile) -> io::Result<Option<u64>> {
        let newest = self.named()?.into_iter().map(|(of, _)| of).max();
        let Some(newest) = newest.map(|of| names::place(&self.directory, of, kind)) else { return Ok(None) };
        let mut blocks = Blocks { file, next: 0, read: Vec::new().into_iter() };
        let (mut changed, mut failed) = (0, None);
        let read = names::read(&newest, &self.seal, |before| match blocks.next() {
            Ok(now) => changed += u64::from(now.is_some_and(|now| Some(now.name) != before)),
            Err(error) => failed = Some(error),
        });
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            before => (before?..file.blocks).try_for_each(|_| {
                changed += u64::from(blocks.next()?.is_some());
                io::Result::Ok(())
            })?,
        }
        failed.map_or(Ok(Some(changed * file.block_size as u64)), Err)
    }
}

/// The blocks of a file, one after the other.
struct Blocks<'a> {
    file: &'a NamedFile,
    next: u64,
    read: vec::IntoIter<Option<Entry>>,
}

impl Blocks<'_> {
    /// Nothing for zeros, and behind the last one.
    fn next(&mut self) -> io::Result<Option<Entry>> {
        if self.read.as_slice().is_empty() {
            let entries = self.file.entries(self.next, AT_ONCE)?;
            self.next += entries.len() as u64;
            self.read = entries.into_iter();
        }
        Ok(self.read.next().flatten())
    }
}
