//! The API of a job's guests, `subresources.vmdeploy.io`: what they have printed and kept, connections
//! to their ports and commands in them. It is served by the operator behind the cluster's own API
//! server (aggregation), so that its RBAC on the job's subresources decides who may.
//!
//! Only the API server's front proxy is let in, known by its certificate. No object is changed here.

pub mod api;
mod guest;
pub mod paths;
mod proxy;
pub mod source;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::{api::core::v1::ConfigMap, kube_aggregator::pkg::apis::apiregistration::v1::APIService};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use rustls_pki_types::CertificateDer;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::{proxy::FrontProxy, source::Source};
use crate::{
    driver::cluster::kube::FIELD_MANAGER,
    tls::{self, Authority, Credentials},
};

/// The Service that the APIService of the chart names.
const SERVICE: &str = "vmdeploy-subresources";
/// Lifetime of the server's certificate: longer than the process lives.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// Serves until `stop` is cancelled. The operator's namespace is part of the name the API server
/// expects.
pub async fn serve(
    address: SocketAddr,
    client: Client,
    namespace: &str,
    authority: &Authority,
    source: Arc<Source>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let config: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let config = config.get(proxy::CONFIG_MAP).await.context("failed to read who the API server's proxy is")?;
    let proxy = FrontProxy::read(&config).map_err(anyhow::Error::msg)?;
    let name = format!("{SERVICE}.{namespace}.svc");
    let own = authority.issue_name(&name, jiff::Timestamp::now(), LIFETIME)?;
    register(client, authority).await?;
    let own = Credentials { ca: proxy.authority.clone(), ..own };
    let listener =
        tokio::net::TcpListener::bind(address).await.with_context(|| format!("failed to serve {address}"))?;
    let admits = move |certificate: &CertificateDer<'_>| proxy.admits(certificate).then_some(());
    tls::serve_whom(listener, &own, api::router(source), stop, admits).await?;
    Ok(())
}

/// Tells the API server by which authority the operator's certificate is signed.
async fn register(client: Client, authority: &Authority) -> anyhow::Result<()> {
    let services: Api<APIService> = Api::all(client);
    let patch = json!({"spec": {"caBundle": STANDARD.encode(&authority.certificate)}});
    let how = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
    let name = format!("{}.{}", paths::VERSION, paths::GROUP);
    services.patch(&name, &how, &Patch::Merge(patch)).await.with_context(|| format!("failed to register at {name}"))?;
    Ok(())
}
