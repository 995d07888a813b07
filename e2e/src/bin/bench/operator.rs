//! An operator as a process of this machine, with 1,000 suspended jobs on a real API server: its
//! memory, and the requests of a pass that finds nothing to do.

use std::{env, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use e2e::testbed::until;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::{
    api::core::v1::Namespace, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use vmdeploy::{
    api::{BestEffortJob, crds},
    yaml,
};

use crate::report::Figure;

/// Jobs that exist.
const JOBS: u32 = 1000;
/// Jobs that are touched to cause passes.
const TOUCHED: u32 = 100;
/// Time in which requests are counted.
const WINDOW: Duration = Duration::from_secs(20);
/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(300);

/// Measures; what it made is removed afterwards.
pub(crate) async fn measure() -> Result<Vec<Figure>> {
    let client = Client::try_default().await.context("no API server in KUBECONFIG")?;
    let namespace = format!("bench-operator-{}", std::process::id());
    let object: Namespace = serde_json::from_value(json!({"metadata": {"name": namespace}}))?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.create(&PostParams::default(), &object).await?;
    let result = in_namespace(client.clone(), &namespace).await;
    let jobs: Api<BestEffortJob> = Api::namespaced(client, &namespace);
    let free = json!({"metadata": {"finalizers": null}});
    for job in jobs.list_metadata(&ListParams::default()).await?.items {
        let name = job.metadata.name.unwrap_or_default();
        jobs.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&free)).await?;
    }
    namespaces.delete(&namespace, &DeleteParams::default()).await?;
    result
}

async fn in_namespace(client: Client, namespace: &str) -> Result<Vec<Figure>> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in crds::all() {
        let name = crd["metadata"]["name"].as_str().context("a definition without name")?;
        definitions.patch(name, &PatchParams::apply("bench").force(), &Patch::Apply(&crd)).await?;
        let served = kube::runtime::conditions::is_crd_established();
        tokio::time::timeout(LIMIT, kube::runtime::wait::await_condition(definitions.clone(), name, served)).await??;
    }
    let jobs: Api<BestEffortJob> = Api::namespaced(client, namespace);
    let job: BestEffortJob = serde_json::from_value(json!({
        "apiVersion": "vmdeploy.io/v1alpha1", "kind": "BestEffortJob", "metadata": {"name": "idle"},
        "spec": {"suspend": true, "image": {"name": "none"}, "run": {"command": ["true"]},
            "slots": {"site": "none", "walltime": "1h"}}
    }))?;
    stream::iter((0..JOBS).map(Ok::<_, kube::Error>))
        .try_for_each_concurrent(16, |number| {
            let (jobs, mut job) = (&jobs, job.clone());
            job.metadata.name = Some(format!("idle-{number}"));
            async move { jobs.create(&PostParams::default(), &job).await.map(drop) }
        })
        .await?;

    let operator = Operator::start(namespace).await?;
    until("every job seen by the operator", LIMIT, || async {
        let all = jobs.list(&ListParams::default()).await?;
        let seen = |job: &&BestEffortJob| job.status.as_ref().is_some_and(|status| status.observed_generation > 0);
        Ok((all.items.iter().filter(seen).count() == JOBS as usize).then_some(()))
    })
    .await?;
    // what the first passes caused comes to rest
    tokio::time::sleep(WINDOW).await;

    let before = operator.figures().await?;
    tokio::time::sleep(WINDOW).await;
    let quiet = operator.figures().await?;
    stream::iter(0..TOUCHED)
        .for_each_concurrent(16, |number| {
            let (jobs, patch) = (&jobs, json!({"metadata": {"annotations": {"touched": "yes"}}}));
            async move {
                let name = format!("idle-{number}");
                let touched = jobs.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
                if let Err(error) = touched {
                    eprintln!("{name}: {error}");
                }
            }
        })
        .await;
    tokio::time::sleep(WINDOW).await;
    let after = operator.figures().await?;

    let passes = after.passes - quiet.passes;
    anyhow::ensure!(passes >= f64::from(TOUCHED), "only {passes} passes for {TOUCHED} changes");
    // leadership and the like go on all the time
    let more = (after.requests - quiet.requests) - (quiet.requests - before.requests);
    Ok(vec![
        Figure {
            metric: "operator_rss_mib_1000",
            value: operator.resident_mib()?,
            unit: "MiB",
            goal: Some(40.0),
            n: 1,
            note: None,
            at_least: false,
        },
        // one request in a hundred passes is the jitter of the leadership's period
        Figure {
            metric: "noop_requests",
            value: (more / f64::from(TOUCHED)).round().max(0.0),
            unit: "requests",
            goal: Some(0.0),
            n: TOUCHED,
            note: None,
            at_least: false,
        },
    ])
}

/// The operator under measurement; ends with this value.
struct Operator {
    child: Child,
    health: SocketAddr,
}

/// Sums of its figures.
struct Figures {
    requests: f64,
    passes: f64,
}

impl Operator {
    async fn start(namespace: &str) -> Result<Self> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
        let program = env::var_os("VMDEPLOY_BIN").map_or_else(|| root.join("target/release/vmdeploy"), PathBuf::from);
        let health = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config: Value = json!({
            "sites": {}, "namespace": namespace, "repository": "127.0.0.1:9",
            "agents": {"image": "none"},
        });
        let path = env::temp_dir().join(format!("{namespace}.yaml"));
        std::fs::write(&path, yaml::write(&config)?)?;
        let child = Command::new(&program)
            .arg("operator")
            .arg("--config")
            .arg(&path)
            .arg("--health")
            .arg(health.to_string())
            .env("RUST_LOG", "warn")
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("failed to start {}", program.display()))?;
        let operator = Self { child, health };
        until("the operator is ready", LIMIT, || async {
            let reply = reqwest::get(format!("http://{health}/readyz")).await;
            Ok(reply.is_ok_and(|reply| reply.status().is_success()).then_some(()))
        })
        .await?;
        std::fs::remove_file(&path)?;
        Ok(operator)
    }

    async fn figures(&self) -> Result<Figures> {
        let text = reqwest::get(format!("http://{}/metrics", self.health)).await?.text().await?;
        let sum = |name: &str, with: &str| {
            let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(with));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        Ok(Figures {
            requests: sum("vmdeploy_api_calls_total", ""),
            passes: sum("vmdeploy_reconcile_seconds_count", "BestEffortJob"),
        })
    }

    fn resident_mib(&self) -> Result<f64> {
        let pid = self.child.id().context("the operator has ended")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }
}
