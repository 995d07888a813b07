//! What an error of OAR means. Pure: status and text in, a [`SiteError`] out.
//!
//! The status alone does not tell: a rule of the site that refuses a job for good is a 500, and so is
//! a server that is down and has accepted the job all the same.

use super::wire::{self, ErrorBody};
use crate::driver::site::SiteError;

/// Longest text of OAR's that is shown to a person.
const SHOWN: usize = 300;
/// What OAR's commands and its database driver say when a server behind the API is away.
const OUTAGES: [&str; 6] = [
    "Cannot connect to the database",
    "Could not connect to the socket",
    "Cannot connect to executor",
    "could not connect to server",
    "server closed the connection",
    "terminating connection",
];

/// What an answer other than success means.
pub(super) fn classify(status: u16, body: &[u8]) -> SiteError {
    let Ok(ErrorBody { title, message }) = wire::parse::<ErrorBody>(body) else {
        return not_json(status, body);
    };
    let text = if message.is_empty() { title } else { message };
    if OUTAGES.iter().any(|o| text.contains(o)) {
        return SiteError::Unreachable(readable(&text));
    }
    match (status, oarsub_status(&text)) {
        (401 | 403, _) => SiteError::Credentials(readable(&text)),
        (404, _) if text.contains("Job not found") => SiteError::NotFound(readable(&text)),
        (404, _) => SiteError::Configuration(readable(&text)),
        (400 | 500, Some(code)) => submission(code, &text),
        (400, None) if already_over(&text) || text.contains("not the right user") => {
            SiteError::NotFound(readable(&text))
        }
        (400..=499, _) if status != 408 && status != 429 => SiteError::Bug(readable(&text)),
        _ => SiteError::Unreachable(readable(&text)),
    }
}

/// Whether a refused deletion says that the job is being killed or is over already.
pub(super) fn already_over(text: &str) -> bool {
    text.contains("already killed")
}

/// What an exit status of `oarsub` means, and its text.
fn submission(code: u32, text: &str) -> SiteError {
    if code == 9 || has_job_id(text) {
        // the job exists and waits, whatever the text says of it
        return SiteError::Unreachable(readable(text));
    }
    match code {
        // the hold's script could not be put into the user's home
        1 if text.contains("cp: ") => SiteError::Credentials(readable(text)),
        8 if text.contains("not enough resources") => SiteError::NotEnoughNodes(readable(text)),
        1 | 255 => SiteError::Bug(readable(text)),
        4..=8 | 10 | 16..=18 | 254 => SiteError::Refused(readable(text)),
        _ => SiteError::Unreachable(readable(text)),
    }
}

fn not_json(status: u16, body: &[u8]) -> SiteError {
    let shown: String = String::from_utf8_lossy(body).chars().take(80).collect();
    let text = format!("HTTP status {status}, not from OAR: {shown:?}");
    match status {
        401 | 403 => SiteError::Credentials(format!("HTTP status {status} from the web server")),
        408 | 429 | 500.. => SiteError::Unreachable(text),
        _ => SiteError::Configuration(text),
    }
}

fn oarsub_status(text: &str) -> Option<u32> {
    let rest = text.split_once("Oarsub command exited with status ")?.1;
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

/// Whether `oarsub` told the number of a job it made; refusals have a negative one.
fn has_job_id(text: &str) -> bool {
    text.split("OAR_JOB_ID=").skip(1).any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// OAR's text without the noise of rules that only inform, and without the command line.
fn readable(text: &str) -> String {
    let text = text.split("\nCmd:").next().unwrap_or(text).split(". (Command was:").next().unwrap_or(text);
    let noise = |line: &str| {
        let informs = ["Automatically", "Modify", "Set default"];
        line.is_empty()
            || line.starts_with("OAR_JOB_ID=-")
            || line.starts_with("[ERROR] Oarsub failed")
            || line.strip_prefix("[ADMISSION RULE] ").is_some_and(|l| informs.iter().any(|i| l.starts_with(i)))
    };
    let lines: Vec<&str> = text
        .lines()
        .map(|line| match line.strip_prefix("Oarsub command exited with status ") {
            Some(rest) => rest.split_once(": ").map_or("", |(_, message)| message),
            None => line,
        })
        .map(str::trim)
        .filter(|line| !noise(line))
        .collect();
    lines.join("; ").chars().take(SHOWN).collect()
}
