//! The agent of the first node: writes the pieces of an image that others want, each as soon as it is here, two at a
//! time.

use std::{
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    Names, PACE, PIECE,
    passage::{Directory, Passage},
};
use crate::agent::supervisor::chain::Standing;

/// How often it is looked whether an image is wanted.
const LOOK: Duration = Duration::from_millis(200);
/// Pieces that the hold has not put yet.
const AHEAD: u64 = 2;
/// The hold answers for a piece, or gives up, within this time.
const ANSWER: Duration = Duration::from_secs(20);
/// Bytes copied at a time.
const PORTION: u64 = 1 << 20;

/// Until nobody shows the image any more.
pub(super) async fn whenever_wanted(directory: &Arc<Directory>, names: &Names, image: watch::Receiver<Standing>) {
    // of an agent that was here before
    directory.remove(&names.outward);
    while image.has_changed().is_ok() {
        sleep(LOOK).await;
        if !directory.has(&names.wanted) {
            continue;
        }
        let begun = Instant::now();
        let given = round(directory, names, &image).await;
        end(directory, names);
        match given {
            Ok(pieces) => {
                tracing::info!(
                    image = names.outward,
                    pieces,
                    took_s = begun.elapsed().as_secs_f64(),
                    "given to TakTuk"
                );
            }
            Err(error) => tracing::warn!(image = names.outward, %error, "an image cannot be given to TakTuk"),
        }
    }
}

/// Says that nothing is given any more. The hold begins again only after that.
fn end(directory: &Directory, names: &Names) {
    directory.take_back(&names.wanted);
    directory.remove(&names.outward);
}

/// Gives an image from its beginning to its end, or until nobody wants it; how many pieces the hold has put.
async fn round(directory: &Directory, names: &Names, image: &watch::Receiver<Standing>) -> io::Result<u64> {
    let passage = Arc::new(directory.make(&names.outward)?);
    let (mut written, mut through, mut moved) = (0, 0, Instant::now());
    while directory.has(&names.wanted) {
        while through < written && !passage.has(through) {
            (through, moved) = (through + 1, Instant::now());
        }
        let standing = image.borrow().clone();
        let Some(size) = standing.size else {
            sleep(PACE).await;
            continue;
        };
        let place = written * PIECE..((written + 1) * PIECE).min(size);
        if through * PIECE >= size {
            break;
        }
        if place.start < size && standing.have >= place.end && written - through < AHEAD {
            let (passage, piece) = (passage.clone(), written);
            tokio::task::spawn_blocking(move || write(&passage, piece, &standing, place))
                .await
                .map_err(io::Error::other)??;
            (written, moved) = (written + 1, Instant::now());
        } else if written > through && moved.elapsed() > ANSWER {
            return Err(io::Error::other("the hold does not answer"));
        } else {
            sleep(PACE).await;
        }
    }
    Ok(through)
}

fn write(passage: &Passage, piece: u64, standing: &Standing, place: std::ops::Range<u64>) -> io::Result<()> {
    let from = standing.file.as_ref().ok_or_else(|| io::Error::other("it is not here"))?;
    let mut file = passage.create()?;
    let (mut at, mut portion) = (place.start, Vec::new());
    while at < place.end {
        portion.resize(usize::try_from(PORTION.min(place.end - at)).unwrap_or_default(), 0);
        from.read_exact_at(&mut portion, at)?;
        file.write_all(&portion)?;
        at += portion.len() as u64;
    }
    passage.place(&file, piece)
}
