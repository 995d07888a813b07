//! What a node keeps of others: files by item and range in a directory of the run.
//!
//! Never more than there is room for. The directory goes with the process, and what a killed one has left is removed by
//! the next.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, statvfs};

use super::{
    receive::Sink,
    spans::Spans,
    wire::{ItemId, Piece},
};

/// Directories of all runs begin with it.
const NAME: &str = "vmdeploy-kget-";
/// A file holds no more: so much is acknowledged at a time.
const SEGMENT: u64 = 16 << 20;

/// A file of a range; what of it is still wanted.
#[derive(Debug)]
struct Segment {
    path: PathBuf,
    start: u64,
    live: Spans,
}

#[derive(Debug, Default)]
struct Kept {
    segments: BTreeMap<(ItemId, u64), Segment>,
    /// Bytes that are kept, and those that are on their way.
    bytes: u64,
    coming: u64,
    last: u64,
}

/// The directory.
#[derive(Debug)]
pub(super) struct Shelf {
    directory: PathBuf,
    _lock: File,
    room: u64,
    kept: Mutex<Kept>,
}

/// A range within a file of the directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) path: PathBuf,
    pub(super) offset: u64,
    pub(super) piece: Piece,
}

impl Shelf {
    /// A directory below this one, with room for so many bytes, or for most of what its disk has free.
    pub(super) fn new(below: &Path, room: Option<u64>) -> io::Result<Self> {
        remove_left(below);
        let hidden = below.join(format!(".{NAME}{:016x}", rand::random::<u64>()));
        fs::DirBuilder::new().mode(0o700).create(&hidden)?;
        let lock = File::open(&hidden)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        // only locked ones have that name
        let directory = below.join(format!("{NAME}{:016x}", rand::random::<u64>()));
        fs::rename(&hidden, &directory)?;
        let disk = statvfs(&directory)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let room = (free - free / 20).min(room.unwrap_or(u64::MAX));
        Ok(Self { directory, _lock: lock, room, kept: Mutex::default() })
    }

    /// Removes all of it.
    pub(super) fn remove(&self) {
        let _ = fs::remove_dir_all(&self.directory);
    }

    pub(super) fn room(&self) -> u64 {
        self.room
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // nothing is left half done by a panic
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Room for a move; as long as the sink is there.
    pub(super) fn sink(self: &std::sync::Arc<Self>, bytes: u64) -> io::Result<ShelfSink> {
        let mut kept = self.kept();
        if kept.bytes + kept.coming + bytes > self.room {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "no room for more of others"));
        }
        kept.coming += bytes;
        Ok(ShelfSink { shelf: self.clone(), coming: bytes, open: None, ready: Vec::new() })
    }

    /// Where a piece is; not all of it, if it is not here.
    pub(super) fn find(&self, piece: Piece) -> Vec<At> {
        let (mut wanted, mut found) = (Spans::of(piece.range()), Vec::new());
        let kept = self.kept();
        for (_, segment) in kept.segments.range((piece.item, 0)..=(piece.item, u64::MAX)) {
            let here = wanted.clone();
            for have in segment.live.iter() {
                for want in here.iter() {
                    let (start, end) = (want.start.max(have.start), want.end.min(have.end));
                    if start < end {
                        wanted.remove(start..end);
                        let piece = Piece { item: piece.item, start, end };
                        found.push(At { path: segment.path.clone(), offset: start - segment.start, piece });
                    }
                }
            }
        }
        found.sort_by_key(|at| at.piece.start);
        found
    }

    /// Nobody needs a piece any more.
    pub(super) fn forget(&self, piece: Piece) {
        let mut kept = self.kept();
        let Kept { segments, bytes, .. } = &mut *kept;
        let mut empty = Vec::new();
        for (key, segment) in segments.range_mut((piece.item, 0)..=(piece.item, u64::MAX)) {
            let before = segment.live.bytes();
            segment.live.remove(piece.range());
            let gone = before - segment.live.bytes();
            *bytes -= gone;
            if segment.live.is_empty() {
                let _ = fs::remove_file(&segment.path);
                empty.push(*key);
            } else if gone > 0 {
                // where the file system cannot, it takes its room until all of it is gone
                let _ = hole(segment, piece);
            }
        }
        for key in empty {
            segments.remove(&key);
        }
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Those of processes that are gone.
fn remove_left(below: &Path) {
    let Ok(entries) = fs::read_dir(below) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(NAME)) {
        let Ok(directory) = File::open(entry.path()) else { continue };
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn hole(segment: &Segment, piece: Piece) -> io::Result<()> {
    let file = File::options().write(true).open(&segment.path)?;
    let start = piece.start.max(segment.start);
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(&file, flags, start - segment.start, piece.end - start)?)
}

/// Keeps what a move brings.
#[derive(Debug)]
pub(super) struct ShelfSink {
    shelf: std::sync::Arc<Shelf>,
    /// Bytes that it has room for.
    coming: u64,
    open: Option<(File, PathBuf, Piece)>,
    ready: Vec<Piece>,
}

impl ShelfSink {
    /// Gives the file its name.
    fn close(&mut self) -> io::Result<()> {
        let Some((file, hidden, piece)) = self.open.take() else { return Ok(()) };
        file.sync_all()?;
        let mut kept = self.shelf.kept();
        kept.last += 1;
        let number = kept.last;
        let path = self.shelf.directory.join(format!("{:x}-{}-{}-{number}", piece.item.0, piece.start, piece.end));
        fs::rename(&hidden, &path)?;
        let live = Spans::of(piece.range());
        kept.segments.insert((piece.item, number), Segment { path, start: piece.start, live });
        kept.bytes += piece.bytes();
        let coming = piece.bytes().min(self.coming);
        kept.coming -= coming;
        self.coming -= coming;
        drop(kept);
        self.ready.push(piece);
        Ok(())
    }
}

impl Sink for ShelfSink {
    fn write(&mut self, piece: Piece, bytes: &[u8]) -> io::Result<()> {
        let follows = |open: &Piece| {
            open.item == piece.item && open.end == piece.start && open.bytes() + piece.bytes() <= SEGMENT
        };
        if self.open.as_ref().is_some_and(|(_, _, open)| !follows(open)) {
            self.close()?;
        }
        if self.open.is_none() {
            let hidden = self.shelf.directory.join(format!(".{:016x}", rand::random::<u64>()));
            let nothing = Piece { end: piece.start, ..piece };
            self.open = Some((File::create_new(&hidden)?, hidden, nothing));
        }
        if let Some((file, _, open)) = &mut self.open {
            file.write_all(bytes)?;
            open.end = piece.end;
        }
        Ok(())
    }

    fn sync(&mut self, end: bool) -> io::Result<Vec<Piece>> {
        if end {
            self.close()?;
        }
        if !self.ready.is_empty() {
            File::open(&self.shelf.directory)?.sync_all()?;
        }
        Ok(std::mem::take(&mut self.ready))
    }
}

impl Drop for ShelfSink {
    fn drop(&mut self) {
        self.shelf.kept().coming -= self.coming;
        if let Some((_, hidden, _)) = &self.open {
            let _ = fs::remove_file(hidden);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::FileExt as _, sync::Arc};

    use super::*;

    fn piece(start: u64, end: u64) -> Piece {
        Piece { item: ItemId::new(1, 0), start, end }
    }

    fn files(shelf: &Shelf) -> usize {
        fs::read_dir(&shelf.directory).unwrap().count()
    }

    #[test]
    fn pieces_are_kept_until_nobody_needs_them() {
        let below = tempfile::tempdir().unwrap();
        let shelf = Arc::new(Shelf::new(below.path(), Some(100)).unwrap());
        let mut sink = shelf.sink(60).unwrap();
        assert!(shelf.sink(41).is_err(), "room for a move that is coming is taken");
        sink.write(piece(0, 5), b"01234").unwrap();
        sink.write(piece(5, 10), b"56789").unwrap();
        assert!(sink.sync(false).unwrap().is_empty());
        sink.write(piece(20, 22), b"xy").unwrap();
        assert_eq!(sink.sync(true).unwrap(), [piece(0, 10), piece(20, 22)]);
        drop(sink);
        assert!(shelf.sink(89).is_err());
        drop(shelf.sink(88).unwrap());
        let at = shelf.find(piece(3, 21));
        assert_eq!(at.iter().map(|at| at.piece).collect::<Vec<_>>(), [piece(3, 10), piece(20, 21)]);
        let mut bytes = [0; 7];
        File::open(&at[0].path).unwrap().read_exact_at(&mut bytes, at[0].offset).unwrap();
        assert_eq!(&bytes, b"3456789");
        shelf.forget(piece(0, 6));
        assert_eq!(shelf.find(piece(0, 10)).len(), 1);
        drop(shelf.sink(94).unwrap());
        shelf.forget(piece(6, 30));
        assert_eq!(files(&shelf), 0);
        drop(shelf.sink(100).unwrap());
    }

    #[test]
    fn what_was_not_acknowledged_leaves_nothing() {
        let below = tempfile::tempdir().unwrap();
        let shelf = Arc::new(Shelf::new(below.path(), Some(100)).unwrap());
        let mut sink = shelf.sink(60).unwrap();
        sink.write(piece(0, 5), b"01234").unwrap();
        drop(sink);
        assert_eq!(files(&shelf), 0);
        drop(shelf.sink(100).unwrap());
    }

    #[test]
    fn the_directory_of_a_killed_process_is_removed() {
        let below = tempfile::tempdir().unwrap();
        let left = below.path().join(format!("{NAME}0123"));
        fs::create_dir(&left).unwrap();
        let first = Shelf::new(below.path(), None).unwrap();
        let second = Shelf::new(below.path(), None).unwrap();
        assert!(!left.exists() && first.directory.exists());
        drop((first, second));
        assert_eq!(fs::read_dir(below.path()).unwrap().count(), 0);
    }
}
