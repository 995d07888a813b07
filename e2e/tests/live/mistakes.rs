//! Bad input is refused in seconds with a message that says what to change; a corrected object goes on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{
    TestBed, Turn,
    job::{Counting, Job},
    site::{jobs_ever, unfinished},
    testbed::until,
    world::{BOOT, GONE},
};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use vmdeploy::api::{
    BestEffortJobSpec, JobPhase, VmImage,
    job::{OarSlotSpec, SecretReference},
    quantity::Bytes,
};

const SECONDS: Duration = Duration::from_secs(20);

/// Waits until the job has got past all checks.
async fn accepted(job: &Job) -> Result<()> {
    job.wait("accepted", BOOT, |job| {
        let phase = job.status.as_ref()?.phase;
        (!matches!(phase, JobPhase::Pending | JobPhase::ImagePreparing) && !job.status.as_ref()?.slots.is_empty())
            .then_some(())
    })
    .await
}

/// A job with a mistake gets this reason, with these words in its message; without the mistake it gets slots.
async fn mistake(
    bed: &TestBed,
    namespace: &str,
    name: &str,
    (reason, words): (&str, &str),
    change: impl FnOnce(&mut BestEffortJobSpec),
) -> Result<()> {
    let good = Counting { ticks: 5, ..Counting::default() }.object(name)?;
    let mut bad = good.clone();
    change(&mut bad.spec);
    let job = Job::create(bed, namespace, &bad).await?;
    job.wait_reason(reason, words, SECONDS).await.with_context(|| name.to_owned())?;
    let submissions = job.get().await?.status.map_or(0, |status| status.submission);
    ensure!(submissions <= 1, "{name}: {submissions} requests for slots");
    ensure!(unfinished(&job.uid).await?.is_empty(), "{name}: something is left at the site");
    job.correct(|spec| *spec = good.spec).await?;
    accepted(&job).await.with_context(|| format!("{name} corrected"))?;
    job.delete(GONE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_vmdeploy_refuses_is_said_in_seconds_and_mended_by_apply() -> Result<()> {
    let Some(bed) = Turn::with(1).await? else { return Ok(()) };
    let namespace = bed.namespace("mistakes").await?;
    let bed = &bed;
    mistake(bed, &namespace, "site", ("UnknownSite", "nowhere"), |spec| spec.slots.site = "nowhere".into()).await?;
    mistake(bed, &namespace, "image", ("ImageNotFound", "no-such"), |spec| {
        if let Some(image) = &mut spec.image {
            image.name = "no-such".into();
        }
    })
    .await?;
    mistake(bed, &namespace, "memory", ("MemoryTooLarge", "2Gi"), |spec| spec.vm.memory = Bytes(1 << 40)).await?;
    mistake(bed, &namespace, "account", ("CredentialsMissing", "oar-nobody"), |spec| {
        spec.slots.credentials = Some(SecretReference { name: "oar-nobody".into() });
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_oar_refuses_is_said_in_seconds_and_mended_by_apply() -> Result<()> {
    let Some(bed) = Turn::with(1).await? else { return Ok(()) };
    let namespace = bed.namespace("refused").await?;
    let bed = &bed;
    let oar = |slots: OarSlotSpec| move |spec: &mut BestEffortJobSpec| spec.slots.oar = Some(slots);
    let property = OarSlotSpec { property: Some("no_such_column='x'".into()), ..OarSlotSpec::default() };
    mistake(bed, &namespace, "property", ("SubmissionRefused", "no_such_column"), oar(property)).await?;
    // a name that OAR would choke on is none of its business: only the number of nodes is wrong
    mistake(bed, &namespace, "a.name-with.dots-0", ("NotEnoughNodes", "not enough resources"), |spec| spec.members = 40)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_another_digest_is_refused_until_it_is_corrected() -> Result<()> {
    let Some(bed) = Turn::with(1).await? else { return Ok(()) };
    let namespace = bed.namespace("digest").await?;
    let images: Api<VmImage> = Api::namespaced(bed.client.clone(), &namespace);
    let good = bed.image()?.spec;
    let mut bad = bed.image()?;
    bad.metadata.name = Some("bad".into());
    bad.spec.source.http.as_mut().context("not from the web")?.digest = format!("sha256:{:064x}", 7);
    images.create(&PostParams::default(), &bad).await?;
    let mut object = Counting { ticks: 5, ..Counting::default() }.object("digest")?;
    object.spec.image.as_mut().context("no image")?.name = "bad".into();
    let job = Job::create(&bed, &namespace, &object).await?;
    job.wait_reason("DigestMismatch", "sha256:", BOOT).await?;
    ensure!(jobs_ever(&bed, &job.uid)?.is_empty(), "slots were asked for without an image");
    let corrected = Patch::Merge(json!({"spec": good}));
    images.patch("bad", &PatchParams::default(), &corrected).await?;
    accepted(&job).await?;
    job.delete(GONE).await
}

/// Requests that the site has refused for their account.
fn refusals(bed: &TestBed) -> Result<usize> {
    let text = bed.oar("vmdeploy", &["cat", "/run/oarbox/api/access.log"])?;
    Ok(text.lines().filter(|line| line.contains("\" 401 ")).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_account_is_said_in_seconds_and_mended_in_its_secret() -> Result<()> {
    let Some(bed) = Turn::with(1).await? else { return Ok(()) };
    let namespace = bed.namespace("account").await?;
    bed.allow(&namespace, "vmdeploy-credentials-reader").await?;
    let secrets: Api<Secret> = Api::namespaced(bed.client.clone(), &namespace);
    let password = |text: &str| json!({"stringData": {"username": "alice", "password": text}});
    let mut secret: Secret = serde_json::from_value(password("wrong"))?;
    secret.metadata.name = Some("oar-alice".into());
    secrets.create(&PostParams::default(), &secret).await?;
    let mut object = Counting { ticks: 10, ..Counting::default() }.object("account")?;
    object.spec.slots.site = "testbed-basic".into();
    object.spec.slots.credentials = Some(SecretReference { name: "oar-alice".into() });
    let before = refusals(&bed)?;
    let job = Job::create(&bed, &namespace, &object).await?;
    job.wait_reason("CredentialsRefused", "401", SECONDS).await?;
    // the API's server writes its log some seconds later
    let first = until("a refused request in the site's log", SECONDS, async || {
        let now = refusals(&bed)?;
        Ok((now > before).then_some(now))
    })
    .await?;
    tokio::time::sleep(SECONDS).await;
    let second = refusals(&bed)?;
    ensure!(second - first <= 10, "{} requests in {} s", second - first, SECONDS.as_secs());
    secrets.patch("oar-alice", &PatchParams::default(), &Patch::Merge(password("alice-secret"))).await?;
    job.wait_phase(JobPhase::Succeeded, BOOT).await?;
    job.delete(GONE).await
}
