//! Names in an archive: only those that stay inside of it.

/// Longest path, and longest part of one.
const MAX_PATH: usize = 4095;
const MAX_PART: usize = 255;

/// A path without `.` and empty parts; the root is empty. What leads out of the archive is an error.
pub(super) fn normal(raw: &[u8]) -> Result<Vec<u8>, String> {
    if raw.len() > MAX_PATH {
        return Err(format!("the name {} has more than {MAX_PATH} bytes", show(raw)));
    }
    if raw.starts_with(b"/") {
        return Err(format!("the name {} begins at the root: names must be relative", show(raw)));
    }
    if raw.contains(&0) {
        return Err(format!("the name {} has a zero byte", show(raw)));
    }
    let mut path = Vec::with_capacity(raw.len());
    for part in parts(raw) {
        if part == b".." {
            return Err(format!("the name {} leads out of the archive", show(raw)));
        }
        if part.len() > MAX_PART {
            return Err(format!("a part of the name {} has more than {MAX_PART} bytes", show(raw)));
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    Ok(path)
}

/// The parts of a path that say something.
pub(super) fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// The directory a normal path lies in, and its last part.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// A name for people: bounded, without control characters.
pub(super) fn show(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(&name[..name.len().min(120)]);
    let shown: String = text.escape_debug().take(120).collect();
    format!("\"{shown}{}\"", if name.len() > 120 { "..." } else { "" })
}
