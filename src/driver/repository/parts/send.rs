//! Sends a file of a part: asks which of its blocks the repository has, sends packs of the others, and
//! the recipe last.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use reqwest::{Body, Method, StatusCode};
use tokio::sync::mpsc;

use super::{
    super::{
        RepositoryError, Sending, SendingProgress,
        http::{HttpRepository, answered, does_not_understand, unreachable},
        streams::watched,
        wire::{MOST_NAMES, TICKET, Unread, blocks_path, file_path, new_pack_path, write_names},
    },
    Which, blocking,
    named::NamedFile,
    packing::{Packing, UNDERWAY},
};
use crate::store::{
    manifest::{FileForm, FileKind, PartFile},
    pack::{BlockName, LEVEL, PackName, Packed},
    recipe::{Located, Recipe},
};

/// Blocks that are asked for at once.
const BATCH: usize = 4096;
const _: () = assert!(BATCH <= MOST_NAMES);
/// A pack that was there when it was asked for, and is not any more, is sent again so often.
const ROUNDS: u32 = 3;
/// Packs that are sent at a time: while the repository checks and stores one, the next fills the link.
pub(super) const SENT: usize = 2;
/// A recipe is sent so often while the repository reads none of the packs that it still has to.
const STILL: u32 = 3;

impl HttpRepository {
    pub(in super::super) async fn send_file(
        &self,
        ticket: &str,
        which: Which<'_>,
        path: &Path,
        progress: SendingProgress<'_>,
    ) -> Result<PartFile, RepositoryError> {
        let file = self.named(which.kind, path).await?;
        let mut round = 0;
        loop {
            round += 1;
            match self.send_blocks(ticket, which, &file, progress).await {
                Ok(None) if self.to.is_some() => {
                    return Err(RepositoryError::Refused("the repository is of an earlier version".into()));
                }
                Ok(None) => {
                    tracing::warn!("the repository is of an earlier version: files are sent whole");
                    self.last.forget();
                    return self.send_whole(ticket, which, path, progress).await;
                }
                Ok(Some(sent)) => {
                    self.last.forget();
                    if let Some(kept) = &self.kept {
                        kept.offer(which.generation, which.kind, file);
                    }
                    return Ok(sent);
                }
                Err(RepositoryError::NotFound(what)) if round < ROUNDS => {
                    tracing::info!(what, "blocks are gone that the repository had: they are sent again");
                }
                // it is tried again by whoever has the file
                Err(error @ (RepositoryError::Unreachable(_) | RepositoryError::Full(_))) => return Err(error),
                Err(error) => {
                    self.last.forget();
                    return Err(error);
                }
            }
        }
    }

    /// Names the blocks of a file ahead; only the last one's are kept. Bytes that have changed, as far as the node
    /// knows.
    pub(in super::super) async fn name_blocks(
        &self,
        kind: FileKind,
        path: &Path,
    ) -> Result<Option<u64>, RepositoryError> {
        let file = self.named(kind, path).await?;
        let Some(kept) = self.kept.clone() else { return Ok(None) };
        blocking("compare a capture with what is kept", move || kept.changed(kind, &file)).await
    }

    async fn named(&self, kind: FileKind, path: &Path) -> Result<Arc<NamedFile>, RepositoryError> {
        let (path, last) = (path.to_owned(), self.last.clone());
        blocking("name the blocks of a capture", move || last.get(&path, kind)).await
    }

    /// Nothing: the repository knows no blocks.
    async fn send_blocks(
        &self,
        ticket: &str,
        which: Which<'_>,
        file: &Arc<NamedFile>,
        progress: SendingProgress<'_>,
    ) -> Result<Option<PartFile>, RepositoryError> {
        // one waits for those before it and one is built
        let (full, mut packs) = mpsc::channel(UNDERWAY - SENT - 1);
        let building = self.build(ticket, which, file, full, progress);
        let packs = futures::stream::poll_fn(move |context| packs.poll_recv(context));
        // in their order, so that no more are under way than are known to be
        let send = |Packed { pack, bytes }| self.send_pack(ticket, which, pack.name, bytes.into());
        let sending = packs.map(send).buffered(SENT).try_collect::<()>();
        let (Some(recipe), ()) = tokio::try_join!(building, sending)? else { return Ok(None) };
        self.send_recipe(ticket, which, recipe, file.size, progress).await.map(Some)
    }

    /// Builds packs of the blocks that the repository lacks, and the recipe of all; nothing if it does not understand.
    async fn build(
        &self,
        ticket: &str,
        which: Which<'_>,
        file: &Arc<NamedFile>,
        full: mpsc::Sender<Packed>,
        progress: SendingProgress<'_>,
    ) -> Result<Option<Recipe>, RepositoryError> {
        let mut packing = Packing::new(file.block_size);
        let mut first = 0;
        while first < file.blocks {
            let reader = file.clone();
            let entries = blocking("read the names of blocks", move || reader.entries(first, BATCH)).await?;
            let asked = packing.unknown(&entries);
            let Some(found) = self.find_blocks(ticket, which, &asked).await? else { return Ok(None) };
            first += entries.len() as u64;
            let (reader, full) = (file.clone(), full.clone());
            packing = blocking("pack the blocks of a capture", move || {
                // whoever takes them says why no more are wanted
                let mut send = |pack| full.blocking_send(pack).map_err(|_| io::ErrorKind::BrokenPipe.into());
                packing.add(&reader, &entries, &asked, &found, &mut send)?;
                Ok(packing)
            })
            .await?;
            progress(Sending::Bytes(file.size.saturating_mul(first) / file.blocks));
        }
        let reader = file.clone();
        let (last, recipe) = blocking("pack the blocks of a capture", move || packing.finish(&reader)).await?;
        if let Some(pack) = last {
            // the same
            let _ = full.send(pack).await;
        }
        Ok(Some(recipe))
    }

    /// Which of these blocks the repository has; nothing if it is of an earlier version and does not understand.
    pub(super) async fn find_blocks(
        &self,
        ticket: &str,
        Which { job, generation, member, kind }: Which<'_>,
        names: &[BlockName],
    ) -> Result<Option<Located>, RepositoryError> {
        if names.is_empty() {
            return Ok(Some(Located::default()));
        }
        let request = self
            .request(Method::POST, &blocks_path(job, generation, member, kind))
            .header(TICKET, ticket)
            .body(write_names(names));
        let exchange = async {
            let reply = request.send().await.map_err(unreachable)?;
            if does_not_understand(&reply) {
                return Ok(None);
            }
            answered(Ok(reply)).await?.bytes().await.map_err(unreachable).map(Some)
        };
        let Some(reply) = watched(exchange, &AtomicU64::new(0), &|_| {}).await? else { return Ok(None) };
        let found: Result<Located, _> = postcard::from_bytes(&reply);
        match found {
            Ok(found) if found.places.len() == names.len() => Ok(Some(found)),
            _ => Err(RepositoryError::Unreachable("the answer to a question for blocks cannot be read".into())),
        }
    }

    pub(super) async fn send_pack(
        &self,
        ticket: &str,
        Which { job, generation, member, kind }: Which<'_>,
        name: PackName,
        bytes: Bytes,
    ) -> Result<(), RepositoryError> {
        let moved = Arc::new(AtomicU64::new(0));
        let request = self
            .deliver(&new_pack_path(job, generation, member, kind, name))
            .header(TICKET, ticket)
            .header(reqwest::header::CONTENT_LENGTH, bytes.len())
            .body(self.paced(bytes, moved.clone()));
        watched(async { answered(request.send().await).await.map(drop) }, &moved, &|_| {}).await
    }

    async fn send_recipe(
        &self,
        ticket: &str,
        which: Which<'_>,
        recipe: Recipe,
        size: u64,
        progress: SendingProgress<'_>,
    ) -> Result<PartFile, RepositoryError> {
        let bytes = blocking("write a recipe", move || zstd::bulk::compress(&recipe.to_bytes()?, LEVEL)).await?;
        let own = PartFile {
            kind: which.kind,
            form: FileForm::Recipe,
            size,
            stored: bytes.len() as u64,
            packed: 0,
            digest: blake3::hash(&bytes).to_string(),
        };
        self.offer_recipe(ticket, which, &own, bytes.into(), progress).await
    }

    /// Sends a recipe until what it needs has been read back; `own` is what is to be confirmed.
    pub(super) async fn offer_recipe(
        &self,
        ticket: &str,
        Which { job, generation, member, kind }: Which<'_>,
        own: &PartFile,
        bytes: Bytes,
        progress: SendingProgress<'_>,
    ) -> Result<PartFile, RepositoryError> {
        let size = own.size;
        let path = format!("{}?size={size}&form=recipe", file_path(job, generation, member, kind));
        let (mut unread, mut still) = (usize::MAX, 0);
        let confirmed = loop {
            let moved = Arc::new(AtomicU64::new(0));
            let request = self
                .deliver(&path)
                .header(TICKET, ticket)
                .header(reqwest::header::CONTENT_LENGTH, bytes.len())
                .body(self.paced(bytes.clone(), moved.clone()));
            let exchange = async {
                let reply = answered(request.send().await).await?;
                Ok(if reply.status() == StatusCode::ACCEPTED {
                    Err(reply.json::<Unread>().await.map_err(unreachable)?)
                } else {
                    Ok(reply.json::<PartFile>().await.map_err(unreachable)?)
                })
            };
            match watched(exchange, &moved, &|_| {}).await? {
                Ok(confirmed) => break confirmed,
                Err(Unread { packs }) => {
                    progress(Sending::ReadingBack(packs));
                    tracing::info!(packs, "the repository reads packs again that the capture shares with earlier ones");
                    still = if packs < unread { 0 } else { still + 1 };
                    unread = unread.min(packs);
                    if still >= STILL {
                        let why = format!("it does not come to an end with {unread} packs that it reads again");
                        return Err(RepositoryError::Unreachable(why));
                    }
                }
            }
        };
        let packed = confirmed.packed;
        if confirmed == (PartFile { packed, ..own.clone() }) {
            Ok(confirmed)
        } else {
            Err(RepositoryError::Damaged(format!("{kind}: the repository received something else")))
        }
    }

    /// A body that goes as fast as it may, and is counted as it goes.
    fn paced(&self, bytes: Bytes, moved: Arc<AtomicU64>) -> Body {
        let pace = self.pace.clone();
        let pieces = futures::stream::unfold(bytes, move |mut left| {
            let (pace, moved) = (pace.clone(), moved.clone());
            async move {
                let piece = left.split_to(left.len().min(pace.piece()));
                if piece.is_empty() {
                    return None;
                }
                pace.pass(piece.len()).await;
                moved.fetch_add(piece.len() as u64, Ordering::Relaxed);
                Some((Ok::<_, io::Error>(piece), left))
            }
        });
        Body::wrap_stream(pieces)
    }
}
