//! What an agent says of itself. Data only.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{CollectOrder, LeaveCode};
use crate::{
    driver::repository::Brought,
    names::{Generation, Incarnation, JobUid, MemberIndex},
    store::{
        machine::{Lack, MachineRecord, Offer},
        manifest::{MemberPart, PartFile},
    },
};

/// Everything an agent says of itself: one line of its event stream, sent at each change and as a
/// heartbeat every second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentState {
    /// [`super::PROTOCOL`].
    pub protocol: u32,
    /// Uid of its job.
    pub job: JobUid,
    /// Its member.
    pub member: MemberIndex,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Its lease.
    pub lease: LeaseState,
    /// The VM.
    pub vm: VmState,
    /// The guest and its command.
    pub guest: GuestState,
    /// The hold said that the slot is wanted back, this long ago.
    pub notice: Option<Duration>,
    /// Its part of the newest capture.
    pub capture: Option<CapturePart>,
    /// Its parts of earlier captures that are still on its disk.
    #[serde(default)]
    pub earlier: Vec<CapturePart>,
    /// The newest upload.
    pub upload: Option<UploadState>,
    /// Parts of other members that it takes, holds or has brought to the repository.
    #[serde(default)]
    pub held: Vec<HeldPart>,
    /// Seconds in which the guest has run in this incarnation, less pauses.
    pub ran: f64,
    /// How the VM is made; known once it is loaded.
    pub machine: Option<MachineRecord>,
    /// What its node offers; the flags of the CPU are known once QEMU has been started.
    #[serde(default)]
    pub offer: Option<Offer>,
    /// What of it the generation needs and the node does not offer: it is not loaded there.
    #[serde(default)]
    pub lacks: Vec<Lack>,
    /// What it waits for to make the VM, and until when.
    #[serde(default)]
    pub waiting: Option<String>,
    /// Where what the VM was restored from came from.
    #[serde(default)]
    pub restored: Option<Brought>,
    /// The newest generation of which the node keeps blocks for the next agent.
    #[serde(default)]
    pub kept: Option<Generation>,
    /// The end of the agent, once it is on its way out.
    pub leaving: Option<LeaveCode>,
    /// Nothing is left of the VM on its node: no process, no transfer, no file.
    #[serde(default)]
    pub cleared: bool,
}

/// The lease as its agent sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseState {
    /// Not seen held yet: nothing may run.
    Waiting,
    /// Held by the slot's hold.
    Held,
    /// Lost: everything is being killed.
    Lost,
}

/// The VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum VmState {
    /// Not made yet.
    None,
    /// Image or generation are being fetched, then the generation's memory is loaded, which counts anew.
    Fetching {
        /// Bytes here, or loaded.
        done: u64,
        /// Bytes wanted.
        total: u64,
    },
    /// Made or loaded, and standing still until `go`.
    Loaded,
    /// Running.
    Running,
    /// Stopped by a capture.
    Stopped,
    /// Gone; why.
    Gone {
        /// Why.
        reason: String,
        /// Whose fault it is that it could not be made or restored.
        #[serde(default)]
        fault: LoadFault,
    },
}

/// Bytes from which on it is told how far the fetching is: less is soon here.
const MUCH: u64 = 256 << 20;

impl VmState {
    /// How many quarters are here of what is fetched, and the bytes of all; none where that is little.
    pub fn quarters(&self) -> Option<(u64, u64)> {
        match self {
            Self::Fetching { done, total } if *total >= MUCH => Some((done.saturating_mul(4) / total, *total)),
            _ => None,
        }
    }
}

/// Whose fault it is that a VM could not be made or restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadFault {
    /// Nobody's, or nobody knows: the same may help next time.
    #[default]
    Unknown,
    /// The node's: another one may do it.
    Node,
    /// The generation's: what the repository has of this member is missing or damaged.
    Part,
}

/// The guest and its command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GuestState {
    /// Its guest agent has answered in this incarnation.
    pub answers: bool,
    /// It was asked in vain for [`super::AgentConfig::guest_silence`], in which the guest ran.
    pub silent: bool,
    /// The command was started (in any incarnation).
    pub started: bool,
    /// Exit code of the command.
    pub exit_code: Option<i32>,
    /// The outputs are in the repository.
    pub outputs_kept: bool,
    /// What could not be put right after a restore, or be started.
    pub problem: Option<String>,
    /// The last line of the command's output, bounded.
    pub last_line: Option<String>,
}

/// A member's part of a capture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CapturePart {
    /// The generation.
    pub generation: Generation,
    /// The barrier's nonce; a part of another nonce is not of the same cut.
    pub nonce: String,
    /// How far it is.
    pub state: PartState,
    /// When the guest stopped.
    pub stopped_at: Option<Timestamp>,
    /// How long it stood still, in milliseconds.
    pub pause_ms: Option<u64>,
    /// Bytes of memory, disk and output on local disk.
    pub bytes: u64,
    /// What the manifest says of this member, once captured; its files are empty here, see
    /// [`UploadState::files`].
    #[serde(default)]
    pub record: Option<MemberPart>,
}

/// How far a part is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum PartState {
    /// Overlay and files are ready, space is reserved.
    Prepared,
    /// The guest stands still.
    Stopped,
    /// Overlay switched; memory is being written.
    Writing,
    /// All bytes are on local disk.
    Captured,
    /// Void; the guest runs on.
    Abandoned {
        /// Why.
        reason: String,
    },
}

/// An upload of a captured generation to the repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UploadState {
    /// The generation.
    pub generation: Generation,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes to send.
    pub total: u64,
    /// The files, with the digests the repository has confirmed, once all are there.
    pub files: Vec<PartFile>,
    /// All are there.
    pub done: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// Why it stands still; it is tried again until it succeeds, is refused, its ticket expires, or a later generation
    /// is to be sent.
    pub waiting: Option<String>,
    /// All bytes of a file have come, and the repository reads so many packs again that it shares with earlier ones.
    pub reading_back: Option<usize>,
    /// The limit that it was told last.
    pub limit: Option<u64>,
    /// Bytes that have left the agent for the repository since it began; absent from one of the version before.
    pub moved: Option<u64>,
    /// Bytes that are to leave the agent yet, as far as the node knows what the repository has of earlier generations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left: Option<u64>,
    /// The member whose agent is sent them instead of the repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collector: Option<MemberIndex>,
}

/// Another member's part at its collector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldPart {
    /// The generation.
    pub generation: Generation,
    /// The barrier's nonce.
    pub nonce: String,
    /// Whose it is, and what the manifest will say of it: with its files once the repository has confirmed them.
    pub part: MemberPart,
    /// Bytes of its files as they were captured, once all are here.
    pub size: u64,
    /// Bytes here that are for the repository.
    pub stored: u64,
    /// All are here, written to the disk and compared with their hashes.
    pub whole: bool,
    /// All are in the repository.
    pub done: bool,
    /// Why it cannot be brought.
    pub error: Option<String>,
    /// Why it stands still; it is tried again.
    pub waiting: Option<String>,
    /// The limit that was told last.
    pub limit: Option<u64>,
    /// Bytes of it that have left for the repository.
    pub moved: u64,
}

impl From<&CollectOrder> for HeldPart {
    /// Nothing of it has come.
    fn from(order: &CollectOrder) -> Self {
        Self {
            generation: order.generation,
            nonce: order.nonce.clone(),
            part: order.part.clone(),
            size: 0,
            stored: 0,
            whole: false,
            done: false,
            error: None,
            waiting: None,
            limit: order.limit,
            moved: 0,
        }
    }
}
