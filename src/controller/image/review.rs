//! Lets images go that nothing names any more (safety B12).
//!
//! The repository keeps what its generations are based on, and knows since when nothing else names an image; here
//! it is told what does. For that all objects are asked for anew, of the API server itself: where it does not answer,
//! or one of them cannot be read, the repository is told nothing, and removes nothing.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::Context;
use crate::{
    api::{BestEffortJob, VmImage},
    driver::{cluster::ClusterError, repository::RepositoryError},
    store::images::ImageReview,
};

/// Time between two reviews.
const INTERVAL: Duration = Duration::from_secs(300);

/// Why there was no review.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What names images is not known.
    #[error("failed to read what names images: {0}")]
    Users(#[from] ClusterError),
    /// The repository does not take it.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

/// Reviews again and again until told to stop.
pub async fn keep(context: Arc<Context>, stop: CancellationToken) {
    loop {
        match review(&context).await {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => tracing::info!(?removed, "the repository has removed images that nothing names"),
            Err(error) => tracing::warn!(%error, "failed to review the images: none is removed"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// One review; says what was removed.
pub async fn review(context: &Context) -> Result<Vec<String>, Error> {
    // before the objects are asked for: no time begins earlier than it was seen
    let now = context.clock.now();
    let (images, jobs) = context.view.users_of_images().await?;
    let grace = Duration::from(context.config.image_grace).as_secs();
    let review = ImageReview { named: named(&images, &jobs), now, grace };
    Ok(context.repository.review_images(&review).await?)
}

/// The digests that objects name: what is to be imported, what has been, and what jobs were accepted with. A job
/// keeps its image for as long as there is the job: also one that has ended may have a last generation on its way.
pub(super) fn named(images: &[VmImage], jobs: &[BestEffortJob]) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for image in images {
        named.extend(image.spec.sources().filter_map(|(_, source)| source.digest()).cloned());
        let status = image.status.iter().flat_map(|status| [&status.digest, &status.kernel, &status.initrd]);
        named.extend(status.flatten().cloned());
    }
    let accepted = jobs.iter().filter_map(|job| job.status.as_ref()?.image.as_ref());
    named.extend(accepted.flat_map(|image| image.files().cloned()));
    named
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn digest(n: u8) -> String {
        format!("sha256:{n:064x}")
    }

    fn http(n: u8) -> Value {
        json!({"http": {"url": "https://example.org/x", "digest": digest(n)}})
    }

    fn image(spec: &Value, status: &Value) -> VmImage {
        serde_json::from_value(json!({
            "apiVersion": "vmdeploy.io/v1alpha1", "kind": "VmImage", "metadata": {"name": "x"},
            "spec": spec, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn b12_all_that_objects_name_is_named() {
        let claim = json!({"claim": {"name": "c", "path": "/disk", "digest": digest(4)}});
        let images = [
            image(&json!({"source": http(1), "os": {"kernel": http(2), "initrd": http(3)}}), &json!({})),
            image(&json!({"source": claim}), &json!({})),
            // a change of the spec that has not been seen yet
            image(&json!({"source": http(5)}), &json!({"digest": digest(6), "kernel": digest(7), "initrd": digest(8)})),
        ];
        let job: BestEffortJob = serde_json::from_value(json!({
            "apiVersion": "vmdeploy.io/v1alpha1", "kind": "BestEffortJob", "metadata": {"name": "pi"},
            "spec": {"run": {"command": ["pi"]}, "slots": {"site": "rennes", "walltime": "2h"}},
            "status": {"phase": "Succeeded", "image": {"namespace": "team", "name": "gone", "disk": digest(9),
                "virtualSize": 1, "kernel": digest(10), "initrd": digest(11)}},
        }))
        .unwrap();
        let mut fresh = job.clone();
        fresh.status = None;
        assert_eq!(named(&images, &[job, fresh]), (1..=11).map(digest).collect());
    }
}
