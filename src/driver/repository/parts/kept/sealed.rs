//! Files that are noise without the job's key: pieces, each sealed under a key of the file's own and by its number,
//! so that none is read that was not written there. Blocking.

use std::{
    fs::File,
    io::{self, BufReader, Read as _, Write as _},
    path::Path,
};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::super::super::streams::Fresh;
use crate::store::pack::MAX_STORED;

/// Sets the keys of these files apart.
const PURPOSE: &str = "vmdeploy.io 2026 a file of what a node keeps of a job's captures";
const SALT: usize = 32;
/// Most bytes of a piece, sealed.
const MOST: usize = MAX_STORED + 4096;

/// The job's key.
#[derive(Clone)]
pub(super) struct Seal(pub(super) [u8; 32]);

impl std::fmt::Debug for Seal {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal")
    }
}

/// Pieces of one file.
struct Pieces {
    key: LessSafeKey,
    next: u64,
}

impl Pieces {
    fn new(seal: &Seal, salt: &[u8; SALT]) -> io::Result<Self> {
        let key = blake3::Hasher::new_derive_key(PURPOSE).update(&seal.0).update(salt).finalize();
        let key = UnboundKey::new(&AES_256_GCM, key.as_bytes()).map_err(|_| io::Error::other("a key of no use"))?;
        Ok(Self { key: LessSafeKey::new(key), next: 0 })
    }

    /// No key has the same one twice: each file has a key of its own.
    fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&self.next.to_le_bytes());
        self.next += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Writes a file that has its name once it is finished.
pub(super) struct Writer {
    fresh: Fresh,
    pieces: Pieces,
}

impl Writer {
    pub(super) fn create(to: &Path, seal: &Seal) -> io::Result<Self> {
        let salt: [u8; SALT] = rand::random();
        let mut fresh = Fresh::create(to)?;
        fresh.file.write_all(&salt)?;
        Ok(Self { fresh, pieces: Pieces::new(seal, &salt)? })
    }

    pub(super) fn piece(&mut self, mut bytes: Vec<u8>) -> io::Result<()> {
        let nonce = self.pieces.nonce();
        let sealed = self.pieces.key.seal_in_place_append_tag(nonce, Aad::empty(), &mut bytes);
        sealed.map_err(|_| io::Error::other("a piece that cannot be sealed"))?;
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.fresh.file.write_all(&length.to_le_bytes())?;
        self.fresh.file.write_all(&bytes)
    }

    /// Gives it its name. It need not outlive a crash: what is read is checked.
    pub(super) fn finish(self) -> io::Result<()> {
        self.fresh.finish()
    }
}

/// Reads a file from its first piece on.
pub(super) struct Reader {
    file: BufReader<File>,
    pieces: Pieces,
}

impl Reader {
    pub(super) fn open(path: &Path, seal: &Seal) -> io::Result<Self> {
        let mut file = BufReader::new(File::open(path)?);
        let mut salt = [0; SALT];
        file.read_exact(&mut salt)?;
        Ok(Self { file, pieces: Pieces::new(seal, &salt)? })
    }

    /// The next piece; an error if there is none that is whole.
    pub(super) fn piece(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.file.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > MOST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a piece that is too long"));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact(&mut bytes)?;
        let nonce = self.pieces.nonce();
        let opened = self.pieces.key.open_in_place(nonce, Aad::empty(), &mut bytes);
        let length = opened.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a piece that is damaged"))?.len();
        bytes.truncate(length);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(path: &Path, seal: &Seal) {
        let mut writer = Writer::create(path, seal).unwrap();
        for piece in [b"one".to_vec(), b"two".to_vec()] {
            writer.piece(piece).unwrap();
        }
        writer.finish().unwrap();
    }

    fn read(path: &Path, seal: &Seal) -> io::Result<Vec<Vec<u8>>> {
        let mut reader = Reader::open(path, seal)?;
        (0..2).map(|_| reader.piece()).collect()
    }

    #[test]
    fn d1_only_the_key_of_the_job_opens_a_file_and_only_as_it_was_written() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let (path, seal) = (directory.path().join("file"), Seal([7; 32]));
        written(&path, &seal);
        assert_eq!(read(&path, &seal).unwrap(), [b"one", b"two"]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(read(&path, &Seal([8; 32])).is_err());
        let whole = std::fs::read(&path).unwrap();
        assert!(!whole.windows(3).any(|three| three == b"one" || three == b"two"));
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert!(read(&path, &seal).is_err(), "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(read(&path, &seal).is_err(), "cut at {at}");
        }
        // both pieces are of one length: exchanged they are still not the other
        let piece = (whole.len() - SALT) / 2;
        let exchanged = [&whole[..SALT], &whole[SALT + piece..], &whole[SALT..SALT + piece]].concat();
        std::fs::write(&path, exchanged).unwrap();
        assert!(read(&path, &seal).is_err());
        // the same content is never the same bytes
        written(&path, &seal);
        assert_ne!(std::fs::read(&path).unwrap(), whole);
    }
}
