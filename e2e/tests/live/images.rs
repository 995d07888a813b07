//! Images that do not come from the web.

use anyhow::{Context as _, Result, ensure};
use e2e::{
    Turn,
    job::{Counting, Job},
    testbed::{OAR_NODES, SERVICE_NODE, SYSTEM, TestBed},
    watched::watched,
    world::{LIFE, ends_right},
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::json;
use vmdeploy::api::{
    BestEffortJob, ConditionType, VmImage, conditions,
    image::{ClaimSource, ImageSource},
    job::Distribution,
    quantity::Bytes,
};

/// Where the guest's files are put on the service node.
const DIRECTORY: &str = "/var/lib/vmdeploy/claim";

/// Makes it an image that no node has seen; the kernel does not mind.
const UNSEEN: &str = "head -c $(($(date +%s) % 100000 * 4 + 4)) /dev/zero >> initrd";
/// The same of the disk, which is so large by this that a job says how much of it is on its nodes.
const LARGE: &str = "truncate -s $(((256 << 20) + $(date +%s) % 10000 * 512)) disk.qcow2";
/// What the link of a node carries meanwhile: it takes more than ten seconds, of which agents speak each. An operator
/// that does nothing for five of them sees two of its quarters all the same.
const LINK: &str = "200mbit";
/// What a job says of it.
const SHARES: [&str; 3] = ["a quarter", "half", "three quarters"];
/// What all nodes of the test bed see, as they would a file server.
const SHARE: &str = "/run/oarbox/share/images";

/// Makes a volume out of a directory of nodes, and a claim "images" of a namespace that has it.
async fn volume(bed: &TestBed, namespace: &str, name: &str, directory: &str, mode: &str) -> Result<()> {
    let size = json!({"storage": "1Gi"});
    let volume: PersistentVolume = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"capacity": size, "accessModes": [mode], "hostPath": {"path": directory},
            "storageClassName": "", "claimRef": {"namespace": namespace, "name": "images"}},
    }))?;
    let volumes: Api<PersistentVolume> = Api::all(bed.client.clone());
    volumes.create(&PostParams::default(), &volume).await?;
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {"name": "images"},
        "spec": {"accessModes": [mode], "resources": {"requests": size}, "storageClassName": "", "volumeName": name},
    }))?;
    Api::namespaced(bed.client.clone(), namespace).create(&PostParams::default(), &claim).await?;
    Ok(())
}

/// Puts the test bed's guest on a claim of a namespace, after a change of it, as the image "claimed".
async fn claimed(bed: &TestBed, namespace: &str, change: &str) -> Result<()> {
    bed.allow(namespace, "vmdeploy-claim-importer").await?;
    let directory = format!("{DIRECTORY}/{namespace}");
    let guest = bed.guest_image().display();
    let copy = format!(
        "mkdir -p {directory} && cp -L {guest}/disk.qcow2 {guest}/vmlinuz {guest}/initrd {directory}/ && cd {directory} && \
         {change} && chmod -R a+rX {directory}"
    );
    bed.run(&["node", SERVICE_NODE, "sh", "-c", &copy])?;
    volume(bed, namespace, namespace, &directory, "ReadOnlyMany").await?;

    let images: Api<VmImage> = Api::namespaced(bed.client.clone(), namespace);
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
    Ok(())
}

/// The nodes while their links carry little; as before when this is dropped.
struct Slow<'a>(&'a TestBed);

impl<'a> Slow<'a> {
    fn links(bed: &'a TestBed) -> Result<Self> {
        let slow = Self(bed);
        for number in OAR_NODES {
            bed.run(&["slow", number, LINK])?;
        }
        Ok(slow)
    }
}

impl Drop for Slow<'_> {
    fn drop(&mut self) {
        for number in OAR_NODES {
            let fast = self.0.run(&["fast", number]);
            fast.map_or_else(|error| eprintln!("node {number} stays slow: {error}"), drop);
        }
    }
}

/// Removes the volume of a claim.
async fn unclaimed(bed: &TestBed, namespace: &str) -> Result<()> {
    let volumes: Api<PersistentVolume> = Api::all(bed.client.clone());
    volumes.delete(namespace, &DeleteParams::default()).await?;
    Ok(())
}

/// A job from the image "claimed".
async fn starts(
    bed: &TestBed,
    namespace: &str,
    name: &str,
    counting: &Counting,
    distribution: Distribution,
) -> Result<Job> {
    let mut object = counting.object(name)?;
    object.spec.image.as_mut().context("no image")?.name = "claimed".into();
    object.spec.distribution = distribution;
    Job::create(bed, namespace, &object).await
}

async fn runs(
    bed: &TestBed,
    namespace: &str,
    name: &str,
    counting: &Counting,
    distribution: Distribution,
) -> Result<Job> {
    let job = starts(bed, namespace, name, counting, distribution).await?;
    ends_right(bed, &job, counting).await?;
    Ok(job)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_from_an_image_on_a_claim() -> Result<()> {
    let Some(bed) = Turn::with(2).await? else { return Ok(()) };
    let namespace = bed.namespace("claim").await?;
    claimed(&bed, &namespace, LARGE).await?;
    let slow = Slow::links(&bed)?;
    let running = |job: BestEffortJob| {
        let status = job.status?;
        let running = conditions::get(&status.conditions, ConditionType::Running)?;
        Some((running.status.clone(), running.message.clone()))
    };
    let is_true = |(truth, _): &(String, String)| truth == "True";
    let jobs: Api<BestEffortJob> = Api::namespaced(bed.client.clone(), &namespace);
    let said = watched(jobs, running, is_true).await?;
    let counting = Counting { members: 2, ticks: 10, ..Counting::default() };
    let job = starts(&bed, &namespace, "count", &counting, Distribution::Broadcast).await?;
    job.wait_tick(1, 2, LIFE).await?;
    // others are on these nodes as well
    drop(slow);
    ends_right(&bed, &job, &counting).await?;

    let images: Api<VmImage> = Api::namespaced(bed.client.clone(), &namespace);
    let size = images.get("claimed").await?.status.and_then(|status| status.size).context("no size")?;
    let shares = SHARES.map(|share| format!("at least {share} of {} is on all nodes", Bytes::mebibytes(size.0 >> 20)));
    let said: Vec<String> = said.await??.into_iter().map(|(_, (_, message))| message).collect();
    let places = said.iter().filter(|message| message.contains(" is on all nodes"));
    let places: Option<Vec<usize>> = places.map(|message| shares.iter().position(|share| share == message)).collect();
    // while an agent cannot be asked nothing is said, and then the same again
    let rises = |mut places: Vec<usize>| {
        places.dedup();
        places.len() >= 2 && places.is_sorted_by(|one, next| one < next)
    };
    ensure!(places.is_some_and(rises), "of {shares:?} was said: {said:?}");
    unclaimed(&bed, &namespace).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_hold_puts_its_image_by_taktuk() -> Result<()> {
    let Some(bed) = Turn::with(3).await? else { return Ok(()) };
    let namespace = bed.namespace("taktuk").await?;
    claimed(&bed, &namespace, UNSEEN).await?;
    let counting = Counting { members: 3, ticks: 10, ..Counting::default() };
    let job = runs(&bed, &namespace, "count", &counting, Distribution::TakTuk).await?;
    let said = job.output.tail(usize::MAX);
    let is_put = |line: &&str| line.contains("by_taktuk=") && !line.contains("by_taktuk=0");
    ensure!(said.lines().filter(is_put).count() >= 2, "the initrd did not come by TakTuk: {said}");
    unclaimed(&bed, &namespace).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "e2e/test --each"]
async fn nodes_take_an_image_from_a_claim_that_all_of_them_mount() -> Result<()> {
    let Some(bed) = Turn::alone().await? else { return Ok(()) };
    let namespace = bed.namespace("shared").await?;
    claimed(&bed, &namespace, UNSEEN).await?;
    bed.run(&["node", SERVICE_NODE, "mkdir", "-p", SHARE])?;
    volume(&bed, SYSTEM, "vmdeploy-shared", SHARE, "ReadWriteMany").await?;
    bed.run(&["install", "--set", "agents.sharedImages.claim=images"])?;

    // it has the image from the repository, and puts it there
    let first = Counting { ticks: 10, ..Counting::default() };
    runs(&bed, &namespace, "first", &first, Distribution::Shared).await?;
    let there = bed.run(&["node", SERVICE_NODE, "sh", "-c", &format!("find {SHARE} -type f | wc -l")])?;
    ensure!(there.trim().parse::<u32>()? >= 2, "{there} files are on the claim");
    // two of these have never seen it
    let second = Counting { members: 3, ticks: 10, ..Counting::default() };
    let job = runs(&bed, &namespace, "second", &second, Distribution::Shared).await?;
    let said = job.output.tail(usize::MAX);
    let is_shared = |line: &&str| line.contains("from_shared=") && !line.contains("from_shared=0");
    ensure!(said.lines().filter(is_shared).count() >= 2, "nothing came from the claim: {said}");
    let is_fetched = |line: &&str| line.contains(" repository=") && !line.contains(" repository=0");
    ensure!(said.lines().filter(is_fetched).count() == 0, "it came from the repository as well: {said}");

    bed.run(&["install"])?;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(bed.client.clone(), SYSTEM);
    claims.delete("images", &DeleteParams::default()).await?;
    unclaimed(&bed, "vmdeploy-shared").await?;
    bed.run(&["node", SERVICE_NODE, "rm", "-rf", SHARE])?;
    unclaimed(&bed, &namespace).await
}
