//! Fetches one file with limits on size and silence, and says its digest. Sources are strangers:
//! nothing they send is believed.

mod download;
pub(super) mod oci;
mod web;

use std::{fs::File, io::Read as _, path::Path};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use sha2::{Digest as _, Sha256};

use super::{FileOrder, Place, StoredFile, Trouble, TroubleKind};
use crate::driver::exchange::BAD_CERTIFICATE;

const CHUNK: usize = 1 << 20;
/// What is bad about a certificate that nobody has signed who is trusted; the second where one of the same name is.
const UNSIGNED: [&str; 2] = ["UnknownIssuer", "BadSignature"];

/// Fetches a file to `to` and checks its digest.
pub async fn fetch(order: &FileOrder, to: &Path) -> Result<StoredFile, Trouble> {
    // a file that changed while it came, which its server did not say, may be the right one next time
    let (got, again) = match &order.place {
        Place::Url(url) => web::fetch(order, url, to).await?,
        Place::Oci(place) => oci::fetch(order, place, to).await?,
        Place::Beneath { root, path } => {
            let (order, root, path, to) = (order.clone(), root.clone(), path.clone(), to.to_owned());
            let copied = tokio::task::spawn_blocking(move || copy(&order, &root, &path, &to));
            (copied.await.map_err(|e| Trouble::passing(TroubleKind::Importer, e.to_string()))??, false)
        }
    };
    match &order.digest {
        Some(wanted) if *wanted != got.digest => {
            let message = format!(
                "the file of {field} ({place}) has the digest {}, not {wanted}: correct the digest of {field} or its source",
                got.digest,
                field = order.field,
                place = place(order),
            );
            Err(Trouble { again, ..Trouble::refused(TroubleKind::Digest, message) })
        }
        _ => Ok(got),
    }
}

fn place(order: &FileOrder) -> &str {
    match &order.place {
        Place::Url(url) => url,
        Place::Oci(place) => &place.reference,
        Place::Beneath { path, .. } => path,
    }
}

/// Copies a file of a claim. Links that lead out of the claim are refused by the kernel: the
/// importer's own files, its key among them, are not a user's to name.
fn copy(order: &FileOrder, root: &Path, path: &str, to: &Path) -> Result<StoredFile, Trouble> {
    let refused = |error: rustix::io::Errno| {
        let message = format!("failed to open {path} of the claim ({}): {error}: correct the path", order.field);
        Trouble::refused(TroubleKind::Fetch, message)
    };
    let root = openat(CWD, root, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(refused)?;
    let inside = path.trim_start_matches('/');
    // a FIFO must not block
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let found = openat2(&root, inside, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
        .map_err(refused)?;
    let mut from = File::from(found);
    if !from.metadata().map_err(|e| local(&e))?.is_file() {
        let message = format!("{path} of the claim ({}) is not a file: correct the path", order.field);
        return Err(Trouble::refused(TroubleKind::Fetch, message));
    }
    let mut to = File::create(to).map_err(|e| local(&e))?;
    let mut digest = Sha256::new();
    let (mut size, mut buffer) = (0, vec![0; CHUNK]);
    loop {
        let n = from.read(&mut buffer).map_err(|e| local(&e))?;
        if n == 0 {
            break;
        }
        size += n as u64;
        if size > order.limit {
            return Err(too_large(&order.field, order.limit));
        }
        digest.update(&buffer[..n]);
        std::io::Write::write_all(&mut to, &buffer[..n]).map_err(|e| local(&e))?;
    }
    Ok(StoredFile { digest: format!("sha256:{:x}", digest.finalize()), size })
}

/// The digest and the size of a file that was made here.
pub async fn stored(path: &Path) -> Result<StoredFile, Trouble> {
    let path = path.to_owned();
    let hashed = tokio::task::spawn_blocking(move || {
        let mut digest = Sha256::new();
        let size = std::io::copy(&mut File::open(path)?, &mut digest)?;
        Ok(StoredFile { digest: format!("sha256:{:x}", digest.finalize()), size })
    });
    hashed.await.map_err(std::io::Error::other).flatten().map_err(|e| local(&e))
}

fn too_large(field: &str, limit: u64) -> Trouble {
    Trouble::refused(TroubleKind::Unusable, format!("the file of {field} is larger than {limit} bytes"))
}

fn local(error: &std::io::Error) -> Trouble {
    Trouble::passing(TroubleKind::Importer, format!("failed to keep the file: {error}"))
}

/// Why a request failed, and what helps.
fn unanswered(error: &reqwest::Error) -> String {
    let why = root_cause(error);
    let unsigned = why.contains(BAD_CERTIFICATE) && UNSIGNED.iter().any(|what| why.ends_with(what));
    let helps =
        if unsigned { ": put the certificate of who signed it into importers.ca of the chart's values" } else { "" };
    format!("{why}{helps}")
}

/// The innermost cause: the others only say that a request failed.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests;
