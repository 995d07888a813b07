//! The nodes of the test bed as machines that are deployed.

use std::{env, time::Duration};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    Turn,
    job::Counting,
    testbed::{SERVICE_NODE, node, read, until},
};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, ResourceExt as _, api::ListParams};
use reqwest::Method;
use serde_json::{Value, json};
use vmdeploy::api::{BestEffortJob, hypervisor::HypervisorSpec};

/// Longest time until a job computes on bare nodes.
pub(crate) const DEPLOYED: Duration = Duration::from_secs(300);
/// What the nodes and the deployment server share.
const SHARE: &str = "/run/oarbox/share/kadeploy";

/// The test bed, alone; nothing where its nodes cannot be deployed.
pub(crate) async fn bare_nodes() -> Result<Option<Turn>> {
    if env::var_os("VMDEPLOY_KADEPLOY_URL").is_none() {
        eprintln!("skipped: no nodes that can be deployed; testbed kadeploy-start says where they are");
        return Ok(None);
    }
    let Some(bed) = Turn::alone().await? else { return Ok(None) };
    faults(&bed, &json!({}))?;
    rights_late(&bed, 0)?;
    // what was deployed outside of OAR's jobs nobody else takes away
    bed.run(&["kadeploy-free"])?;
    for node in joined(&bed).await? {
        bed.run(&["kubectl", "delete", "node", &node])?;
    }
    bare(&bed).await?;
    Ok(Some(bed))
}

/// A counting job whose nodes are deployed.
pub(crate) fn job(counting: &Counting, deploy: &str) -> Result<BestEffortJob> {
    let mut job = counting.object("count")?;
    let hypervisor = json!({"deploy": deploy, "environment": {"name": "hypervisor", "user": "root"}});
    job.spec.hypervisor = Some(serde_json::from_value::<HypervisorSpec>(hypervisor)?);
    Ok(job)
}

/// Nodes that OAR lends and that are in the cluster.
pub(crate) async fn joined(bed: &Turn) -> Result<Vec<String>> {
    let nodes: Api<Node> = Api::all(bed.client.clone());
    let whichever = ListParams::default();
    let all = read(|| nodes.list(&whichever)).await?;
    let service = node(SERVICE_NODE);
    Ok(all.iter().map(Node::name_any).filter(|name| *name != service).collect())
}

/// Waits until all of OAR's nodes are bare again: none in the cluster, all Alive.
pub(crate) async fn bare(bed: &Turn) -> Result<()> {
    until("all nodes to be bare again", Duration::from_secs(90), async || {
        let absent = bed.run(&["sql", "SELECT count(*) FROM resources WHERE state <> 'Alive'"])?;
        Ok((joined(bed).await?.is_empty() && absent.trim() == "0").then_some(()))
    })
    .await
}

/// What goes wrong at the deployment server from now on.
pub(crate) fn faults(bed: &Turn, plan: &Value) -> Result<()> {
    write(bed, "faults", &plan.to_string())
}

/// Rights come so many seconds after slots from now on.
pub(crate) fn rights_late(bed: &Turn, seconds: u32) -> Result<()> {
    if seconds > 0 {
        return write(bed, "late", &seconds.to_string());
    }
    bed.run(&["node", SERVICE_NODE, "rm", "-f", &format!("{SHARE}/late")]).map(drop)
}

fn write(bed: &Turn, file: &str, text: &str) -> Result<()> {
    bed.run(&["node", SERVICE_NODE, "sh", "-c", &format!("echo '{text}' > {SHARE}/{file}")]).map(drop)
}

/// What the deployment server answers this user.
pub(crate) async fn asked(method: Method, path: &str, user: &str, body: Option<&Value>) -> Result<Value> {
    let url = env::var("VMDEPLOY_KADEPLOY_URL")?;
    let mut request = reqwest::Client::new().request(method, format!("{url}/{path}")).header("X-Kadeploy-User", user);
    if let Some(body) = body {
        request = request.header("Content-Type", "application/json").body(body.to_string());
    }
    let reply = request.send().await?;
    let (status, text) = (reply.status(), reply.text().await?);
    ensure!(status.is_success(), "{path}: {status}: {text}");
    Ok(serde_json::from_str(&text)?)
}

/// Deployments that are still known to the server; each is to be forgotten once it is over.
pub(crate) async fn workflows(user: &str) -> Result<usize> {
    Ok(asked(Method::GET, "deployment", user, None).await?.as_array().context("no list")?.len())
}

/// Waits until the server knows of no workflow of ours: nobody waits for it to forget those that are over.
pub(crate) async fn forgotten() -> Result<()> {
    until("no workflow at the server", Duration::from_secs(60), async || {
        Ok((workflows("vmdeploy").await? == 0).then_some(()))
    })
    .await
}
