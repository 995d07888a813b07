//! Carries a plan out: the status once, then the effects, then the event.

use std::time::Duration;

use kube::{Resource as _, runtime::controller::Action};

use super::{
    Context,
    decide::{Effect, Plan},
    importer,
    observe::Seen,
};
use crate::{api::VmImage, controller::note, driver::cluster::ClusterError};

/// Carries `plan` out; the logins are those that it was made with.
pub async fn act(image: &VmImage, seen: &Seen, plan: &Plan, context: &Context) -> Result<Action, ClusterError> {
    if image.status.as_ref() != Some(&plan.status) && image.metadata.deletion_timestamp.is_none() {
        context.importers.patch_image_status(&image.metadata, &plan.status).await?;
    }
    for effect in &plan.effects {
        match effect {
            Effect::StartImporter => {
                let (job, secret) = importer::build(image, &seen.logins(), context)?;
                context.importers.start(&job, secret.as_ref()).await?;
            }
            Effect::RemoveImporter => {
                let (namespace, name) = importer::place(image, &context.config.namespace);
                context.importers.remove(&namespace, &name).await?;
            }
        }
    }
    note::record(&*context.cluster, &image.object_ref(&()), "Import", &plan.note).await;
    tracing::debug!(
        namespace = image.metadata.namespace,
        image = image.metadata.name,
        why = plan.why,
        effects = ?plan.effects,
        "pass"
    );
    Ok(plan.wake.map_or_else(Action::await_change, |wake| Action::requeue(wake.max(Duration::from_millis(100)))))
}
