//! What the gathering process and its nodes tell each other: a line of JSON each, on the standard input and output of
//! the remote shell.

use std::{net::SocketAddr, os::unix::fs::MetadataExt as _};

use serde::{Deserialize, Serialize};

/// Both ends have to be of one version; they are one binary.
pub(super) const VERSION: u32 = 1;

/// A file that is gathered: the number of its node, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct ItemId(pub(super) u64);

impl ItemId {
    pub(super) fn new(node: usize, file: usize) -> Self {
        Self(((node as u64) << 32) | file as u64)
    }

    /// The node that it is from.
    pub(super) fn node(self) -> usize {
        (self.0 >> 32) as usize
    }

    /// Its number there.
    pub(super) fn file(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }
}

/// A range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Piece {
    pub(super) item: ItemId,
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Piece {
    pub(super) fn bytes(&self) -> u64 {
        self.end - self.start
    }

    pub(super) fn range(&self) -> std::ops::Range<u64> {
        self.start..self.end
    }
}

/// By what a file is known to be the same as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) size: u64,
    pub(super) seconds: i64,
    pub(super) nanoseconds: i64,
}

impl From<&std::fs::Metadata> for Identity {
    fn from(known: &std::fs::Metadata) -> Self {
        Self { size: known.len(), seconds: known.mtime(), nanoseconds: known.mtime_nsec() }
    }
}

/// A binary, by where it is on its disk: on another machine that has the same disk it is the same without a look into
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Binary {
    device: u64,
    inode: u64,
    changed: (i64, i64),
    known: Identity,
}

impl From<&std::fs::Metadata> for Binary {
    fn from(known: &std::fs::Metadata) -> Self {
        Self {
            device: known.dev(),
            inode: known.ino(),
            changed: (known.ctime(), known.ctime_nsec()),
            known: known.into(),
        }
    }
}

/// A file that a node has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Found {
    /// Its name, without directories.
    pub(super) name: String,
    /// What it is, or why it cannot be read.
    pub(super) known: Result<Identity, String>,
}

/// To a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Order {
    /// Says the digest of its own binary.
    Digest,
    /// The first of all: what it has to know.
    Begin(Begin),
    /// Sends this to the address, as the move of this number.
    Send { id: u64, to: SocketAddr, pieces: Vec<Piece> },
    /// Gives a move up.
    Stop { id: u64 },
    /// There is still somebody who gives orders.
    Beat,
    /// Forgets what it has of others: it is safe elsewhere.
    Drop { pieces: Vec<Piece> },
}

/// What a node is told at the beginning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Begin {
    /// Its own number.
    pub(super) node: usize,
    /// What every connection has to show.
    pub(super) token: String,
    /// Where the gathering process may be reached.
    pub(super) here: Vec<SocketAddr>,
    /// Path or pattern of its files.
    pub(super) source: String,
    /// Bytes at a time.
    pub(super) chunk: u64,
    /// Most bytes a second that it sends.
    pub(super) rate: Option<u64>,
    /// Most bytes of others that it takes.
    pub(super) room: Option<u64>,
}

/// From a node, or from what receives here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Report {
    /// The shell has no binary yet.
    Need,
    /// What was sent is not what it should be.
    Unfit { reason: String },
    /// The binary runs.
    Ready { version: u32, binary: Option<Binary> },
    /// The digest of the binary.
    Digest { sha256: String },
    /// What it has, how much of others it may take, where it can be reached; the first working address of here.
    Hello { files: Vec<Found>, room: u64, port: u16, here: Option<SocketAddr>, seen: Option<std::net::IpAddr> },
    /// It lives.
    Beat,
    /// The first bytes of a move are here.
    Receives { id: u64 },
    /// So many bytes of a move have come.
    Progress { id: u64, bytes: u64 },
    /// They are on the disk under their names, and their digests are right.
    Stored { id: u64, pieces: Vec<Piece> },
    /// All of a move has come: the links are free.
    Landed { id: u64 },
    /// All was sent, and the files it is from are still what they were.
    Sent { id: u64 },
    /// A move ended before its end.
    Broken { id: u64, reason: String },
    /// There is no room for more of others.
    Full { id: u64, reason: String },
    /// This file cannot be had.
    Failed { item: ItemId, reason: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_went() {
        let piece = Piece { item: ItemId::new(31, 7), start: 5, end: 9 };
        assert_eq!((piece.item.node(), piece.item.file(), piece.bytes()), (31, 7, 4));
        let report = Report::Stored { id: 3, pieces: vec![piece] };
        let line = serde_json::to_string(&report).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Report>(&line).unwrap(), report);
        // what the shell says before there is a binary
        assert_eq!(serde_json::from_str::<Report>("\"need\"").unwrap(), Report::Need);
    }
}
