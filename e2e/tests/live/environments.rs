//! Debian as the users of a site have it, packed in three ways and described as they describe it: imported by pods that
//! may do nothing else, started, and a job runs in it, into which its user logs in.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::{
    TestBed, Turn,
    job::{Counting, Job},
    testbed::{read, until},
    world::{LIFE, gone},
};
use kube::{Api, api::PostParams};
use serde_json::json;
use vmdeploy::api::{
    ConditionType, JobPhase, VmImage,
    conditions::{get, is_true},
    job::{AccessSpec, Master, NetworkSpec},
};

use crate::{
    master::{Person, way_in},
    parallel::key_pair,
};

/// Under emulation a whole system takes its time to start.
const IMPORTED: Duration = Duration::from_secs(600);
const DISK: &str = "4Gi";
/// What `kaenv3 -p` prints of it. What is for metal is left out.
const DESCRIPTION: &str = "
name: debian12-big
version: 2026112701
description: Debian 12 with all that a user needs
author: somebody@example.org
visibility: public
destructive: false
os: linux
image: {file: server:///images/debian12.tar, kind: tar, compression: gzip}
postinstalls:
- {archive: server:///postinstalls/site.tgz, compression: gzip, script: site-postinstall --net debian}
boot: {kernel: /vmlinuz, initrd: /initrd.img, kernel_params: console=ttyS1}
filesystem: ext4
partition_type: 131
multipart: false
";
/// Works until its user has seen enough.
const COMMAND: &str = "cloud-init status --wait > /dev/null; cloud-init status > /tmp/cloud-init; until [ -e /tmp/enough ]; do sleep 1; done; cat /tmp/cloud-init";

fn image(bed: &TestBed, kind: &str) -> Result<VmImage> {
    let (url, digest) = bed.environment(&format!("root.tar.{kind}"))?;
    Ok(serde_json::from_value(json!({
        "apiVersion": "vmdeploy.io/v1alpha1", "kind": "VmImage", "metadata": {"name": format!("debian-{kind}")},
        "spec": {"format": "tar", "diskSize": DISK, "source": {"environment": {
            "description": DESCRIPTION, "http": {"url": url, "digest": digest}}}},
    }))?)
}

/// Waits until an image is there, as its status says.
async fn imported(images: &Api<VmImage>, kind: &str) -> Result<()> {
    let name = format!("debian-{kind}");
    let status = until(&format!("{name} to be ready"), IMPORTED, async || {
        let status = read(|| images.get(&name)).await?.status.unwrap_or_default();
        let stalled = get(&status.conditions, ConditionType::Stalled).map(|condition| &condition.message);
        ensure!(stalled.is_none(), "{name}: {stalled:?}");
        Ok(is_true(&status.conditions, ConditionType::Ready).then_some(status))
    })
    .await?;
    eprintln!("{name}: {}", status.log.as_deref().unwrap_or_default());
    ensure!(status.os.as_ref().is_some_and(|os| os.starts_with("Debian GNU/Linux 12")), "{:?}", status.os);
    ensure!(serde_json::to_value(status.virtual_size)? == DISK, "{:?}", status.virtual_size);
    ensure!(status.kernel.is_some() && status.initrd.is_some() && status.digest.is_some(), "{status:?}");
    let log = status.log.context("no log")?;
    for words in [
        "its guest agent answers after",
        "ssh host keys",
        "the machine's id",
        "the table of file systems",
        "network: cloud-init",
    ] {
        ensure!(log.contains(words), "{words:?} is not in the log: {log}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_debian_is_imported_and_its_user_logs_in() -> Result<()> {
    let Some(bed) = Turn::with(2).await? else { return Ok(()) };
    let namespace = bed.namespace("debian").await?;
    let images: Api<VmImage> = Api::namespaced(bed.client.clone(), &namespace);
    // each is started once: no more than two systems at a time
    for kinds in [&["zst", "gz"][..], &["xz"]] {
        for kind in kinds {
            images.create(&PostParams::default(), &image(&bed, kind)?).await?;
        }
        for kind in kinds {
            imported(&images, kind).await?;
        }
    }

    let (public, private) = key_pair()?;
    let person = Person::new("debian", &private)?;
    let mut object = Counting { period: 3600, ..Counting::default() }.object("count")?;
    object.spec.image.as_mut().context("no image")?.name = "debian-zst".into();
    object.spec.vm = serde_json::from_value(json!({"cpus": 1, "memory": "512Mi"}))?;
    object.spec.run.command = ["sh", "-c", COMMAND].map(str::to_owned).into();
    object.spec.outputs.clear();
    object.spec.network = Some(NetworkSpec { master: Master::Shared, ..NetworkSpec::default() });
    object.spec.access = Some(AccessSpec { ssh_keys: vec![public] });
    let job = Job::create(&bed, &namespace, &object).await?;
    let way = way_in(&job).await?;
    let asks = "cloud-init status --wait > /dev/null; cloud-init status; hostname; id -un; findmnt -no LABEL /; ls /etc/ssh/ssh_host_ed25519_key; cat /etc/machine-id";
    let said = until("its user to be let in", IMPORTED, async || {
        job.get().await?;
        let answer = person.on_member(&way, "count-0", asks)?;
        Ok(answer.status.success().then(|| String::from_utf8_lossy(&answer.stdout).into_owned()))
    })
    .await?;
    eprintln!("{said}");
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let [status, hostname, user, label, key, machine] = lines[..] else { anyhow::bail!("{said:?}") };
    ensure!(status == "status: done", "cloud-init: {status}");
    ensure!((hostname, user, label) == ("count-0", "root", "root"), "{said:?}");
    ensure!(key == "/etc/ssh/ssh_host_ed25519_key", "{key}");
    ensure!(machine.len() == 32 && !machine.starts_with("0123456789"), "it has another machine's id: {machine}");
    let done = person.on_member(&way, "count-0", "touch /tmp/enough")?;
    ensure!(done.status.success(), "{done:?}");
    job.wait_phase(JobPhase::Succeeded, LIFE).await?;
    ensure!(job.logs(0).await?.contains("status: done"), "{}", job.logs(0).await?);
    gone(&bed, &job).await
}
