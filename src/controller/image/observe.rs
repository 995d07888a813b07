//! What is known of an image: reads only.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Context, decide::wanted, importer};
use crate::{
    api::VmImage,
    driver::{Fact, cluster::importers::ImporterState, repository::Repository},
    image::{FileOrder, Outcome, StoredFile},
};

/// Everything a decision is made from, besides the object and the time.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The importer that the status calls for.
    pub importer: Fact<Importer>,
    /// What an import would end with, if the repository has everything that the spec names.
    pub present: Option<Outcome>,
    /// Size of what the repository has, by digest: what the spec or the status names.
    pub stored: BTreeMap<String, Fact<u64>>,
}

/// The importer.
#[derive(Clone, Debug, PartialEq)]
pub enum Importer {
    /// At work, or waiting for what the text says.
    Working(Option<String>),
    /// Over.
    Ended(Outcome),
}

/// Looks. What does not answer is unknown, not an error.
pub async fn observe(image: &VmImage, context: &Context) -> Seen {
    let now = context.clock.now();
    let wanted = wanted(image);
    let mut stored = BTreeMap::new();
    for digest in wanted.digests {
        let fact = size(&*context.repository, &digest, now).await;
        stored.insert(digest, fact);
    }
    let importer = if wanted.importer {
        let (namespace, name) = importer::place(image, &context.config.namespace);
        match context.importers.state(&namespace, &name).await {
            Ok(None) => Fact::Absent,
            Ok(Some(ImporterState::Running)) => Fact::Known(Importer::Working(None)),
            Ok(Some(ImporterState::Waiting(why))) => Fact::Known(Importer::Working(Some(why))),
            Ok(Some(ImporterState::Ended(message))) => Fact::Known(Importer::Ended(Outcome::read(message.as_deref()))),
            Err(error) => {
                tracing::debug!(%error, name, "failed to look at an importer");
                Fact::Unknown { since: now }
            }
        }
    } else {
        // nobody needs to know
        Fact::Unknown { since: now }
    };
    let present = if importer == Fact::Absent { present(image, &*context.repository).await } else { None };
    Seen { importer, present, stored }
}

/// All files of the spec by their digests, if the repository has them and once checked the disk. What
/// does not answer is imported, which waits for the repository.
async fn present(image: &VmImage, repository: &dyn Repository) -> Option<Outcome> {
    let order = importer::order(image);
    let stored = async |file: &FileOrder| {
        let digest = file.digest.clone()?;
        let size = repository.image(&digest).await.ok()??;
        Some(StoredFile { digest, size })
    };
    let disk = stored(&order.disk).await?;
    let record = repository.disk_record(&disk.digest).await.ok()??;
    if record.format != order.format {
        return None;
    }
    let kernel = match &order.kernel {
        Some(kernel) => Some(stored(kernel).await?),
        None => None,
    };
    let initrd = match &order.initrd {
        Some(initrd) => Some(stored(initrd).await?),
        None => None,
    };
    Some(Outcome::Imported { disk, virtual_size: record.virtual_size, kernel, initrd })
}

async fn size(repository: &dyn Repository, digest: &str, now: Timestamp) -> Fact<u64> {
    match repository.image(digest).await {
        Ok(Some(size)) => Fact::Known(size),
        Ok(None) => Fact::Absent,
        Err(error) => {
            tracing::debug!(%error, digest, "failed to ask for an image");
            Fact::Unknown { since: now }
        }
    }
}
