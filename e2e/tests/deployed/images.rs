//! An environment that the deployment server has becomes an image by its name, and a job runs from it. A newer one is
//! imported when somebody asks for it, from where the site has the server's own files on the web; no job runs from that
//! one here.

use std::{env, ffi::OsStr, fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    environment::Environment,
    job::{Counting, Job},
    testbed::{TestBed, read, until},
    world::ends_right,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use vmdeploy::api::{ANNOTATION_IMPORT, ConditionType, VmImage, VmImageStatus, conditions::is_true};

use crate::nodes::{asked, bare, bare_nodes, job};

/// It is a system's archive, and is started once.
const IMPORTED: Duration = Duration::from_secs(240);
/// The account that the site's configuration gives to namespaces.
pub(crate) const USER: &str = "vmdeploy";
const NAME: &str = "recorded";

/// Packs the environment as it is now where the test bed's web server has it; the file's name there.
fn pack(environment: &Environment, directory: &Path, version: u32) -> Result<String> {
    let file = format!("{version}.tar.gz");
    let archive = environment.pack(&file, "gzip -1")?;
    fs::copy(&archive, directory.join(&file))?;
    fs::remove_file(archive)?;
    Ok(file)
}

/// A directory of this name among the deployment server's own files, and its address there. The site's configuration
/// says that the directory of this name on the test bed's web server is the same.
fn among_its_own(name: &OsStr) -> Result<(String, TempDir)> {
    let files = env::var("KADEPLOY_FILES").context("KADEPLOY_FILES is not set: use testbed env")?;
    let (here, there) = files.split_once('=').context("here=there")?;
    let directory = tempfile::Builder::new().prefix(name).rand_bytes(0).tempdir_in(here)?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    Ok((format!("server://{there}/{}", name.display()), directory))
}

/// Records an environment with the archive at this address.
pub(crate) async fn describe(name: &str, version: u32, file: &str) -> Result<()> {
    let description = json!({"environment": {
        "name": name, "version": version, "description": "a small system", "author": "somebody@example.org",
        "visibility": "private", "os": "linux", "image": {"file": file, "kind": "tar", "compression": "gzip"},
        "boot": {"kernel": "/vmlinuz", "initrd": "/initrd.img"}, "filesystem": "ext4", "partition_type": 131,
    }});
    asked(Method::POST, "environments", USER, Some(&description)).await.map(drop)
}

/// Removes what earlier runs recorded.
pub(crate) async fn forget(name: &str) -> Result<()> {
    let known = asked(Method::GET, &format!("environments?username={USER}"), USER, None).await?;
    let known = known.as_array().context("no list")?;
    if known.iter().any(|environment| environment["name"] == name) {
        asked(Method::DELETE, &format!("environments/{USER}/{name}"), USER, None).await?;
    }
    Ok(())
}

/// The version that the server named when it was last asked; while that is imported, the image is still of the one
/// before.
fn version(status: &VmImageStatus) -> Option<u64> {
    status.pinned.as_ref()?.environment.as_ref()?.version
}

/// Waits until the image is of this version. Once it was Ready it stays so.
async fn imported(images: &Api<VmImage>, of: u64, before: Option<&str>) -> Result<String> {
    until(&format!("version {of} to be imported"), IMPORTED, async || {
        let status = read(|| images.get(NAME)).await?.status.unwrap_or_default();
        let ready = is_true(&status.conditions, ConditionType::Ready);
        ensure!(!is_true(&status.conditions, ConditionType::Stalled), "{:?}", status.conditions);
        ensure!(ready || before.is_none(), "what was there is gone: {:?}", status.conditions);
        let digest = status.digest.clone().filter(|digest| ready && Some(digest.as_str()) != before);
        if let Some(log) = status.log.as_ref().filter(|_| digest.is_some()) {
            eprintln!("version {:?}: {log}", version(&status));
        }
        Ok(digest.filter(|_| version(&status) == Some(of)))
    })
    .await
}

fn image() -> Result<VmImage> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "vmdeploy.io/v1alpha1", "kind": "VmImage", "metadata": {"name": NAME},
        "spec": {"format": "tar", "diskSize": "4Gi", "source": {"environment": {"site": "testbed", "name": NAME}}},
    }))?)
}

async fn runs(bed: &TestBed, namespace: &str) -> Result<()> {
    let counting = Counting { ticks: 10, ..Counting::default() };
    let mut object = job(&counting, "IfMissing")?;
    object.spec.image.as_mut().context("no image")?.name = NAME.into();
    let job = Job::create(bed, namespace, &object).await?;
    ends_right(bed, &job, &counting).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_of_the_server_is_an_image_by_its_name_and_a_newer_one_when_it_is_asked_for() -> Result<()> {
    let Some(bed) = bare_nodes().await? else { return Ok(()) };
    let namespace = bed.namespace("recorded").await?;
    let (url, directory) = bed.serve()?;
    let environment = Environment::new()?;
    forget(NAME).await?;
    let file = pack(&environment, directory.path(), 1)?;
    describe(NAME, 1, &format!("{url}/{file}")).await?;
    let images: Api<VmImage> = Api::namespaced(bed.client.clone(), &namespace);
    images.create(&PostParams::default(), &image()?).await?;
    let first = imported(&images, 1, None).await?;

    // nobody asked for it; its file is the server's own
    environment.run("echo two > root/etc/edition", &[])?;
    let file = pack(&environment, directory.path(), 2)?;
    let (address, own) = among_its_own(directory.path().file_name().context("no name")?)?;
    fs::copy(directory.path().join(&file), own.path().join(&file))?;
    describe(NAME, 2, &format!("{address}/{file}")).await?;
    runs(&bed, &namespace).await?;
    let status = images.get(NAME).await?.status.context("no status")?;
    ensure!(status.digest.as_ref() == Some(&first) && version(&status) == Some(1), "{status:?}");

    let asked_for: Value = json!({"metadata": {"annotations": {ANNOTATION_IMPORT: "the second edition"}}});
    images.patch(NAME, &PatchParams::default(), &Patch::Merge(&asked_for)).await?;
    imported(&images, 2, Some(&first)).await?;
    let status = images.get(NAME).await?.status.context("no status")?;
    let pinned = status.pinned.and_then(|pinned| pinned.environment).context("nothing is recorded")?;
    for words in [format!("{address}/{file}"), format!("{url}/{file}"), "sites.testbed.kadeploy.files".into()] {
        ensure!(pinned.description.contains(&words), "{words} is not in {}", pinned.description);
    }
    forget(NAME).await?;
    bare(&bed).await
}
