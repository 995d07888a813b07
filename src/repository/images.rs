//! Images on the disk: in, and out again once nothing names them. Blocking.
//!
//! One lock for all: the arrival of an image, the publication of a manifest and a review never overlap, so that
//! what a review has found unnamed is so until it is gone (safety B12).

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{MutexGuard, PoisonError},
};

use jiff::Timestamp;

use super::{
    durable::{Staged, disk_error},
    store::{Outcome, Store},
};
use crate::{
    names::JobUid,
    store::{
        images::{Fate, ImageReview, fate},
        layout::{self, IMAGES, JOBS},
        manifest::is_uid,
    },
};

impl Store {
    /// Keeps images as they are, for a moment.
    pub(super) fn hold_images(&self) -> MutexGuard<'_, ()> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a received image its name.
    pub(super) fn keep_image(&self, digest: &str, staged: &Staged) -> Outcome<()> {
        // which may last: nobody is to wait for it
        self.root.send(staged, &layout::image(digest)?).map_err(|e| disk_error(&e))?;
        let _held = self.hold_images();
        // first: the time of the one before is not this one's
        self.root.discard(&layout::unnamed_image(digest)?).map_err(|e| disk_error(&e))?;
        self.root.place(staged, &layout::image(digest)?).map_err(|e| disk_error(&e))?;
        self.root.discard(&layout::damaged_image(digest)?).map_err(|e| disk_error(&e))
    }

    /// Removes the images that neither the review nor any manifest has named for the grace, and notes of the others
    /// since when. Nothing, if any manifest cannot be read: it may name any of them. Says what was removed.
    pub fn review_images(&self, review: &ImageReview) -> Outcome<Vec<String>> {
        let _held = self.hold_images();
        let there: Vec<String> = self
            .root
            .list(Path::new(IMAGES))
            .map_err(|e| disk_error(&e))?
            .iter()
            .filter_map(|name| layout::parse_image_name(name))
            .collect();
        let needed = if there.iter().all(|digest| review.named.contains(digest)) {
            BTreeSet::new()
        } else {
            self.images_of_manifests()?
        };
        let mut removed = Vec::new();
        for digest in there {
            let mark = layout::unnamed_image(&digest)?;
            let since = self.root.read(&mark).map_err(|e| disk_error(&e))?;
            // what is no time begins anew
            let at = since.as_deref().and_then(|text| std::str::from_utf8(text).ok()?.parse::<Timestamp>().ok());
            let named = review.named.contains(&digest) || needed.contains(&digest);
            match fate(named, at, review) {
                Fate::Named if since.is_some() => self.root.discard(&mark).map_err(|e| disk_error(&e))?,
                Fate::Named | Fate::Waits => {}
                Fate::Unnamed => {
                    self.root.write(&mark, review.now.to_string().as_bytes()).map_err(|e| disk_error(&e))?;
                }
                Fate::Goes => {
                    // the image last: where this ends early it is found again
                    let (record, pieces) = (layout::disk_record(&digest)?, layout::image_pieces(&digest)?);
                    for path in [record, pieces, mark, layout::image(&digest)?] {
                        self.root.discard(&path).map_err(|e| disk_error(&e))?;
                    }
                    tracing::info!(
                        digest,
                        since = at.map(tracing::field::display),
                        "removed an image that nothing names"
                    );
                    removed.push(digest);
                }
            }
        }
        Ok(removed)
    }

    /// The images that complete generations are based on, of all jobs.
    fn images_of_manifests(&self) -> Outcome<BTreeSet<String>> {
        let mut needed = BTreeSet::new();
        let jobs = self.root.list(Path::new(JOBS)).map_err(|e| disk_error(&e))?;
        // a directory of another name is none of ours
        for job in jobs.into_iter().map(JobUid).filter(is_uid) {
            for number in self.numbers(&job)? {
                let manifest = self.published(&job, number)?;
                needed.extend(manifest.iter().flat_map(|manifest| manifest.images().cloned()));
            }
        }
        Ok(needed)
    }
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
