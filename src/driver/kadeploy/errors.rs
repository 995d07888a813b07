//! What a refusal of Kadeploy means. Pure: status, code and text in, a closed type out.
//!
//! Its own refusals are a 400 with a code in a header; the text of its API numbers some of them otherwise than it does.

use super::KadeployError;
use crate::driver::exchange::shown;

/// Longest text of the server's that is shown to a person.
const SHOWN: usize = 300;

/// An answer other than success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It does not know the workflow: it was restarted, or the workflow was cancelled, forgotten or had its rights
    /// taken away.
    NoWorkflow,
    /// It knows no such thing.
    NotFound(String),
    /// Everything else.
    Error(KadeployError),
}

impl From<KadeployError> for Refusal {
    fn from(error: KadeployError) -> Self {
        Self::Error(error)
    }
}

impl Refusal {
    /// Where the absence of something is not what was asked for.
    pub(super) fn into_error(self) -> KadeployError {
        match self {
            Self::NoWorkflow => KadeployError::Refused("it does not know the workflow".into()),
            Self::NotFound(text) => KadeployError::Configuration(format!("it does not know {text}")),
            Self::Error(error) => error,
        }
    }
}

/// What an answer other than success means.
pub(super) fn classify(status: u16, code: Option<u32>, body: &[u8]) -> Refusal {
    let text = shown(body, SHOWN);
    let html = text.starts_with('<');
    Refusal::Error(match (status, code) {
        (400, Some(1)) => return Refusal::NoWorkflow,
        (400, Some(code)) => of_code(code, text),
        (401 | 403, _) => KadeployError::Credentials(text),
        (404, _) if !html => {
            return Refusal::NotFound(text.strip_prefix("File Not Found -- ").unwrap_or(&text).to_owned());
        }
        (406 | 413 | 415, _) => KadeployError::Bug(text),
        (408 | 429 | 500.., _) => KadeployError::Unreachable(format!("HTTP status {status}: {text}")),
        _ => KadeployError::Configuration(format!("HTTP status {status}, not from a deployment server: {text:?}")),
    })
}

/// Whether what a code means is no matter of nodes: the server's configuration, what it knows of files and their way to
/// it, descriptions of environments, and what goes wrong within it.
pub(super) fn is_of_no_node(code: u32) -> bool {
    matches!(code, 0 | 3 | 5 | 7 | 15 | 20..=22)
}

/// What the code of a refusal means, or of a workflow that broke.
pub(super) fn of_code(code: u32, text: String) -> KadeployError {
    match code {
        0 => KadeployError::Configuration(text),
        6 => KadeployError::RightsMissing(text),
        // its execution, its database, its cache
        15 | 20..=22 => KadeployError::Unreachable(text),
        _ => KadeployError::Refused(text),
    }
}
