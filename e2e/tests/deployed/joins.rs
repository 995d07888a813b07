//! How deployed nodes come into the cluster, and who does not.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use e2e::{
    Turn,
    job::{Counting, Job, nodes},
    testbed::{number, read, until},
    world::LIFE,
};
use jiff::Timestamp;
use k8s_openapi::api::{
    certificates::v1::CertificateSigningRequest,
    core::v1::{Node, Secret},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::json;
use vmdeploy::{
    api::JobPhase,
    driver::cluster::joins::{BootstrapToken, JoinOffer, Joins as _, KubeJoins},
};

use crate::nodes::{DEPLOYED, bare, bare_nodes, job};

/// Where the test bed's environment has its token, and its kubelet its certificate.
const TOKEN: &str = "/etc/vmdeploy/join-token";
const CERTIFICATE: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";

/// The tokens of ours that the cluster has.
async fn tokens(bed: &Turn) -> Result<Vec<String>> {
    let secrets: Api<Secret> = Api::namespaced(bed.client.clone(), "kube-system");
    let ours = ListParams::default().labels("app.kubernetes.io/managed-by=vmdeploy");
    Ok(read(|| secrets.list(&ours)).await?.items.into_iter().filter_map(|secret| secret.metadata.name).collect())
}

/// A client that has nothing but a token.
async fn bearing(token: &str) -> Result<Client> {
    let mut config = Kubeconfig::read()?;
    for user in &mut config.auth_infos {
        user.auth_info = Some(AuthInfo { token: Some(token.to_owned().into()), ..AuthInfo::default() });
    }
    let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_with_a_token_of_its_own_and_a_certificate_that_ends_with_its_slot() -> Result<()> {
    let Some(bed) = bare_nodes().await? else { return Ok(()) };
    let counting = Counting { members: 1, ticks: 100, ..Counting::default() };
    let namespace = bed.namespace("joins").await?;
    let job = Job::create(&bed, &namespace, &job(&counting, "IfMissing")?).await?;
    job.wait_tick(1, 1, DEPLOYED).await?;
    let since = job.get().await?.metadata.creation_timestamp.context("it was never made")?;
    let object = job.get().await?;
    let node = nodes(&object).into_iter().next().context("no node")?;
    let number = number(&node)?;

    // nobody else's pods come there
    let nodes: Api<Node> = Api::all(bed.client.clone());
    let taints = nodes.get(&node).await?.spec.and_then(|spec| spec.taints).unwrap_or_default();
    ensure!(taints.iter().any(|taint| taint.key == "vmdeploy.io/lent" && taint.effect == "NoSchedule"), "{taints:?}");

    // the certificate is the node's own, and ends soon after the slot
    let said = bed.run(&[
        "node",
        number,
        "openssl",
        "x509",
        "-noout",
        "-subject",
        "-enddate",
        "-dateopt",
        "iso_8601",
        "-in",
        CERTIFICATE,
    ])?;
    ensure!(said.contains(&format!("system:node:{node}")), "{said}");
    let end = said.lines().find_map(|line| line.strip_prefix("notAfter=")).context("no end")?;
    let end: Timestamp = end.trim().replace(' ', "T").parse().with_context(|| said.clone())?;
    let slot = object.status.iter().flat_map(|status| &status.slots).next().context("no slot")?;
    let slot_end = slot.until.as_ref().context("its slot has no end")?.0;
    // what passed from the offer of its token to its certificate
    ensure!(end <= slot_end + Duration::from_secs(180), "its certificate ends at {end}, its slot at {slot_end}");
    let requests: Api<CertificateSigningRequest> = Api::all(bed.client.clone());
    // others of the node are of earlier slots
    let new = requests.list(&ListParams::default()).await?.items.into_iter();
    let new = new.filter(|one| one.metadata.creation_timestamp.as_ref() >= Some(&since));
    let approved = new.filter_map(|one| one.status?.conditions);
    ensure!(
        approved.flatten().any(|one| one.type_ == "Approved" && one.message.is_some_and(|why| why.contains(&node)))
    );

    // its token is there for whoever has the node next, and worth nothing
    let token = bed.run(&["node", number, "cat", TOKEN])?;
    until("its token to be taken back", Duration::from_secs(60), async || {
        Ok(tokens(&bed).await?.is_empty().then_some(()))
    })
    .await?;
    let of_node: Api<CertificateSigningRequest> = Api::all(bearing(token.trim()).await?);
    let refused = of_node.list(&ListParams::default()).await;
    ensure!(matches!(&refused, Err(kube::Error::Api(status)) if status.code == 401), "{refused:?}");

    job.wait_phase(JobPhase::Succeeded, LIFE).await?;
    job.delete(LIFE).await?;
    bare(&bed).await
}

/// A token that somebody has found while it was worth something.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_with_a_token_of_no_node_is_denied() -> Result<()> {
    let Some(bed) = bare_nodes().await? else { return Ok(()) };
    // no two runs have the same
    let number = Timestamp::now().as_second() & 0xff_ffff;
    let token = BootstrapToken { id: format!("{number:06x}"), secret: "0123456789abcdef".into() };
    let offer = JoinOffer {
        token: token.clone(),
        description: "of no node".into(),
        expires: Timestamp::now() + Duration::from_secs(300),
        certificate: Some(Duration::from_secs(1200)),
    };
    let tokens = KubeJoins(bed.client.clone());
    tokens.offer(&offer).await?;
    let thief = bearing(&token.text()).await?;
    let said = request(thief.clone(), "system:node:node-1").await?;
    ensure!(said.spec.expiration_seconds == Some(1200), "it was not shortened: {:?}", said.spec.expiration_seconds);
    let name = said.metadata.name.context("no name")?;
    let requests: Api<CertificateSigningRequest> = Api::all(bed.client.clone());
    let why = until("an answer", Duration::from_secs(180), async || {
        let conditions =
            read(|| requests.get(&name)).await?.status.and_then(|status| status.conditions).unwrap_or_default();
        ensure!(conditions.iter().all(|one| one.type_ != "Approved"), "{conditions:?}");
        Ok(conditions.into_iter().find(|one| one.type_ == "Denied").and_then(|one| one.message))
    })
    .await?;
    ensure!(why.contains("no node that is deployed has this token"), "{why}");
    // nor does it open anything else
    let nodes: Api<Node> = Api::all(thief);
    let refused = nodes.list(&ListParams::default()).await;
    ensure!(matches!(&refused, Err(kube::Error::Api(status)) if status.code == 403), "{refused:?}");
    requests.delete(&name, &DeleteParams::default()).await?;
    tokens.withdraw(&token.id).await?;
    Ok(())
}

/// Asks for a kubelet's certificate, as kubelets do.
async fn request(client: Client, name: &str) -> Result<CertificateSigningRequest> {
    let mut params = CertificateParams::new([])?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, name);
    let pem = params.serialize_request(&KeyPair::generate()?)?.pem()?;
    let request = serde_json::from_value(json!({
        "metadata": {"generateName": "vmdeploy-e2e-"},
        "spec": {"signerName": "kubernetes.io/kube-apiserver-client-kubelet", "usages": ["digital signature", "client auth"],
            "request": STANDARD.encode(pem)},
    }))?;
    Ok(Api::all(client).create(&PostParams::default(), &request).await?)
}
