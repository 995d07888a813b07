//! Images on a file system that all nodes see, under their digests: what is right there needs to come from nobody. What
//! is there is a stranger's: it is taken piece by piece, as far as each is what it is to be. Blocking.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    time::SystemTime,
};

use super::{
    super::images::{by_use, place},
    arriving::{Arriving, NotTaken},
};
use crate::driver::agent::SharedImages;

/// Bytes read at a time.
const PORTION: usize = 1 << 20;

/// Takes what is still missing of an image as far as it is there and right. One that is wrong there is removed.
pub(super) fn take(shared: &SharedImages, digest: &str, arriving: &mut Arriving) -> io::Result<()> {
    let Some(path) = place(&shared.directory, digest) else { return Ok(()) };
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    io::Seek::seek(&mut file, io::SeekFrom::Start(arriving.have()))?;
    let mut portion = vec![0; PORTION];
    while !arriving.is_whole() {
        let count = file.read(&mut portion)?;
        if count == 0 {
            break;
        }
        match arriving.add(&portion[..count]) {
            Ok(()) => {}
            Err(NotTaken::Wrong) => break,
            Err(NotTaken::Disk(error)) => return Err(error),
        }
    }
    arriving.restart();
    if arriving.is_whole() {
        // it counts as used now; where that may not be said it only goes earlier
        let _ = file.set_modified(SystemTime::now());
    } else {
        tracing::warn!(path = %path.display(), "a shared image is damaged, and is removed");
        match fs::remove_file(&path) {
            // another agent has found the same
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Puts an image there for others, unless it is; what was unused for longest makes room. Whether it did.
pub(super) fn put(shared: &SharedImages, digest: &str, mut image: File) -> io::Result<bool> {
    let Some(path) = place(&shared.directory, digest) else { return Ok(false) };
    if path.exists() {
        return Ok(false);
    }
    let length = image.metadata()?.len();
    if length > shared.limit {
        let limit = shared.limit;
        tracing::warn!(digest, length, limit, "an image is larger than agents.sharedImages.limit: it is not shared");
        return Ok(false);
    }
    sweep(shared, shared.limit - length)?;
    let new = shared.directory.join(format!(".{:032x}", rand::random::<u128>()));
    let mut copy = || {
        let mut there = File::create_new(&new)?;
        io::copy(&mut image, &mut there)?;
        there.sync_all()?;
        fs::rename(&new, &path)
    };
    let put = copy();
    if put.is_err() {
        let _ = fs::remove_file(&new);
    }
    put.map(|()| true)
}

/// Removes files until the rest is within the limit. Who reads one that is removed has it to the end, or fetches the
/// rest from others.
fn sweep(shared: &SharedImages, limit: u64) -> io::Result<()> {
    let (files, mut total) = by_use(&shared.directory)?;
    for (_, length, path) in files {
        if total <= limit {
            break;
        }
        tracing::info!(path = %path.display(), length, "a shared image makes room for another one");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => total -= length,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::store::pieces::tests::pieces_of;

    fn image(seed: &str) -> (Vec<u8>, String) {
        let mut image = vec![0; 900_000];
        blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut image);
        let digest = format!("sha256:{:x}", Sha256::digest(&image));
        (image, digest)
    }

    #[test]
    fn d1_what_is_shared_is_taken_as_far_as_it_is_right() {
        let (node, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let shared = SharedImages { directory: shared.path().into(), limit: 10 << 20 };
        let (bytes, digest) = image("one");
        let open = || Arriving::open(node.path(), &digest, Arc::new(pieces_of(&bytes))).unwrap();
        let mut arriving = open();
        take(&shared, &digest, &mut arriving).unwrap();
        assert_eq!(arriving.have(), 0, "nothing is there");
        drop(arriving);

        let source = node.path().join("source");
        let mut damaged = bytes.clone();
        damaged[700_000] ^= 1;
        fs::write(&source, damaged).unwrap();
        put(&shared, &digest, File::open(&source).unwrap()).unwrap();
        let mut arriving = open();
        take(&shared, &digest, &mut arriving).unwrap();
        assert_eq!(arriving.have(), 640 << 10, "up to the piece that is wrong");
        assert!(
            !place(&shared.directory, &digest).unwrap().exists(),
            "it is put there anew by who has it from the repository"
        );
        arriving.add(&bytes[640 << 10..]).unwrap();
        assert!(arriving.proven(&digest).is_some());

        fs::remove_dir_all(node.path()).unwrap();
        fs::create_dir(node.path()).unwrap();
        fs::write(&source, &bytes).unwrap();
        put(&shared, &digest, File::open(&source).unwrap()).unwrap();
        let mut whole = open();
        take(&shared, &digest, &mut whole).unwrap();
        assert!(whole.proven(&digest).is_some());
    }

    #[test]
    fn what_was_unused_for_longest_makes_room_and_what_is_larger_than_all_of_it_stays_away() {
        let (node, directory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let shared = |limit| SharedImages { directory: directory.path().into(), limit };
        let names = ["one", "two", "three"].map(|seed| {
            let (bytes, digest) = image(seed);
            let source = node.path().join(seed);
            fs::write(&source, bytes).unwrap();
            put(&shared(2_000_000), &digest, File::open(&source).unwrap()).unwrap();
            let age = Duration::from_secs(if seed == "one" { 60 } else { 600 });
            if let Ok(file) = File::open(place(directory.path(), &digest).unwrap()) {
                file.set_modified(SystemTime::now() - age).unwrap();
            }
            digest
        });
        let there = |digest: &String| place(directory.path(), digest).unwrap().exists();
        assert_eq!(names.each_ref().map(there), [true, false, true]);
        let (_, large) = image("large");
        put(&shared(10), &large, File::open(node.path().join("one")).unwrap()).unwrap();
        assert_eq!(names.each_ref().map(there), [true, false, true], "nothing goes for what does not fit");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
