//! Requests as kubelets make them, and as somebody would who has found a token.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
    apimachinery::pkg::apis::meta::v1::Time,
};
use rcgen::{CertificateParams, DnType, KeyPair};
use rstest::rstest;
use serde_json::json;

use super::{Context, reconcile};
use crate::{
    api::{BestEffortJob, job_status::SlotState},
    clock::Clock,
    driver::cluster::{fake::FakeCluster, joins::Answer},
};

const CONFIG: &str = "namespace: vmdeploy-system\nrepository: repository:1\nagents: {image: x}\n\
    sites: {rennes: {kind: oar2, url: 'http://x', uids: {alice: 1}, kadeploy: {url: 'http://k', join: {}}}}\n";
/// Two hours, and ten minutes.
const LIFE: i32 = 7800;

/// A job with one slot, whose node `node-1` is on its way and has the token `abc123`.
fn job() -> BestEffortJob {
    let time = "2026-07-01T10:00:00Z";
    serde_json::from_value(json!({
        "apiVersion": "vmdeploy.io/v1alpha1", "kind": "BestEffortJob", "metadata": {"name": "pi", "namespace": "team"},
        "spec": {"members": 1, "image": {"name": "debian"}, "run": {"command": ["true"]},
            "slots": {"site": "rennes", "walltime": "2h"}},
        "status": {"slots": [{"id": "7", "submission": 1, "nodes": ["node-1"], "state": "Running", "deployment": {
            "environment": {"name": "hypervisor"}, "since": time, "nodes": [
                {"node": "node-1", "state": "Joining", "since": time, "token": "abc123"}]}}]},
    }))
    .unwrap()
}

/// What node-1's kubelet asks for, once the API server has shortened it.
fn request() -> CertificateSigningRequestSpec {
    asks_for("system:node:node-1", "system:nodes", &[])
}

fn asks_for(name: &str, organization: &str, other_names: &[&str]) -> CertificateSigningRequestSpec {
    let others: Vec<String> = other_names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(others).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.distinguished_name.push(DnType::CommonName, name);
    let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    CertificateSigningRequestSpec {
        request: ByteString(pem.into_bytes()),
        signer_name: "kubernetes.io/kube-apiserver-client-kubelet".into(),
        usages: Some(vec!["digital signature".into(), "client auth".into()]),
        username: Some("system:bootstrap:abc123".into()),
        groups: Some(vec!["system:bootstrappers".into(), "system:bootstrappers:vmdeploy".into()]),
        expiration_seconds: Some(LIFE),
        ..CertificateSigningRequestSpec::default()
    }
}

/// What is said to a request of this age.
async fn said(spec: CertificateSigningRequestSpec, job: BestEffortJob, age: i64) -> Vec<(Answer, String)> {
    crate::tls::install_provider();
    let clock = Clock::manual(Timestamp::from_second(1_800_000_000).unwrap());
    let cluster = FakeCluster::new(clock.clone());
    let status = job.status.clone().unwrap();
    cluster.put_job(job);
    let stored = crate::driver::cluster::ClusterView::job(&cluster, "team", "pi").unwrap();
    crate::driver::cluster::Cluster::patch_job_status(&cluster, &stored.metadata, &status).await.unwrap();
    let mut request = CertificateSigningRequest { spec, ..CertificateSigningRequest::default() };
    request.metadata.creation_timestamp = Some(Time(clock.now() - SignedDuration::from_secs(age)));
    let config = Arc::new(crate::yaml::read(CONFIG).unwrap());
    let (view, joins) = (Arc::new(cluster.clone()), Arc::new(cluster.clone()));
    reconcile(Arc::new(request), Arc::new(Context { config, clock, view, joins })).await.unwrap();
    cluster.answers()
}

#[tokio::test]
async fn a12_a_node_on_its_way_gets_its_own_certificate() {
    let answers = said(request(), job(), 0).await;
    assert!(matches!(answers.as_slice(), [(Answer::Approved, why)] if why.contains("node-1")), "{answers:?}");
}

#[rstest]
#[case::another_node(asks_for("system:node:node-2", "system:nodes", &[]), "the token is of node-1")]
#[case::a_master(asks_for("system:node:node-1", "system:masters", &[]), "of the organization system:nodes")]
#[case::a_server(asks_for("system:node:node-1", "system:nodes", &["kubernetes"]), "of no other name")]
#[case::what_serves(
    CertificateSigningRequestSpec { signer_name: "kubernetes.io/kubelet-serving".into(), ..request() },
    "not of kubernetes.io/kubelet-serving"
)]
#[case::any_use(
    CertificateSigningRequestSpec { usages: Some(vec!["any".into()]), ..request() },
    "not for \"any\""
)]
#[case::for_a_year(CertificateSigningRequestSpec { expiration_seconds: None, ..request() }, "as long as the cluster likes")]
#[case::too_long(CertificateSigningRequestSpec { expiration_seconds: Some(LIFE + 1), ..request() }, "7801 s, longer")]
#[case::rubbish(CertificateSigningRequestSpec { request: ByteString(b"rubbish".into()), ..request() }, "cannot be read")]
#[tokio::test]
async fn a12_whoever_has_found_a_token_gets_nothing_else(
    #[case] spec: CertificateSigningRequestSpec,
    #[case] why: &str,
) {
    let answers = said(spec, job(), 0).await;
    assert!(matches!(answers.as_slice(), [(Answer::Denied, said)] if said.contains(why)), "{answers:?}");
}

#[rstest]
#[case::a_node_that_has_joined("Ready", SlotState::Running, false)]
#[case::a_slot_that_is_over("Joining", SlotState::Ended, false)]
#[case::a_slot_that_is_given_back("Joining", SlotState::Running, true)]
#[tokio::test]
async fn a12_a_token_is_worth_nothing_once_its_node_has_joined_or_its_slot_is_over(
    #[case] node: &str,
    #[case] slot: SlotState,
    #[case] given_back: bool,
) {
    let mut job = job();
    let status = &mut job.status.as_mut().unwrap().slots[0];
    status.state = slot;
    status.deployment.as_mut().unwrap().nodes[0].state = serde_json::from_value(json!(node)).unwrap();
    if given_back {
        status.release =
            Some(serde_json::from_value(json!({"reason": "BadNode", "since": "2026-07-01T10:00:00Z"})).unwrap());
    }
    let answers = said(request(), job, 0).await;
    assert!(matches!(answers.as_slice(), [(Answer::Denied, why)] if why.contains("slot is over")), "{answers:?}");
}

#[tokio::test]
async fn an_unknown_token_is_waited_for_and_then_denied_and_others_requests_are_left_to_others() {
    let unknown = || CertificateSigningRequestSpec { username: Some("system:bootstrap:zzzzzz".into()), ..request() };
    assert_eq!(said(unknown(), job(), 0).await, []);
    assert!(matches!(said(unknown(), job(), 61).await.as_slice(), [(Answer::Denied, _)]));
    let others = CertificateSigningRequestSpec { groups: Some(vec!["system:bootstrappers".into()]), ..unknown() };
    assert_eq!(said(others, job(), 3600).await, []);
    let user = CertificateSigningRequestSpec { username: Some("alice".into()), ..request() };
    assert_eq!(said(user, job(), 3600).await, []);
    assert_eq!(
        Duration::from_secs(LIFE.unsigned_abs().into()),
        crate::driver::cluster::joins::certificate_life(Duration::from_secs(7200))
    );
}
