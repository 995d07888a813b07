//! The receiving side of the process that gathers: what is sent to the repository comes in here.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, net::TcpListener, sync::mpsc};

use super::{
    data::{self, Opening},
    part::Part,
    receive::{Sink, receive},
    spans::Spans,
    wire::{ItemId, Piece, Report},
};

/// The files that are put together here.
#[derive(Debug, Default)]
pub(super) struct Here(Mutex<HashMap<ItemId, Arc<Part>>>);

impl Here {
    pub(super) fn add(&self, item: ItemId, part: Part) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(item, Arc::new(part));
    }

    fn part(&self, item: ItemId) -> Option<Arc<Part>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&item).cloned()
    }

    /// It is not put together any more.
    pub(super) fn take(&self, item: ItemId) -> Option<Arc<Part>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&item)
    }
}

/// Takes what nodes send, for as long as it is asked for.
pub(super) async fn serve(
    listener: TcpListener,
    token: Arc<str>,
    here: Arc<Here>,
    reports: mpsc::UnboundedSender<Report>,
) {
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            // no more files, for a while
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (token, here, reports) = (token.clone(), here.clone(), reports.clone());
        tokio::spawn(async move {
            let Ok((opening, mut reader)) = data::opened(stream, &token).await else { return };
            match opening {
                Opening::Probe => {
                    let line = format!("{}\n", from.ip().to_canonical());
                    let _ = reader.get_mut().write_all(line.as_bytes()).await;
                }
                Opening::Move { id, bytes } => {
                    let sink =
                        HereSink { here, unsynced: BTreeMap::new(), failed: HashSet::new(), say: reports.clone() };
                    receive(reader, id, bytes, sink, reports).await;
                }
                // for the first that has no other way; nodes get it from each other
                Opening::Binary => drop(super::binary::answer(reader.into_inner()).await),
            }
        });
    }
}

/// Puts what comes in its place. A file that cannot be written fails alone: the others of a move go on.
struct HereSink {
    here: Arc<Here>,
    unsynced: BTreeMap<ItemId, Spans>,
    failed: HashSet<ItemId>,
    say: mpsc::UnboundedSender<Report>,
}

impl HereSink {
    fn fail(&mut self, item: ItemId, error: &io::Error) {
        self.unsynced.remove(&item);
        if self.failed.insert(item) {
            let reason = format!("failed to write it here: {error}");
            let _ = self.say.send(Report::Failed { item, reason });
        }
    }
}

impl Sink for HereSink {
    fn write(&mut self, piece: Piece, bytes: &[u8]) -> io::Result<()> {
        // of one that has failed, the rest is thrown away
        let Some(part) = self.here.part(piece.item) else { return Ok(()) };
        match part.write(piece.start, bytes) {
            Ok(()) => self.unsynced.entry(piece.item).or_default().insert(piece.range()),
            Err(error) => self.fail(piece.item, &error),
        }
        Ok(())
    }

    fn sync(&mut self, _end: bool) -> io::Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        for (item, spans) in std::mem::take(&mut self.unsynced) {
            let Some(part) = self.here.part(item) else { continue };
            let ranges: Vec<_> = spans.iter().collect();
            match part.sync(&ranges) {
                Ok(()) => {
                    pieces.extend(ranges.into_iter().map(|range| Piece { item, start: range.start, end: range.end }));
                }
                Err(error) => self.fail(item, &error),
            }
        }
        Ok(pieces)
    }
}
