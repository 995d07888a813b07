//! The pieces of an image, by which it goes from node to node: all of one size but the last, each named by its BLAKE3.
//! Pure. They say nothing that the image itself does not: its name is still its SHA-256.

use std::ops::Range;

/// Bytes of a piece, of images up to so many bytes: few enough that the last node of a chain is not far behind the
/// first, and as many as leave the names short.
const SIZES: [(u64, u32); 2] = [(64 << 20, 64 << 10), (1 << 30, 256 << 10)];
/// Of all larger ones.
const LARGE_PIECE: u32 = 1 << 20;
/// What a file of names begins with.
const MAGIC: &[u8; 16] = b"vmdeploy-piece-1";
/// Magic, size of the image, size of a piece.
const HEAD: usize = 16 + 8 + 4;
/// Longest file of names that is read: of an image of a tebibyte.
pub const MAX_BYTES: usize = 32 << 20;

/// The names of an image's pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pieces {
    size: u64,
    piece: u32,
    names: Vec<[u8; 32]>,
}

/// No names of pieces.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the names of an image's pieces: {0}")]
pub struct NoPieces(&'static str);

impl Pieces {
    /// Size of the image in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of pieces.
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// Most bytes of a piece.
    pub fn longest(&self) -> usize {
        self.piece as usize
    }

    /// Where a piece lies in the image.
    pub fn place(&self, piece: usize) -> Range<u64> {
        let start = (piece as u64).saturating_mul(self.piece.into()).min(self.size);
        start..start.saturating_add(self.piece.into()).min(self.size)
    }

    /// Whether these are the bytes of a piece.
    pub fn is(&self, piece: usize, bytes: &[u8]) -> bool {
        self.names.get(piece).is_some_and(|name| blake3::hash(bytes) == *name)
    }

    /// As they are kept and sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + self.names.len() * 32);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.size.to_be_bytes());
        bytes.extend_from_slice(&self.piece.to_be_bytes());
        bytes.extend(self.names.iter().flatten());
        bytes
    }

    /// Reads what was kept or sent.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoPieces> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(NoPieces("not begun as such"))?;
        let (size, rest) = rest.split_first_chunk::<8>().ok_or(NoPieces("cut off"))?;
        let (piece, rest) = rest.split_first_chunk::<4>().ok_or(NoPieces("cut off"))?;
        let (size, piece) = (u64::from_be_bytes(*size), u32::from_be_bytes(*piece));
        if !(1 << 12..=LARGE_PIECE).contains(&piece) {
            return Err(NoPieces("pieces of no usual size"));
        }
        let (names, rest) = rest.as_chunks::<32>();
        if !rest.is_empty() || size.div_ceil(piece.into()) != names.len() as u64 {
            return Err(NoPieces("not as many as the image has"));
        }
        Ok(Self { size, piece, names: names.to_vec() })
    }
}

/// Names the pieces of an image that is read from its beginning.
pub struct Naming {
    pieces: Pieces,
    current: blake3::Hasher,
    filled: u32,
    seen: u64,
}

impl Naming {
    /// Of an image of this size.
    pub fn of(size: u64) -> Self {
        let piece = SIZES.into_iter().find(|(most, _)| size <= *most).map_or(LARGE_PIECE, |(_, piece)| piece);
        Self { pieces: Pieces { size, piece, names: Vec::new() }, current: blake3::Hasher::new(), filled: 0, seen: 0 }
    }

    /// The next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.seen += bytes.len() as u64;
        while !bytes.is_empty() {
            let left = (self.pieces.piece - self.filled) as usize;
            let (now, later) = bytes.split_at(left.min(bytes.len()));
            self.current.update(now);
            self.filled += u32::try_from(now.len()).unwrap_or(u32::MAX);
            if self.filled == self.pieces.piece {
                self.close();
            }
            bytes = later;
        }
    }

    fn close(&mut self) {
        self.pieces.names.push(*self.current.finalize().as_bytes());
        self.current.reset();
        self.filled = 0;
    }

    /// The names, if that was all of the image.
    pub fn finish(mut self) -> Option<Pieces> {
        if self.filled > 0 {
            self.close();
        }
        (self.seen == self.pieces.size).then_some(self.pieces)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn pieces_of(image: &[u8]) -> Pieces {
        let mut naming = Naming::of(image.len() as u64);
        naming.update(image);
        naming.finish().unwrap()
    }

    proptest! {
        #[test]
        fn names_do_not_depend_on_how_the_image_is_read(size in 0usize..900_000, step in 1usize..400_000) {
            let mut image = vec![0; size];
            blake3::Hasher::new().update(b"image").finalize_xof().fill(&mut image);
            let mut naming = Naming::of(size as u64);
            image.chunks(step).for_each(|part| naming.update(part));
            let pieces = naming.finish().unwrap();
            prop_assert_eq!(&pieces, &pieces_of(&image));
            prop_assert_eq!(Pieces::parse(&pieces.to_bytes()).unwrap(), pieces.clone());
            let mut end = 0;
            for piece in 0..pieces.count() {
                let place = pieces.place(piece);
                prop_assert!(place.start == end && place.end > end);
                end = place.end;
                let bytes = &image[place.start as usize..place.end as usize];
                prop_assert!(bytes.len() <= pieces.longest() && pieces.is(piece, bytes) && !pieces.is(piece + 1, bytes));
                let mut other = bytes.to_vec();
                other[0] ^= 1;
                prop_assert!(!pieces.is(piece, &other));
            }
            prop_assert_eq!(end, size as u64);
        }

        #[test]
        fn what_is_no_names_is_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Pieces::parse(&bytes).is_err());
            bytes.splice(0..0, *MAGIC);
            if let Ok(pieces) = Pieces::parse(&bytes) {
                prop_assert_eq!(pieces.to_bytes(), bytes);
            }
        }
    }

    #[test]
    fn an_image_that_ends_early_or_late_has_no_names() {
        for seen in [9, 11] {
            let mut naming = Naming::of(10);
            naming.update(&vec![0; seen]);
            assert_eq!(naming.finish(), None);
        }
        let whole = pieces_of(b"0123456789").to_bytes();
        assert!(Pieces::parse(&whole[..whole.len() - 1]).is_err());
        assert!(Pieces::parse(&[&whole[..], &[0; 32]].concat()).is_err());
    }
}
