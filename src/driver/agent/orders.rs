//! What an agent is asked. Data only.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    names::{Generation, Incarnation, MemberIndex},
    store::manifest::MemberPart,
};

/// A guest that was captured and does not run resumes after this time, unless
/// [`super::NodeAgent::stay_down`] has come (safety B3).
pub const STAY_DOWN_WITHIN: Duration = Duration::from_secs(30);

/// Longest time for a command of [`super::GuestAccess::exec`], in seconds: the API server's clients wait little
/// longer for an answer.
pub const EXEC_LIMIT: u32 = 240;

/// What every order carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authority {
    /// Rises with every change of the operator's leadership.
    pub epoch: u64,
    /// The incarnation meant.
    pub incarnation: Incarnation,
}

/// One step of a capture. The same order may come several times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CaptureOrder {
    /// Who asks.
    pub authority: Authority,
    /// The generation; never used twice.
    pub generation: Generation,
    /// The barrier's nonce; refused once the guest has resumed from it.
    pub nonce: String,
    /// Whether the guest runs on after the cut. If not, it does so all the same unless
    /// [`super::NodeAgent::stay_down`] follows in time (safety B3).
    pub resume: bool,
}

/// Orders the upload of a captured generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UploadOrder {
    /// Of the kget that orders it; 0 from one that knew of none.
    #[serde(default)]
    pub epoch: u64,
    /// The generation.
    pub generation: Generation,
    /// The incarnation it was captured in.
    pub incarnation: Incarnation,
    /// Permission to write, for the repository.
    pub ticket: String,
    /// Most bytes a second; none: as many as go. With 0 the agent gets ready and stands still until it is told
    /// otherwise, and goes on then with what the repository lacks. A repeated order changes only this.
    #[serde(default)]
    pub limit: Option<u64>,
    /// Who is sent packs and recipes instead of the repository, and was told to take them. One of the version before
    /// sends to the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collector: Option<Collector>,
}

/// An agent that takes the bytes of another one of its job and incarnation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Collector {
    /// Its member.
    pub member: MemberIndex,
    /// Where it serves.
    pub endpoint: SocketAddr,
}

/// Lets an agent take the part of another member, hold it, and bring it to the repository (safety D1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CollectOrder {
    /// Of the kget that orders it.
    pub epoch: u64,
    /// The generation.
    pub generation: Generation,
    /// The incarnation it was captured in.
    pub incarnation: Incarnation,
    /// Whose part it is, and what the manifest will say of it but for its files.
    pub part: MemberPart,
    /// The barrier's nonce.
    pub nonce: String,
    /// Most bytes of the part: there must be room for them.
    pub bytes: u64,
    /// Permission to bring it, for the repository.
    pub ticket: String,
    /// Most bytes a second to the repository; none: as many as go. With 0 it is taken and held. A repeated order
    /// changes only this and the ticket.
    #[serde(default)]
    pub limit: Option<u64>,
}

/// How an agent leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaveCode {
    /// The job is done: the hold ends with the code for it.
    Done,
    /// What is needed is safe: the hold ends with the code for it.
    Saved,
    /// Only this incarnation ends; the slot is kept for the next one.
    KeepSlot,
}

/// A command for a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExecOrder {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// It is killed after so many seconds.
    pub timeout: u32,
}

/// What a command in a guest came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecReply {
    /// Its exit code.
    pub code: i32,
    /// The beginning of its standard output, base64.
    pub stdout: String,
    /// The beginning of its standard error, base64.
    pub stderr: String,
    /// Whether it printed more than that.
    pub cut: bool,
}
