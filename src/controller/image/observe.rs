//! What is known of an image: reads only.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Context, decide::wanted, importer};
use crate::{
    api::VmImage,
    driver::{Fact, cluster::importers::ImporterState, repository::Repository},
    image::Outcome,
};

/// Everything a decision is made from, besides the object and the time.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The importer that the status calls for.
    pub importer: Fact<Importer>,
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
    Seen { importer, stored }
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
