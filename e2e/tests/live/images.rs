//! Images that do not come from the web.

use anyhow::{Context as _, Result};
use e2e::{
    Turn,
    job::{Counting, Job},
    world::ends_right,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::json;
use vmdeploy::api::{
    VmImage,
    image::{ClaimSource, ImageSource},
};

/// Where the guest's files are put on the service node.
const DIRECTORY: &str = "/var/lib/vmdeploy/claim";

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_from_an_image_on_a_claim() -> Result<()> {
    let Some(bed) = Turn::with(1).await? else { return Ok(()) };
    let namespace = bed.namespace("claim").await?;
    bed.allow(&namespace, "vmdeploy-claim-importer").await?;
    let copy = format!(
        "mkdir -p {DIRECTORY} && cp -L {}/disk.qcow2 {}/vmlinuz {}/initrd {DIRECTORY}/ && chmod -R a+rX {DIRECTORY}",
        bed.guest_image().display(),
        bed.guest_image().display(),
        bed.guest_image().display()
    );
    bed.run(&["node", "5", "sh", "-c", &copy])?;
    let size = json!({"storage": "1Gi"});
    let volume: PersistentVolume = serde_json::from_value(json!({
        "metadata": {"name": namespace},
        "spec": {"capacity": size, "accessModes": ["ReadOnlyMany"], "hostPath": {"path": DIRECTORY},
            "storageClassName": "", "claimRef": {"namespace": namespace, "name": "images"}},
    }))?;
    let volumes: Api<PersistentVolume> = Api::all(bed.client.clone());
    volumes.create(&PostParams::default(), &volume).await?;
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {"name": "images"},
        "spec": {"accessModes": ["ReadOnlyMany"], "resources": {"requests": size},
            "storageClassName": "", "volumeName": namespace},
    }))?;
    Api::namespaced(bed.client.clone(), &namespace).create(&PostParams::default(), &claim).await?;

    let images: Api<VmImage> = Api::namespaced(bed.client.clone(), &namespace);
    let on_claim = |file: &str| ImageSource {
        claim: Some(ClaimSource { name: "images".into(), path: file.into(), digest: None }),
        ..ImageSource::default()
    };
    let mut image = bed.image()?;
    image.metadata.name = Some("claimed".into());
    image.spec.source = on_claim("disk.qcow2");
    let os = image.spec.os.as_mut().context("the guest has no kernel of its own")?;
    os.kernel = Some(on_claim("vmlinuz"));
    os.initrd = Some(on_claim("initrd"));
    images.create(&PostParams::default(), &image).await?;
    let counting = Counting { ticks: 10, ..Counting::default() };
    let mut object = counting.object("count")?;
    object.spec.image.as_mut().context("no image")?.name = "claimed".into();
    let job = Job::create(&bed, &namespace, &object).await?;
    ends_right(&bed, &job, &counting).await?;
    volumes.delete(&namespace, &DeleteParams::default()).await?;
    Ok(())
}
