//! `vmdeploy explain`: says in plain words why a job is where it is. Reads, and changes nothing.

mod render;

use k8s_openapi::api::events::v1::Event;
use kube::{Api, ResourceExt as _, api::ListParams};

use super::member::{cluster, job, of_objects};
use crate::api::{BestEffortJob, Snapshot};

/// Arguments of `vmdeploy explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job.
    #[arg(value_parser = job)]
    job: String,
    /// Namespace; that of the kubeconfig if absent.
    #[arg(short, long)]
    namespace: Option<String>,
}

/// Prints the explanation.
#[expect(clippy::print_stdout, reason = "a command for people")]
pub async fn run(args: Args) -> anyhow::Result<()> {
    let (client, namespace) = cluster(args.namespace.as_deref()).await?;
    let job = Api::<BestEffortJob>::namespaced(client.clone(), &namespace).get(&args.job).await.map_err(of_objects)?;
    let snapshots = Api::<Snapshot>::namespaced(client.clone(), &namespace)
        .list(&ListParams::default())
        .await
        .map_err(of_objects)?;
    let snapshots: Vec<Snapshot> = snapshots.items.into_iter().filter(|s| s.spec.job == args.job).collect();
    let about = ListParams::default().fields(&format!("regarding.uid={}", job.uid().unwrap_or_default()));
    // somebody who may not read events learns the rest all the same
    let events = Api::<Event>::namespaced(client, &namespace).list(&about).await.map(|list| list.items);
    let text = render::render(&job, &snapshots, &events.unwrap_or_default(), jiff::Timestamp::now());
    print!("{text}");
    Ok(())
}
