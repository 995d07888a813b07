//! What happens in a gather: a line of JSON each, for whoever checks or draws it.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::Path,
    time::Instant,
};

use serde::{Deserialize, Serialize};

/// What it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// A file is on `from`, with so many bytes that have to be moved.
    Item,
    /// `from` has room for so many bytes of others.
    Room,
    /// The first bytes of a move are there; so many are to follow.
    Start,
    /// The last bytes of a move are there: its links are free.
    Done,
    /// So many bytes are acknowledged: on the disk, under their name, with the right digest.
    Stored,
    /// A move ended before its end.
    Broken,
    /// `from` holds nothing any more that is not safe elsewhere.
    Freed,
    /// `from` is lost.
    Lost,
    /// A file cannot be had.
    Failed,
    /// A file has its final name.
    Whole,
    /// Another plan is made.
    Replan,
    /// A link, or the repository's, is as fast as this, in bytes a second.
    Rate,
}

/// Something that happened. A node that was freed is freed again if it got something back meanwhile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Seconds since the first move was ordered.
    pub t: f64,
    /// What.
    pub event: Kind,
    /// The number of the move.
    #[serde(rename = "move", default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// A host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// A host, or [`REPOSITORY`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// How many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// A file, by its name at the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How the destination is called.
pub const REPOSITORY: &str = "repository";

impl Event {
    /// An event that says nothing else; the log knows the time.
    pub fn new(event: Kind) -> Self {
        Self { t: 0.0, event, id: None, from: None, to: None, bytes: None, item: None, reason: None }
    }

    pub(super) fn id(self, id: u64) -> Self {
        Self { id: Some(id), ..self }
    }

    pub(super) fn from(self, host: &str) -> Self {
        Self { from: Some(host.to_owned()), ..self }
    }

    pub(super) fn to(self, place: &str) -> Self {
        Self { to: Some(place.to_owned()), ..self }
    }

    pub(super) fn bytes(self, bytes: u64) -> Self {
        Self { bytes: Some(bytes), ..self }
    }

    pub(super) fn item(self, name: &str) -> Self {
        Self { item: Some(name.to_owned()), ..self }
    }

    pub(super) fn reason(self, reason: &str) -> Self {
        Self { reason: Some(reason.to_owned()), ..self }
    }
}

/// Where events go, if anybody wants them.
pub(super) struct Log {
    file: Option<BufWriter<File>>,
    begun: Instant,
}

impl Log {
    pub(super) fn new(path: Option<&Path>) -> io::Result<Self> {
        let file = path.map(File::create).transpose()?.map(BufWriter::new);
        Ok(Self { file, begun: Instant::now() })
    }

    /// From now on time is counted.
    pub(super) fn begin(&mut self) {
        self.begun = Instant::now();
    }

    /// Seconds since the beginning.
    pub(super) fn now(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    pub(super) fn say(&mut self, event: Event) {
        let event = Event { t: self.now(), ..event };
        tracing::debug!(?event);
        let Some(file) = &mut self.file else { return };
        let written = serde_json::to_writer(&mut *file, &event).map_err(io::Error::from).and_then(|()| {
            file.write_all(b"\n")?;
            file.flush()
        });
        if let Err(error) = written {
            tracing::warn!(%error, "no more events are written");
            self.file = None;
        }
    }
}
