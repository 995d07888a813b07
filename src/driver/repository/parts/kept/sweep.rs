//! Removes what a node keeps of jobs that are not there any more, and makes room for those that are. Blocking.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{LOCK, lock};

/// What nobody has used for so long is of a job that is gone, or comes back elsewhere.
const AGE: Duration = Duration::from_secs(24 * 3600);

/// What is kept of one member.
struct Found {
    used: SystemTime,
    path: PathBuf,
    bytes: u64,
}

/// Removes what nobody has used for a day, and of the rest the longest unused until all together are within the
/// limit; never what an agent has. Bytes that are left.
pub(super) fn sweep(root: &Path, limit: u64) -> u64 {
    let mut all: Vec<Found> = std::fs::read_dir(root).into_iter().flatten().flatten().filter_map(found).collect();
    all.sort_by_key(|found| found.used);
    let mut total: u64 = all.iter().map(|found| found.bytes).sum();
    for Found { used, path, bytes } in all {
        let old = used.elapsed().is_ok_and(|age| age > AGE);
        if !old && total <= limit {
            continue;
        }
        // whoever opens it now finds it locked, and does without
        let Ok(Some(_held)) = lock(&path) else { continue };
        match std::fs::remove_dir_all(&path) {
            Ok(()) => {
                tracing::info!(path = %path.display(), bytes, "removed what the node kept of a job's captures");
                total = total.saturating_sub(bytes);
            }
            Err(error) => tracing::warn!(%error, path = %path.display(), "what the node kept of a job stays"),
        }
    }
    total
}

/// What a directory holds. None for what is no directory of ours.
fn found(entry: std::fs::DirEntry) -> Option<Found> {
    if !entry.file_type().ok()?.is_dir() {
        return None;
    }
    let path = entry.path();
    let used = std::fs::metadata(path.join(LOCK)).and_then(|lock| lock.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let files = std::fs::read_dir(&path).into_iter().flatten().flatten();
    let bytes = files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum();
    Some(Found { used, path, bytes })
}
