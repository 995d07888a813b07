//! The agents of the other nodes: take the pieces of an image in their order, as far as each is what it is to be.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _},
    ops::Range,
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    super::{
        arriving::{Arriving, NotTaken},
        receive::STOOD_STILL,
    },
    NOTHING, Names, PACE, PIECE,
    passage::{Directory, Passage},
};

/// The first piece comes within this time: the hold hears of it at a beat, waits for others, and connects.
const FIRST: Duration = Duration::from_secs(15);
/// And then something of the next one within this.
const STILL: Duration = Duration::from_secs(8);
/// Pieces that may lie there: one is read, two are on their way.
const MOST: usize = 4;
/// Bytes read at a time.
const PORTION: usize = 1 << 20;

/// Why no more is taken.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the agent on the hold's node has none")]
    Nothing,
    #[error("nothing came in time")]
    Late,
    #[error("its beginning is missed")]
    Missed,
    #[error("more came than could be taken")]
    Full,
    #[error("a piece is not what it is to be")]
    Wrong,
    #[error(transparent)]
    Strange(#[from] io::Error),
}

/// What is there of the next piece.
enum Next {
    /// All of it, so many bytes.
    Whole(File, u64),
    /// Something of it, or of those before.
    Part(u64),
    Nothing,
}

type Progress<'a> = &'a (dyn Fn(u64) + Send + Sync);

/// Takes what is lacking of an image. Fails only if it cannot be written; what does not come is lacking still.
pub(in super::super) async fn take(
    directory: &Directory,
    digest: &str,
    arriving: Arriving,
    progress: Progress<'_>,
) -> io::Result<Arriving> {
    let Some(names) = Names::of(digest).filter(|_| arriving.fits(PIECE)) else { return Ok(arriving) };
    let wanted = directory.make(&names.inward).and_then(|passage| directory.say(&names.want).map(|()| passage));
    let taken = match wanted {
        Ok(passage) => pieces(directory, passage, arriving, progress).await,
        Err(error) => Ok((arriving, Some(error.into()))),
    };
    directory.take_back(&names.want);
    directory.remove(&names.inward);
    let (mut arriving, ended) = taken?;
    if let Some(ended) = ended {
        tracing::warn!(digest, %ended, "the rest of an image does not come by TakTuk");
    }
    arriving.restart();
    Ok(arriving)
}

/// Until all is here, or why it is not.
async fn pieces(
    directory: &Directory,
    passage: Passage,
    mut arriving: Arriving,
    progress: Progress<'_>,
) -> io::Result<(Arriving, Option<Ended>)> {
    let (mut limit, mut moved, mut seen) = (FIRST, Instant::now(), 0);
    let mut looked = Instant::now();
    while !arriving.is_whole() {
        // whoever did not get to look stood still himself: nobody else is late by that
        if looked.elapsed() > STOOD_STILL {
            moved = Instant::now();
        }
        looked = Instant::now();
        if directory.word("feed").as_deref() == Some(NOTHING) {
            return Ok((arriving, Some(Ended::Nothing)));
        }
        let wanted = arriving.have() / PIECE;
        match look(&passage, &arriving, wanted) {
            Err(ended) => return Ok((arriving, Some(ended))),
            Ok(Next::Whole(file, length)) => {
                let start = arriving.have() - wanted * PIECE;
                let work = move || {
                    let added = add(&mut arriving, file, start..length);
                    (arriving, added)
                };
                let added;
                (arriving, added) = tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?;
                match added? {
                    Ok(()) => {}
                    Err(NotTaken::Wrong) => return Ok((arriving, Some(Ended::Wrong))),
                    Err(NotTaken::Disk(error)) => return Err(error),
                }
                passage.remove(wanted);
                progress(arriving.have());
                (limit, moved, seen) = (STILL, Instant::now(), 0);
                continue;
            }
            Ok(Next::Part(length)) if length != seen => (limit, moved, seen) = (STILL, Instant::now(), length),
            Ok(Next::Part(_) | Next::Nothing) => {}
        }
        if looked.duration_since(moved) > limit {
            return Ok((arriving, Some(Ended::Late)));
        }
        sleep(PACE).await;
    }
    Ok((arriving, None))
}

fn look(passage: &Passage, arriving: &Arriving, wanted: u64) -> Result<Next, Ended> {
    let there = passage.pieces()?;
    if there.len() > MOST {
        return Err(Ended::Full);
    }
    // what an interrupted fetch has left need not come again
    for piece in there.iter().filter(|piece| **piece < wanted) {
        passage.remove(*piece);
    }
    let length = PIECE.min(arriving.size() - wanted * PIECE);
    match passage.open(wanted)? {
        Some((_, found)) if found > length => Err(Ended::Wrong),
        Some((file, found)) if found == length => Ok(Next::Whole(file, length)),
        Some((_, found)) => Ok(Next::Part(found)),
        // they come in their order
        None if there.iter().any(|piece| *piece > wanted) => Err(Ended::Missed),
        None => Ok(there.into_iter().max().map_or(Next::Nothing, |piece| Next::Part(piece + 1))),
    }
}

/// Takes the bytes of a piece from where something lacks; the file may be cut or lengthened meanwhile.
fn add(arriving: &mut Arriving, mut file: File, place: Range<u64>) -> io::Result<Result<(), NotTaken>> {
    file.seek(io::SeekFrom::Start(place.start))?;
    let (mut file, mut portion) = (file.take(place.end - place.start), vec![0; PORTION]);
    loop {
        let count = file.read(&mut portion)?;
        if count == 0 {
            return Ok(Ok(()));
        }
        if let Err(error) = arriving.add(&portion[..count]) {
            return Ok(Err(error));
        }
    }
}
