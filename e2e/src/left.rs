//! What a job has left behind.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, ResourceExt as _, api::ListParams};
use vmdeploy::{api::LABEL_JOB_UID, names::JobUid};

use crate::{
    job::Job,
    site,
    testbed::{OAR_NODES, SERVICE_NODE, SYSTEM, TestBed, node, read},
};

/// Where the nodes hear each other's segments, as the chart has it.
const OVERLAY_PORT: u16 = 14789;

/// Everything of a job: OAR jobs, pods and their Secrets, and on each node processes, files and segments of its
/// networks. The repository keeps a record of which incarnations it may never take again, but no content.
pub async fn left(bed: &TestBed, job: &Job) -> Result<Vec<String>> {
    let uid = job.uid.as_str();
    let mut left: Vec<String> =
        site::unfinished(uid).await?.into_iter().map(|name| format!("OAR job {name}")).collect();
    let ours = ListParams::default().labels(&format!("{LABEL_JOB_UID}={uid}"));
    let pods: Api<Pod> = Api::namespaced(bed.client.clone(), SYSTEM);
    left.extend(read(|| pods.list(&ours)).await?.iter().map(|pod| format!("pod {}", pod.name_any())));
    let secrets: Api<Secret> = Api::namespaced(bed.client.clone(), SYSTEM);
    left.extend(read(|| secrets.list(&ours)).await?.iter().map(|secret| format!("Secret {}", secret.name_any())));
    let short = JobUid(uid.into()).short();
    // what a node keeps of captures is sealed, and stays where a job was before for a day
    // the brackets keep the shell that looks from finding itself
    let (first, rest) = short.split_at_checked(1).context("an empty uid")?;
    let look = format!(
        "for f in $(grep -ls '[{first}]{rest}' /proc/[0-9]*/cmdline); do echo process $(tr '\\0' ' ' < $f); done; \
         find /var/lib/vmdeploy /run /dev/shm -xdev -name '*[{first}]{rest}*' ! -path '*/repository/jobs/*' \
              ! -path '/var/lib/vmdeploy/captures/*' 2> /dev/null; \
         find /var/lib/vmdeploy/repository -path '*[{first}]{rest}*' -type f ! -name record.json 2> /dev/null; \
         {} true",
        job.vnis().into_iter().map(segment).collect::<String>()
    );
    // the repository may leave something as well
    for number in OAR_NODES.into_iter().chain([SERVICE_NODE]) {
        let text = bed.run(&["node", number, "sh", "-c", &look])?;
        let name = node(number);
        left.extend(text.lines().map(|line| format!("{name}: {}", line.chars().take(160).collect::<String>())));
    }
    Ok(left)
}

/// Shell that says whether a segment with this number is on a node. It is in a namespace without a name, but the kernel
/// refuses another one with its number and port.
fn segment(vni: u32) -> String {
    format!(
        "if ip link add probe{vni} type vxlan id {vni} dstport {OVERLAY_PORT} 2> /dev/null; \
         then ip link del probe{vni}; else echo segment {vni}; fi; "
    )
}
