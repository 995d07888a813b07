//! Fetches an image in pieces: from the one before this agent in the chain, past those that are dead or hold it up, and
//! at last from the repository. What is here stays, whoever sends the rest.

use std::{collections::BTreeSet, fs::File, io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt as _;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, interval, sleep},
};

use super::{
    Chain, Standing,
    arriving::{Arriving, NotTaken, Proven},
    shared,
    taktuk::{self, Place},
};
use crate::{
    driver::{
        agent::{
            AgentError, SharedImages,
            peer::{Frame, FrameStream, Origin},
        },
        repository::{ByteStore, RepositoryError},
    },
    names::MemberIndex,
    store::pieces::Pieces,
    transfer::plan::chain::{Fault, Pace, View, fault, next},
};

/// Agents of a job do not come up at once: one that cannot be reached may have this long.
const COMING_UP: Duration = Duration::from_secs(8);
/// How often it is tried meanwhile.
const AGAIN: Duration = Duration::from_millis(200);
/// How often the source is looked at, and progress told.
const LOOK: Duration = Duration::from_millis(250);
/// An agent that did not get to look for this long knows nothing of its source: it stood still itself.
pub(super) const STOOD_STILL: Duration = Duration::from_secs(1);
/// A repository that sends nothing for this long has gone.
const SILENCE: Duration = Duration::from_secs(60);
/// Frames on their way between network and disk.
const AHEAD: usize = 4;

type Progress<'a> = &'a (dyn Fn(u64) + Send + Sync);

/// Why no more came from a source, with bytes lacking still.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0:?}")]
    Fault(Fault),
    #[error("{0}")]
    Broke(String),
    #[error("it sent other bytes")]
    Wrong,
    #[error(transparent)]
    Disk(io::Error),
}

/// What happened so far in one fetch.
struct Course<'a> {
    digest: &'a str,
    /// Bytes of the image.
    size: u64,
    image: &'a watch::Sender<Standing>,
    begun: Instant,
    passed: BTreeSet<MemberIndex>,
    left_slow_links: u32,
    pace: Pace,
    /// Bytes that others of the job sent, and the repository.
    from_peers: u64,
    from_repository: u64,
}

impl Course<'_> {
    fn now(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// Bytes that are here.
    fn have(&self) -> u64 {
        self.image.borrow().have
    }
}

fn on_disk(error: &io::Error) -> RepositoryError {
    RepositoryError::local("the cache of images", error)
}

impl Chain {
    /// Brings an image; the file that is it, yet without its name. None where it can only be had as a whole.
    pub(in super::super) async fn bring(
        &self,
        store: &dyn ByteStore,
        directory: &Path,
        digest: &str,
        progress: Progress<'_>,
    ) -> Result<Option<Proven>, RepositoryError> {
        let Some(image) = self.images.get(digest) else { return Ok(None) };
        let Some(pieces) = store.image_pieces(digest).await? else { return Ok(None) };
        let (size, mut arriving) = (pieces.size(), open(directory, digest, pieces).await?);
        let found = arriving.have();
        if let Some(shared) = &self.shared {
            arriving = look_at_shared(shared.clone(), digest, arriving).await?;
            progress(arriving.have());
        }
        let have = arriving.have();
        let reader = arriving.reader().map_err(|error| on_disk(&error))?;
        image.send_modify(|standing| {
            (standing.file, standing.have, standing.size) = (Some(Arc::new(reader)), have, Some(size));
        });
        let (arriving, before) = self.take_by_taktuk(digest, arriving, image, progress).await?;
        let by_taktuk = arriving.have() - have;
        let mut course = Course {
            digest,
            size,
            image,
            begun: Instant::now(),
            passed: BTreeSet::new(),
            left_slow_links: 0,
            pace: Pace::default(),
            from_peers: 0,
            from_repository: 0,
        };
        let Some(arriving) = self.fetch_rest(store, &before, arriving, &mut course, progress).await? else {
            return Ok(None);
        };
        let (peers, repository) = (course.from_peers, course.from_repository);
        if peers + repository > 0 {
            // its last source was not known for long enough, and those behind compare with what they know
            let mean = (peers + repository) as f64 / course.now().max(f64::MIN_POSITIVE);
            image.send_modify(|standing| _ = standing.pace.get_or_insert(mean));
        }
        let from_shared = have - found;
        tracing::info!(
            digest,
            found,
            from_shared,
            by_taktuk,
            peers,
            repository,
            took_s = course.now(),
            "an image is here"
        );
        self.proven(digest, arriving, repository > 0).await.map(Some)
    }

    /// Takes what comes by TakTuk, and says who before this agent may be asked for the rest.
    async fn take_by_taktuk(
        &self,
        digest: &str,
        mut arriving: Arriving,
        image: &watch::Sender<Standing>,
        progress: Progress<'_>,
    ) -> Result<(Arriving, Vec<MemberIndex>), RepositoryError> {
        let mut before: Vec<MemberIndex> = self.before.iter().map(|address| address.member).collect();
        if let Some(putting) = &self.putting {
            putting.offer(digest, image.subscribe());
            match putting.place().await {
                // who gives it to the others by TakTuk does not wait for any of them
                Some(Place::Root(_)) => before.clear(),
                Some(Place::Node(directory)) if putting.is_to_be_taken(digest) => {
                    let here = |have: u64| {
                        image.send_modify(|standing| standing.have = have);
                        progress(have);
                    };
                    let taken = taktuk::take(&directory, digest, arriving, &here).await;
                    arriving = taken.map_err(|error| on_disk(&error))?;
                }
                Some(Place::Node(_)) | None => {}
            }
        }
        Ok((arriving, before))
    }

    /// Fetches what is lacking, from one source after another. None where the image can only be had as a whole.
    async fn fetch_rest(
        &self,
        store: &dyn ByteStore,
        before: &[MemberIndex],
        mut arriving: Arriving,
        course: &mut Course<'_>,
        progress: Progress<'_>,
    ) -> Result<Option<Arriving>, RepositoryError> {
        let (digest, image) = (course.digest, course.image);
        while !arriving.is_whole() {
            let source = next(before, &course.passed);
            let Some(frames) = self.frames(store, source, arriving.have(), course).await? else { continue };
            // how fast the one before was says nothing of this one
            image.send_modify(|standing| (standing.from, standing.pace) = (source, None));
            let ended;
            (arriving, ended) = self.take(frames, source, arriving, course, progress).await?;
            match (ended, source) {
                (Ok(()), _) => {}
                (Err(Ended::Disk(error)), _) => return Err(on_disk(&error)),
                (Err(ended), Origin::Member(member)) => {
                    tracing::warn!(digest, member, %ended, "an agent is passed over: its image comes from another one");
                    course.left_slow_links += u32::from(matches!(ended, Ended::Fault(Fault::SlowLink)));
                    course.passed.insert(member);
                }
                (Err(Ended::Wrong), _) => {
                    tracing::warn!(digest, "the repository's bytes are not those of the image: it is fetched whole");
                    return Ok(None);
                }
                (Err(ended), _) => return Err(RepositoryError::Unreachable(format!("an image: {ended}"))),
            }
        }
        Ok(Some(arriving))
    }

    /// The file, if it is the image; shared, if any of it was fetched from the repository.
    async fn proven(&self, digest: &str, arriving: Arriving, from_repository: bool) -> Result<Proven, RepositoryError> {
        let path = arriving.path.clone();
        let shared = self.shared.clone().filter(|_| from_repository);
        let to_share = shared.map(|shared| Ok((shared, arriving.reader()?))).transpose();
        let to_share = to_share.map_err(|error| on_disk(&error))?;
        if let Some(proven) = arriving.proven(digest) {
            if let Some((shared, image)) = to_share {
                share(shared, digest.to_owned(), image);
            }
            return Ok(proven);
        }
        // all pieces are right, and it is another image: the names of its pieces are not
        let _ = tokio::fs::remove_file(path).await;
        Err(RepositoryError::Damaged(format!("the image {digest} came as another one")))
    }

    /// Where the image comes from now; nothing if that one is passed over, or tried again.
    async fn frames(
        &self,
        store: &dyn ByteStore,
        source: Origin,
        have: u64,
        course: &mut Course<'_>,
    ) -> Result<Option<FrameStream>, RepositoryError> {
        let Origin::Member(member) = source else {
            let bytes = store.image_bytes(course.digest, have..course.size).await?;
            let frames = bytes.map(|bytes| match bytes {
                Ok(bytes) => Ok(Frame::Part(bytes)),
                Err(error) => Err(AgentError::Unreachable(error.to_string())),
            });
            return Ok(Some(frames.boxed()));
        };
        let address = self.before.iter().find(|address| address.member == member);
        let peer = address.and_then(|address| store.image_peer(address));
        let asked = match peer {
            Some(peer) => peer.image_from(course.digest, have).await,
            None => Err(AgentError::Refused("agents are not reached from here".into())),
        };
        match asked {
            Ok(frames) => Ok(Some(frames)),
            Err(AgentError::Unreachable(_)) if course.begun.elapsed() < COMING_UP => {
                sleep(AGAIN).await;
                Ok(None)
            }
            Err(error) => {
                tracing::info!(digest = course.digest, member, %error, "an agent passes no image on");
                course.passed.insert(member);
                Ok(None)
            }
        }
    }

    /// Takes what comes from a source until all is here, or it is of no use any more.
    async fn take(
        &self,
        mut frames: FrameStream,
        source: Origin,
        mut arriving: Arriving,
        course: &mut Course<'_>,
        progress: Progress<'_>,
    ) -> Result<(Arriving, Result<(), Ended>), RepositoryError> {
        arriving.restart();
        course.pace.anew();
        let mut left = course.size - arriving.have();
        let (into, mut blocks) = mpsc::channel::<Bytes>(AHEAD);
        let image = course.image.clone();
        let writer = tokio::task::spawn_blocking(move || {
            while let Some(block) = blocks.blocking_recv() {
                let added = arriving.add(&block);
                let have = arriving.have();
                image.send_if_modified(|standing| std::mem::replace(&mut standing.have, have) != have);
                if added.is_err() {
                    return (arriving, added);
                }
            }
            (arriving, Ok(()))
        });
        let (mut heard, mut moved, mut looked, mut look) =
            (Instant::now(), Instant::now(), Instant::now(), interval(LOOK));
        let ended = loop {
            if left == 0 {
                break Ok(());
            }
            tokio::select! {
                frame = frames.next() => match frame {
                    Some(Ok(Frame::Part(bytes))) => {
                        let count = bytes.len() as u64;
                        left = left.saturating_sub(count);
                        match source {
                            Origin::Member(_) => course.from_peers += count,
                            Origin::Repository | Origin::Nobody => course.from_repository += count,
                        }
                        course.pace.came(course.now(), count);
                        if into.send(bytes).await.is_err() {
                            // the writer says why
                            break Ok(());
                        }
                        (heard, moved) = (Instant::now(), Instant::now());
                    }
                    Some(Ok(Frame::Reports(reports))) => {
                        heard = Instant::now();
                        course.image.send_modify(|standing| standing.known = reports);
                    }
                    Some(Err(error)) => break Err(Ended::Broke(error.to_string())),
                    None => break Err(Ended::Broke("it ended early".into())),
                },
                _ = look.tick() => {
                    progress(course.have());
                    if looked.elapsed() > STOOD_STILL {
                        course.pace.anew();
                        (heard, moved) = (Instant::now(), Instant::now());
                    }
                    looked = Instant::now();
                    let found = self.look(source, course, heard, moved);
                    if let Some(ended) = found {
                        break Err(ended);
                    }
                }
            }
        };
        drop(into);
        let (arriving, written) = writer.await.map_err(|error| on_disk(&io::Error::other(error)))?;
        progress(arriving.have());
        let ended = match written {
            Ok(()) => ended,
            Err(NotTaken::Wrong) => Err(Ended::Wrong),
            Err(NotTaken::Disk(error)) => Err(Ended::Disk(error)),
        };
        Ok((arriving, ended))
    }

    /// What is wrong with the source, if anything is.
    fn look(&self, source: Origin, course: &Course<'_>, heard: Instant, moved: Instant) -> Option<Ended> {
        let pace = course.pace.rate(course.now());
        // those behind are told, but need not be woken for it
        course.image.send_if_modified(|standing| {
            standing.pace = pace;
            false
        });
        let known = course.image.borrow().known.clone();
        let Origin::Member(source) = source else {
            return (heard.elapsed() >= SILENCE).then(|| Ended::Broke("nothing came any more".into()));
        };
        let view = View {
            source,
            have: course.have(),
            pace,
            silent: heard.elapsed().as_secs_f64(),
            idle: moved.elapsed().as_secs_f64(),
            known: &known,
            others: course.passed.len() + 1 < self.before.len(),
            before: self.before.len(),
            left_slow_links: course.left_slow_links,
        };
        fault(&view).map(Ended::Fault)
    }
}

async fn open(directory: &Path, digest: &str, pieces: Pieces) -> Result<Arriving, RepositoryError> {
    let (directory, digest) = (directory.to_owned(), digest.to_owned());
    let opened = tokio::task::spawn_blocking(move || Arriving::open(&directory, &digest, Arc::new(pieces))).await;
    opened.map_err(io::Error::other).flatten().map_err(|error| on_disk(&error))
}

/// What a file system that all nodes see has of it.
async fn look_at_shared(
    shared: Arc<SharedImages>,
    digest: &str,
    mut arriving: Arriving,
) -> Result<Arriving, RepositoryError> {
    let digest = digest.to_owned();
    let look = move || {
        if let Err(error) = shared::take(&shared, &digest, &mut arriving) {
            tracing::warn!(digest, %error, "a shared image cannot be used");
        }
        arriving
    };
    tokio::task::spawn_blocking(look).await.map_err(|error| on_disk(&io::Error::other(error)))
}

/// Puts an image where all nodes see it. Nobody waits for it.
fn share(shared: Arc<SharedImages>, digest: String, image: File) {
    tokio::task::spawn_blocking(move || match shared::put(&shared, &digest, image) {
        Ok(true) => tracing::info!(digest, "an image is shared"),
        Ok(false) => {}
        Err(error) => tracing::warn!(digest, %error, "an image cannot be shared"),
    });
}
