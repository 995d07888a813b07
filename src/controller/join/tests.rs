//! Requests as kubelets make them, and as somebody would who has found a token.

use std::sync::Arc;

use jiff::Timestamp;
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
    api::{
        BestEffortJob,
        job_status::{DeploymentState, SlotState},
    },
    clock::Clock,
    controller::job::{memory::Memory, plan::uid},
    driver::cluster::{
        Cluster, ClusterView,
        fake::FakeCluster,
        joins::{Answer, REASON},
    },
};

const CONFIG: &str = "namespace: vmdeploy-system\nrepository: repository:1\nagents: {image: x}\n\
    sites: {rennes: {kind: oar2, url: 'http://x', uids: {alice: 1}, kadeploy: {url: 'http://k', join: {}}}}\n";
/// Of the slot's two hours half an hour was over when node-1 was to join.
const LIFE: i32 = 5400;
const JOB: &str = "3f2b8a10-9c1d-4e5f-8a7b-112233445566";

/// A job with one slot, whose node `node-1` is on its way and has the token `abc123`.
fn job() -> BestEffortJob {
    let time = "2027-01-15T07:30:00Z";
    serde_json::from_value(json!({
        "apiVersion": "vmdeploy.io/v1alpha1", "kind": "BestEffortJob", "metadata": {"name": "pi", "namespace": "team", "uid": JOB},
        "spec": {"members": 1, "image": {"name": "debian"}, "run": {"command": ["true"]},
            "slots": {"site": "rennes", "walltime": "2h"}},
        "status": {"slots": [{"id": "7", "submission": 1, "nodes": ["node-1"], "state": "Running", "until": "2027-01-15T09:00:00Z", "deployment": {
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

/// The world of a request: what was said to it, and what the job was told.
struct World {
    cluster: FakeCluster,
    context: Context,
}

impl World {
    async fn new(job: BestEffortJob, others: Vec<CertificateSigningRequest>) -> Self {
        crate::tls::install_provider();
        let clock = Clock::manual(Timestamp::from_second(1_800_000_000).unwrap());
        let cluster = FakeCluster::new(clock.clone());
        let status = job.status.clone().unwrap();
        cluster.put_job(job);
        let stored = ClusterView::job(&cluster, "team", "pi").unwrap();
        Cluster::patch_job_status(&cluster, &stored.metadata, &status).await.unwrap();
        let memory = Memory::default();
        // a pass of it was made
        memory.update(&uid(&stored), |_| ());
        let others: Vec<_> = others.into_iter().map(Arc::new).collect();
        let context = Context {
            config: Arc::new(crate::yaml::read(CONFIG).unwrap()),
            clock,
            view: Arc::new(cluster.clone()),
            joins: Arc::new(cluster.clone()),
            requests: Arc::new(move || others.clone()),
            memory,
            wake: Arc::new(|_| {}),
        };
        Self { cluster, context }
    }

    async fn pass(self, request: CertificateSigningRequest) -> Self {
        reconcile(Arc::new(request), Arc::new(self.context.clone())).await.unwrap();
        self
    }

    fn told(&self) -> Option<String> {
        let job = ClusterView::job(&self.cluster, "team", "pi").unwrap();
        self.context.memory.get(&uid(&job)).denied.remove("abc123")
    }
}

fn made(spec: CertificateSigningRequestSpec, age: i64) -> CertificateSigningRequest {
    let mut request = CertificateSigningRequest { spec, ..CertificateSigningRequest::default() };
    let time = Timestamp::from_second(1_800_000_000 - age).unwrap();
    request.metadata.creation_timestamp = Some(Time(time));
    request.metadata.name = Some(format!("csr-{age}"));
    request
}

/// A request that somebody has approved.
fn approved(mut request: CertificateSigningRequest, reason: &str) -> CertificateSigningRequest {
    let status = json!({"conditions": [{"type": "Approved", "status": "True", "reason": reason}]});
    request.status = Some(serde_json::from_value(status).unwrap());
    request
}

/// What is said to a request of this age.
async fn said(spec: CertificateSigningRequestSpec, job: BestEffortJob, age: i64) -> Vec<(Answer, String)> {
    World::new(job, Vec::new()).await.pass(made(spec, age)).await.cluster.answers()
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
#[case::any_use(
    CertificateSigningRequestSpec { usages: Some(vec!["any".into()]), ..request() },
    "not for \"any\""
)]
#[case::for_a_year(CertificateSigningRequestSpec { expiration_seconds: None, ..request() }, "as long as the cluster likes")]
#[case::too_long(CertificateSigningRequestSpec { expiration_seconds: Some(LIFE + 1), ..request() }, "5401 s, longer")]
#[case::rubbish(CertificateSigningRequestSpec { request: ByteString(b"rubbish".into()), ..request() }, "cannot be read")]
#[tokio::test]
async fn a12_whoever_has_found_a_token_gets_nothing_else(
    #[case] spec: CertificateSigningRequestSpec,
    #[case] why: &str,
) {
    let world = World::new(job(), Vec::new()).await.pass(made(spec, 0)).await;
    let answers = world.cluster.answers();
    assert!(matches!(answers.as_slice(), [(Answer::Denied, said)] if said.contains(why)), "{answers:?}");
    assert!(world.told().is_some_and(|told| told.contains("csr-0") && told.contains(why)), "{:?}", world.told());
}

#[rstest]
#[case::a_node_that_has_joined("Ready", SlotState::Running, false)]
#[case::a_slot_that_is_over("Joining", SlotState::Ended, false)]
#[case::a_slot_that_is_given_back("Joining", SlotState::Running, true)]
#[case::a_slot_that_is_ended("Joining", SlotState::Ending, false)]
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
async fn a12_a_token_gives_one_certificate_and_whoever_is_second_is_told_of() {
    let first = approved(made(request(), 10), REASON);
    let world = World::new(job(), vec![first.clone()]).await.pass(made(request(), 0)).await;
    let answers = world.cluster.answers();
    assert!(matches!(answers.as_slice(), [(Answer::Denied, why)] if why.contains("csr-10")), "{answers:?}");
    assert!(world.told().is_some_and(|told| told.contains("somebody else has asked with the token")));
    // a kubelet may ask again with its own key
    let world = World::new(job(), vec![first.clone()]).await.pass(made(first.spec.clone(), 0)).await;
    assert!(matches!(world.cluster.answers().as_slice(), [(Answer::Approved, _)]));
    // of two that are not known of each other yet the second one gets none
    let world = World::new(job(), Vec::new()).await.pass(made(request(), 1)).await.pass(made(request(), 0)).await;
    let answers = world.cluster.answers();
    assert!(matches!(answers.as_slice(), [(Answer::Approved, _), (Answer::Denied, _)]), "{answers:?}");
    assert!(world.told().is_some());
}

#[tokio::test]
async fn a12_what_somebody_else_approves_and_should_not_is_told() {
    let other = approved(made(asks_for("system:node:node-2", "system:nodes", &[]), 0), "AutoApproved");
    let world = World::new(job(), Vec::new()).await.pass(other).await;
    assert_eq!(world.cluster.answers(), []);
    assert!(world.told().is_some_and(|told| told.contains("has approved its request") && told.contains("node-2")));
    let own = approved(made(request(), 0), "AutoApproved");
    assert_eq!(World::new(job(), Vec::new()).await.pass(own).await.told(), None);
}

#[tokio::test]
async fn a_node_that_is_being_deployed_yet_is_not_denied_for_good() {
    let mut job = job();
    let status = &mut job.status.as_mut().unwrap().slots[0];
    status.deployment.as_mut().unwrap().nodes[0].state = DeploymentState::Waiting;
    assert_eq!(said(request(), job, 0).await, []);
}

#[tokio::test]
async fn an_unknown_token_is_waited_for_and_then_denied_and_others_requests_are_left_to_others() {
    let unknown = || CertificateSigningRequestSpec { username: Some("system:bootstrap:zzzzzz".into()), ..request() };
    assert_eq!(said(unknown(), job(), 0).await, []);
    assert!(matches!(said(unknown(), job(), 121).await.as_slice(), [(Answer::Denied, _)]));
    let others = CertificateSigningRequestSpec { groups: Some(vec!["system:bootstrappers".into()]), ..unknown() };
    assert_eq!(said(others, job(), 3600).await, []);
    let user = CertificateSigningRequestSpec { username: Some("alice".into()), ..request() };
    assert_eq!(said(user, job(), 3600).await, []);
    // the operator has no right to answer for this signer
    let serving = CertificateSigningRequestSpec { signer_name: "kubernetes.io/kubelet-serving".into(), ..request() };
    assert_eq!(said(serving, job(), 3600).await, []);
}
