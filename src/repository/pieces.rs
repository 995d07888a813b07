//! The names of an image's pieces: made once, when they are first asked for, and kept beside the image. Blocking.

use std::{io::Read as _, path::Path};

use sha2::{Digest as _, Sha256};

use super::{
    durable::disk_error,
    store::{Outcome, Store, guard},
};
use crate::{
    driver::repository::RepositoryError,
    store::{
        layout,
        pieces::{Naming, Pieces},
    },
};

/// Bytes that are read at a time.
const BLOCK: usize = 256 << 10;

impl Store {
    /// The names of an image's pieces. Damaged, if the image is not what its name says.
    pub(super) fn image_pieces(&self, digest: &str) -> Outcome<Pieces> {
        let image = layout::image(digest)?;
        let absent = || RepositoryError::NotFound(digest.into());
        let length = self.root.found(&image).map_err(|e| disk_error(&e))?.ok_or_else(absent)?.len();
        if let Some(known) = self.kept_pieces(digest, length)? {
            return Ok(known);
        }
        // agents ask for them all at once
        let _made_by_one = guard(&self.naming);
        if let Some(known) = self.kept_pieces(digest, length)? {
            return Ok(known);
        }
        let made = self.name_pieces(digest, &image)?;
        let _held = self.hold_images();
        // nothing is left behind of one that is gone by now
        if self.root.found(&image).map_err(|e| disk_error(&e))?.is_some() {
            self.root.write(&layout::image_pieces(digest)?, &made.to_bytes()).map_err(|e| disk_error(&e))?;
        }
        Ok(made)
    }

    /// Those that were kept of an image of this length; none, if what is there cannot be read.
    fn kept_pieces(&self, digest: &str, length: u64) -> Outcome<Option<Pieces>> {
        let kept = self.root.read(&layout::image_pieces(digest)?).map_err(|e| disk_error(&e))?;
        let pieces = kept.and_then(|bytes| Pieces::parse(&bytes).ok());
        Ok(pieces.filter(|pieces| pieces.size() == length))
    }

    fn name_pieces(&self, digest: &str, image: &Path) -> Outcome<Pieces> {
        let mut file = self.root.whole(image).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => RepositoryError::NotFound(digest.into()),
            _ => disk_error(&error),
        })?;
        let length = file.length().map_err(|e| disk_error(&e))?;
        let (mut naming, mut whole, mut block) = (Naming::of(length), Sha256::new(), vec![0; BLOCK]);
        loop {
            match file.read(&mut block).map_err(|e| disk_error(&e))? {
                0 => break,
                count => {
                    naming.update(&block[..count]);
                    whole.update(&block[..count]);
                }
            }
        }
        let found = layout::image_name(&whole.finalize());
        let pieces = naming.finish().filter(|_| found == digest);
        pieces.ok_or_else(|| RepositoryError::Damaged(format!("the image {digest} is {found}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        repository::durable::{AllSteps, Root},
        store::pieces::tests::pieces_of,
    };

    fn store(directory: &Path) -> Store {
        Store::of(Root::open(directory, Box::new(AllSteps)).unwrap(), jiff::Timestamp::UNIX_EPOCH).unwrap()
    }

    fn keep(store: &Store, content: &[u8]) -> String {
        let digest = layout::image_name(&Sha256::digest(content));
        let staged = store.root.staged();
        std::fs::write(staged.path(), content).unwrap();
        store.keep_image(&digest, &staged).unwrap();
        digest
    }

    #[test]
    fn names_are_made_once_and_made_again_when_they_cannot_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let content = vec![7; 700_000];
        let digest = keep(&store, &content);
        let kept = store.root.at(&layout::image_pieces(&digest).unwrap());
        assert_eq!(store.image_pieces(&digest).unwrap(), pieces_of(&content));
        // what is kept is what is said
        std::fs::write(&kept, pieces_of(&vec![8; 700_000]).to_bytes()).unwrap();
        assert_eq!(store.image_pieces(&digest).unwrap(), pieces_of(&vec![8; 700_000]));
        for broken in [&b""[..], b"no names", &pieces_of(&content[1..]).to_bytes()] {
            std::fs::write(&kept, broken).unwrap();
            assert_eq!(store.image_pieces(&digest).unwrap(), pieces_of(&content));
            assert_eq!(std::fs::read(&kept).unwrap(), pieces_of(&content).to_bytes());
        }
    }

    #[test]
    fn an_image_that_is_gone_or_damaged_has_no_names() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let digest = keep(&store, b"an image");
        std::fs::write(store.root.at(&layout::image(&digest).unwrap()), b"an imagE").unwrap();
        assert!(matches!(store.image_pieces(&digest), Err(RepositoryError::Damaged(_))));
        std::fs::remove_file(store.root.at(&layout::image(&digest).unwrap())).unwrap();
        assert!(matches!(store.image_pieces(&digest), Err(RepositoryError::NotFound(_))));
        assert!(!store.root.at(&layout::image_pieces(&digest).unwrap()).exists());
    }
}
