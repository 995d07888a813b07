//! An image that comes in pieces, in order: what is here of it is right. Blocking.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use super::super::images::is_still;
use crate::store::pieces::Pieces;

/// Names of files that are gone on with by whoever comes next begin so.
pub(in super::super) const PARTIAL: &str = ".part-";

/// Why bytes were not taken.
#[derive(Debug)]
pub(super) enum NotTaken {
    /// They are not those of the image.
    Wrong,
    /// The disk.
    Disk(io::Error),
}

/// A file that is the image; nobody takes it away before it has its name.
pub(in super::super) struct Proven {
    pub(in super::super) path: PathBuf,
    _lock: File,
}

/// The file, as far as it is here.
pub(super) struct Arriving {
    pub(super) path: PathBuf,
    /// Locked: it is nobody else's.
    file: File,
    pieces: Arc<Pieces>,
    /// Pieces that are here.
    next: usize,
    /// Bytes of the one that comes.
    buffer: Vec<u8>,
    whole: Sha256,
}

impl Arriving {
    /// Goes on with what an interrupted fetch has left, unless another agent does.
    pub(super) fn open(directory: &Path, digest: &str, pieces: Arc<Pieces>) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600);
        let path = directory.join(format!("{PARTIAL}{}", digest.rsplit(':').next().unwrap_or_default()));
        let file = options.open(&path)?;
        let (path, file) = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_still(&file, &path) => (path, file),
            _ => {
                let path = directory.join(format!(".{:032x}", rand::random::<u128>()));
                (path.clone(), options.create_new(true).open(&path)?)
            }
        };
        let mut buffer = Vec::new();
        buffer.reserve_exact(pieces.longest());
        let mut arriving = Self { path, file, pieces, next: 0, buffer, whole: Sha256::new() };
        arriving.look()?;
        Ok(arriving)
    }

    /// Finds out how much of what is here is right, and cuts the rest off.
    fn look(&mut self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        while self.next < self.pieces.count() {
            let place = self.pieces.place(self.next);
            if place.end > length {
                break;
            }
            self.buffer.resize(usize::try_from(place.end - place.start).unwrap_or_default(), 0);
            self.file.read_exact_at(&mut self.buffer, place.start)?;
            if !self.pieces.is(self.next, &self.buffer) {
                break;
            }
            self.whole.update(&self.buffer);
            self.next += 1;
        }
        self.buffer.clear();
        if self.have() < length { self.file.set_len(self.have()) } else { Ok(()) }
    }

    /// Bytes that are here.
    pub(super) fn have(&self) -> u64 {
        self.pieces.place(self.next).start
    }

    /// Bytes of the image.
    pub(super) fn size(&self) -> u64 {
        self.pieces.size()
    }

    /// Whether blocks of so many bytes end where pieces do.
    pub(super) fn fits(&self, block: u64) -> bool {
        block.is_multiple_of(self.pieces.longest() as u64)
    }

    /// Whether nothing lacks.
    pub(super) fn is_whole(&self) -> bool {
        self.next == self.pieces.count()
    }

    /// To be read by others, who have no part in its lock.
    pub(super) fn reader(&self) -> io::Result<File> {
        File::open(&self.path)
    }

    /// The file, if it is the image of this digest.
    pub(super) fn proven(self, digest: &str) -> Option<Proven> {
        let is = self.is_whole() && digest == format!("sha256:{:x}", self.whole.finalize());
        is.then_some(Proven { path: self.path, _lock: self.file })
    }

    /// Others send from here on: what came of a piece that is not whole is forgotten.
    pub(super) fn restart(&mut self) {
        self.buffer.clear();
    }

    /// Takes the next bytes.
    pub(super) fn add(&mut self, mut bytes: &[u8]) -> Result<(), NotTaken> {
        while !bytes.is_empty() {
            let place = self.pieces.place(self.next);
            let wanted = usize::try_from(place.end - place.start).unwrap_or_default();
            let (now, later) = bytes.split_at(bytes.len().min(wanted - self.buffer.len()));
            if wanted == 0 {
                return Err(NotTaken::Wrong);
            }
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == wanted {
                if !self.pieces.is(self.next, &self.buffer) {
                    return Err(NotTaken::Wrong);
                }
                self.file.write_all_at(&self.buffer, place.start).map_err(NotTaken::Disk)?;
                self.whole.update(&self.buffer);
                self.next += 1;
                self.buffer.clear();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{lock::in_a_moment, store::pieces::tests::pieces_of};

    fn image() -> (Vec<u8>, String, Arc<Pieces>) {
        let mut image = vec![0; 900_000];
        blake3::Hasher::new().update(b"an image").finalize_xof().fill(&mut image);
        let digest = format!("sha256:{:x}", Sha256::digest(&image));
        let pieces = Arc::new(pieces_of(&image));
        (image, digest, pieces)
    }

    #[test]
    fn what_an_interrupted_fetch_has_left_is_gone_on_with_as_far_as_it_is_right() {
        let directory = tempfile::tempdir().unwrap();
        let (image, digest, pieces) = image();
        let open = || Arriving::open(directory.path(), &digest, pieces.clone()).unwrap();
        let mut first = open();
        assert_eq!(first.have(), 0);
        first.add(&image[..600_000]).unwrap();
        assert_eq!(first.have(), 576 << 10);
        // another agent of the node meanwhile
        let other = open();
        assert!(other.path != first.path && other.have() == 0);
        let path = first.path.clone();
        drop(first);
        let open = || in_a_moment(|| Some(open()).filter(|opened| opened.path == path)).unwrap();
        let mut spoilt = std::fs::read(&path).unwrap();
        assert_eq!(open().have(), 576 << 10);
        spoilt[300_000] ^= 1;
        std::fs::write(&path, &spoilt).unwrap();
        let mut again = open();
        assert_eq!(again.have(), 256 << 10);
        again.add(&image[256 << 10..]).unwrap();
        assert!(again.proven(&digest).is_some());
        assert_eq!(std::fs::read(&path).unwrap(), image);
        let whole = open();
        assert!(whole.proven(&digest).is_some());
        // longer than the image
        std::fs::write(&path, [&image[..], b"more"].concat()).unwrap();
        assert!(open().proven(&digest).is_some());
        assert_eq!(std::fs::read(path).unwrap(), image);
    }

    #[test]
    fn d1_a_piece_that_is_not_what_it_is_to_be_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let (mut image, digest, pieces) = image();
        let mut arriving = Arriving::open(directory.path(), &digest, pieces).unwrap();
        image[400_000] ^= 1;
        assert!(matches!(arriving.add(&image), Err(NotTaken::Wrong)));
        assert_eq!(arriving.have(), 384 << 10);
        assert_eq!(std::fs::metadata(&arriving.path).unwrap().len(), 384 << 10);
        image[400_000] ^= 1;
        arriving.restart();
        arriving.add(&image[384 << 10..]).unwrap();
        assert!(matches!(arriving.add(b"more"), Err(NotTaken::Wrong)));
        assert!(arriving.proven(&digest).is_some());
    }
}
