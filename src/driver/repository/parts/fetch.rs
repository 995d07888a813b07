//! Fetches a file of a part: the recipe, then of each pack what is wanted. Every block is checked against
//! a name that the generation's manifest vouches for.

use std::{
    io::Read as _,
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use reqwest::{Method, header::RANGE};
use tokio::sync::{mpsc, oneshot};

use super::{
    super::{
        Brought, RepositoryError,
        http::{HttpRepository, answered, unreachable},
        streams::{Progress, joined, watched},
        wire::{Coded, file_path, pack_path},
    },
    Which,
    plan::Plan,
    target::{self, Piece, Target},
};
use crate::{
    names::JobUid,
    store::{
        manifest::PartFile,
        pack::PackRef,
        recipe::{MAX_BYTES, MAX_STORED, Recipe},
    },
};

/// Packs on their way at the same time.
const AHEAD: usize = 2;
/// A file that is made again may be so much longer than its size: the canonical stream has other headers.
const SLACK: u64 = 1 << 20;

impl HttpRepository {
    pub(in super::super) async fn fetch_file(
        &self,
        which: Which<'_>,
        file: &PartFile,
        to: &Path,
        progress: Progress<'_>,
    ) -> Result<Brought, RepositoryError> {
        let fetched = AtomicU64::new(0);
        let recipe = Arc::new(self.fetch_recipe(which, file, &fetched).await?);
        let (pieces, arriving) = mpsc::channel(1);
        let (plan, planned) = oneshot::channel();
        // zeros need not be waited for
        let zeros = recipe.runs.iter().filter(|run| run.place.is_none()).map(|run| u64::from(run.count)).sum::<u64>();
        let moved = Arc::new(AtomicU64::new(zeros * u64::from(recipe.head.block_size)));
        let writer = tokio::task::spawn_blocking({
            let (recipe, to, moved) = (recipe.clone(), to.to_owned(), moved.clone());
            let (kept, generation, kind, size) = (self.kept.clone(), which.generation, which.kind, file.size);
            // a stream may be longer than it was captured by the headers of pages that follow no other
            let most = size.saturating_add(size / 64).saturating_add(SLACK);
            move || {
                let here = |target: &mut Target<'_>| match kept {
                    Some(kept) => kept.fill(generation, kind, &recipe, target),
                    None => Ok(()),
                };
                // nobody waits for it any more: the fetch was given up
                target::write(&recipe, here, |made| drop(plan.send(made)), arriving, (&to, most), &moved)
            }
        });
        let fetching = async {
            // its end is that of the pieces
            let pieces = pieces;
            // without a plan the writer says why
            let Ok(plan) = planned.await else { return Ok(()) };
            let packs = recipe.head.packs.iter().copied().enumerate();
            let wanted = packs.filter(|(number, _)| !plan.of_pack(*number).is_empty());
            let fetches: Vec<_> =
                wanted.map(|pack| self.fetch_pack(which.job, pack, &recipe, &plan, &fetched)).collect();
            let mut packs = stream::iter(fetches).buffered(AHEAD);
            while let Some(brought) = packs.next().await {
                for piece in brought? {
                    if pieces.send(piece).await.is_err() {
                        // the writer says why
                        return Ok(());
                    }
                }
            }
            Ok(())
        };
        let both = async {
            let fetched: Result<(), RepositoryError> = fetching.await;
            let written = joined(writer).await?;
            // the fetch's own error says more than that something did not come
            fetched.and(written)
        };
        let local = watched(both, &moved, &|moved| progress(moved.min(file.size))).await?;
        Ok(Brought { fetched: fetched.into_inner(), local })
    }

    async fn fetch_recipe(
        &self,
        Which { job, generation, member, kind }: Which<'_>,
        file: &PartFile,
        fetched: &AtomicU64,
    ) -> Result<Recipe, RepositoryError> {
        let damaged = |what: String| RepositoryError::Damaged(format!("the recipe of {kind}: {what}"));
        if file.stored > MAX_STORED {
            return Err(damaged("too large".into()));
        }
        let source = format!("{}?digest={}", file_path(job, generation, member, kind), Coded(&file.digest));
        let bytes = self.exactly(&source, None, file.stored, fetched).await?;
        if blake3::hash(&bytes).to_string() != file.digest {
            return Err(damaged("not what its manifest says".into()));
        }
        let read = move || {
            let decoder = zstd::stream::read::Decoder::new(&bytes[..]).map_err(|error| error.to_string())?;
            let mut plain = Vec::new();
            decoder.take(MAX_BYTES as u64 + 1).read_to_end(&mut plain).map_err(|error| error.to_string())?;
            Recipe::parse(&plain).map_err(|error| error.to_string())
        };
        joined(tokio::task::spawn_blocking(read)).await?.map_err(damaged)
    }

    async fn fetch_pack(
        &self,
        job: &JobUid,
        (number, pack): (usize, PackRef),
        recipe: &Recipe,
        plan: &Plan,
        fetched: &AtomicU64,
    ) -> Result<Vec<Piece>, RepositoryError> {
        let path = pack_path(job, pack.name);
        let block_size = recipe.head.block_size as usize;
        let result = async {
            if plan.wants_most(number, block_size, pack.stored as usize) {
                let mut bytes = self.exactly(&path, None, pack.stored.into(), fetched).await?;
                let tail = bytes.split_off(usize::try_from(pack.index_range().start).unwrap_or(usize::MAX));
                let index = pack.read_index(&tail).map_err(|error| damaged(pack, error))?;
                return Ok(vec![Piece { pack: number, index: Arc::new(index), frame: 0, bytes }]);
            }
            let range = pack.index_range();
            let tail = self.exactly(&path, Some(range), pack.index.into(), fetched).await?;
            let index = Arc::new(pack.read_index(&tail).map_err(|error| damaged(pack, error))?);
            let mut pieces = Vec::new();
            for frames in plan.frames(number, &index) {
                let ends = index.range(frames.start).zip(index.range(frames.end - 1));
                let (first, last) = ends.ok_or_else(|| damaged(pack, "it is shorter than its recipe says"))?;
                let range = first.start..last.end;
                let bytes = self.exactly(&path, Some(range.clone()), range.end - range.start, fetched).await?;
                pieces.push(Piece { pack: number, index: index.clone(), frame: frames.start, bytes });
            }
            Ok(pieces)
        }
        .await;
        let checked = result.and_then(|pieces| check((number, pack), block_size, plan, pieces));
        if matches!(checked, Err(RepositoryError::Damaged(_) | RepositoryError::NotFound(_))) {
            // read there again, so that later generations do not refer to it
            let _ = self.request(Method::POST, &path).send().await;
        }
        checked
    }

    /// The bytes at a path, or a range of them: as many as expected. They are counted.
    async fn exactly(
        &self,
        path: &str,
        range: Option<Range<u64>>,
        length: u64,
        fetched: &AtomicU64,
    ) -> Result<Bytes, RepositoryError> {
        let mut request = self.request(Method::GET, path);
        if let Some(range) = range {
            request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        let read = AtomicU64::new(0);
        let exchange = async {
            let mut reply = answered(request.send().await).await?;
            let mut bytes = BytesMut::new();
            while let Some(block) = reply.chunk().await.map_err(unreachable)? {
                bytes.extend_from_slice(&block);
                read.store(bytes.len() as u64, Ordering::Relaxed);
                if bytes.len() as u64 > length {
                    break;
                }
            }
            fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if bytes.len() as u64 == length {
                Ok(bytes.freeze())
            } else {
                Err(RepositoryError::Damaged(format!("{path} has another length")))
            }
        };
        watched(exchange, &read, &|_| {}).await
    }
}

/// Compares the frames that are wanted with what the index says of them: others are nobody's concern here.
fn check(
    (of, pack): (usize, PackRef),
    block_size: usize,
    plan: &Plan,
    pieces: Vec<Piece>,
) -> Result<Vec<Piece>, RepositoryError> {
    for piece in &pieces {
        if piece.index.block_size() != block_size {
            return Err(damaged(pack, "its blocks have another size"));
        }
        for frame in piece.index.split(piece.frame, &piece.bytes) {
            let (number, stored) = frame.map_err(|error| damaged(pack, error))?;
            if plan.within(of, &piece.index.slots(number)).next().is_some() {
                piece.index.check(number, stored).map_err(|error| damaged(pack, error))?;
            }
        }
    }
    Ok(pieces)
}

fn damaged(pack: PackRef, what: impl std::fmt::Display) -> RepositoryError {
    RepositoryError::Damaged(format!("pack {}: {what}", pack.name))
}
