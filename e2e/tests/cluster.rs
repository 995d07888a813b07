//! The Kubernetes writes of the controllers on a real API server: preconditions, finalizers, and who
//! owns which field. The double in memory is held to the same contract.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use e2e::{TestBed, testbed::until};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        certificates::v1::CertificateSigningRequest,
        core::v1::{Container, Namespace, Pod, PodSpec, Secret, ServiceAccount},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    client::ClientBuilder,
};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use vmdeploy::{
    api::{
        BestEffortJob, BestEffortJobStatus, ConditionType, FINALIZER, GROUP, LABEL_JOB_UID, LAST_STORED, Reason,
        Snapshot, SnapshotSpec, SnapshotStatus, VERSION, conditions,
        conditions::Truth,
        crds,
        snapshot::{SnapshotPhase, SnapshotReason, TransferState},
    },
    clock::Clock,
    driver::cluster::{
        Cluster, ClusterError, ClusterView, Kind, Shown,
        count::RequestCounts,
        fake::FakeCluster,
        importers::{ImporterState, Importers as _, KubeImporters},
        joins::{Answer, BootstrapToken, JoinOffer, Joins as _, KubeJoins},
        kube::KubeCluster,
    },
};

/// A namespace of the real API server, with our kinds served.
struct Place {
    client: Client,
    counts: RequestCounts,
    namespace: String,
}

impl Place {
    async fn new(name: &str) -> Result<Option<Self>> {
        if TestBed::find().await?.is_none() {
            return Ok(None);
        }
        let counts = RequestCounts::default();
        let config = kube::Config::infer().await?;
        let client = ClientBuilder::try_from(config)?.with_layer(&counts).build();
        let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
        for crd in crds::all() {
            let name = crd["metadata"]["name"].as_str().context("a definition without name")?;
            definitions.patch(name, &PatchParams::apply("e2e").force(), &Patch::Apply(&crd)).await?;
            let served = kube::runtime::conditions::is_crd_established();
            let wait = kube::runtime::wait::await_condition(definitions.clone(), name, served);
            tokio::time::timeout(Duration::from_secs(60), wait).await??;
        }
        let namespace = format!("e2e-{name}-{}", std::process::id());
        let object = Namespace {
            metadata: ObjectMeta { name: Some(namespace.clone()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        Api::all(client.clone()).create(&PostParams::default(), &object).await?;
        Ok(Some(Self { client, counts, namespace }))
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn cluster(&self) -> KubeCluster {
        KubeCluster::new(self.client.clone(), &self.namespace, None)
    }

    async fn remove(self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client);
        namespaces.delete(&self.namespace, &DeleteParams::default()).await?;
        Ok(())
    }
}

fn job(namespace: &str) -> Result<BestEffortJob> {
    let spec = json!({"run": {"command": ["true"]}, "slots": {"site": "rennes", "walltime": "1h"}});
    let mut job = BestEffortJob::new("pi", serde_json::from_value(spec)?);
    job.metadata.namespace = Some(namespace.into());
    Ok(job)
}

/// What others are shown of a job, whoever keeps the objects.
async fn shows(cluster: &dyn Cluster, read: &dyn AsyncRead) -> Result<()> {
    let first = read.job().await?.context("no job")?;
    let says = |job: &BestEffortJob| job.annotations().get(LAST_STORED).cloned();
    for value in [Some("one"), Some("two"), None] {
        cluster.show_stored(Shown::Job, &first.metadata, value).await?;
        let job = read.job().await?.context("no job")?;
        ensure!(says(&job).as_deref() == value && job.status == first.status, "{job:?}");
    }
    let gone = ObjectMeta { uid: Some("00000000-0000-0000-0000-000000000000".into()), ..first.metadata.clone() };
    ensure!(cluster.show_stored(Shown::Job, &gone, Some("x")).await.is_err(), "shown on another object");
    let nobody = ObjectMeta { name: Some("nobody".into()), ..gone };
    ensure!(cluster.show_stored(Shown::Agent, &nobody, Some("x")).await.is_err(), "a pod was made to be shown on");
    Ok(())
}

/// What controllers rely on, whoever keeps the objects. `read` gets the job, if there is one.
async fn contract(cluster: &dyn Cluster, read: &dyn AsyncRead) -> Result<()> {
    let job = read.job().await?.context("no job")?;
    let now = Time(Timestamp::from_second(1_800_000_000)?);
    let status = BestEffortJobStatus { attempt: 1, started: Some(now), ..BestEffortJobStatus::default() };
    let version = cluster.patch_job_status(&job.metadata, &status).await?;
    let late = cluster.patch_job_status(&job.metadata, &BestEffortJobStatus::default()).await;
    ensure!(matches!(late, Err(ClusterError::Conflict(_))), "a status decided from an old version: {late:?}");
    let job = read.job().await?.context("no job")?;
    ensure!(job.resource_version() == Some(version) && job.status.as_ref() == Some(&status), "{job:?}");
    let shorter = BestEffortJobStatus { attempt: 2, ..BestEffortJobStatus::default() };
    cluster.patch_job_status(&job.metadata, &shorter).await?;
    let changed = read.job().await?.context("no job")?;
    ensure!(changed.status == Some(shorter), "what is left out is gone: {changed:?}");

    cluster.add_finalizer(Kind::Job, &changed.metadata).await?;
    let held = read.job().await?.context("no job")?;
    ensure!(held.finalizers() == [FINALIZER], "{held:?}");
    cluster.add_finalizer(Kind::Job, &held.metadata).await?;
    let other = ObjectMeta { uid: Some("00000000-0000-0000-0000-000000000000".into()), ..held.metadata.clone() };
    ensure!(cluster.delete(Kind::Job, &other).await.is_err(), "another object of this name was deleted");
    cluster.delete(Kind::Job, &held.metadata).await?;
    let leaving = read.job().await?.context("the finalizer does not hold it")?;
    ensure!(leaving.metadata.deletion_timestamp.is_some());
    cluster.remove_finalizer(Kind::Job, &leaving.metadata).await?;
    ensure!(read.job().await?.is_none(), "it is held by nobody");
    cluster.remove_finalizer(Kind::Job, &leaving.metadata).await?;
    cluster.delete(Kind::Job, &leaving.metadata).await?;
    Ok(())
}

#[async_trait::async_trait]
trait AsyncRead {
    async fn job(&self) -> Result<Option<BestEffortJob>>;
}

#[async_trait::async_trait]
impl AsyncRead for Api<BestEffortJob> {
    async fn job(&self) -> Result<Option<BestEffortJob>> {
        Ok(self.get_opt("pi").await?)
    }
}

#[async_trait::async_trait]
impl AsyncRead for FakeCluster {
    async fn job(&self) -> Result<Option<BestEffortJob>> {
        Ok(ClusterView::job(self, "team", "pi").map(|job| (*job).clone()))
    }
}

#[tokio::test]
async fn the_double_keeps_the_contract() -> Result<()> {
    let fake = FakeCluster::new(Clock::manual(Timestamp::from_second(1_800_000_000)?));
    fake.put_job(job("team")?);
    shows(&fake, &fake).await?;
    Box::pin(contract(&fake, &fake)).await
}

#[tokio::test]
async fn the_api_server_keeps_the_contract() -> Result<()> {
    let (Some(bed), Some(place)) = (TestBed::find().await?, Place::new("contract").await?) else { return Ok(()) };
    let kept = without_operator(&bed, async {
        place.api().create(&PostParams::default(), &job(&place.namespace)?).await?;
        shows(&place.cluster(), &place.api::<BestEffortJob>()).await?;
        Box::pin(contract(&place.cluster(), &place.api::<BestEffortJob>())).await
    });
    Box::pin(kept).await?;
    let counted = place.counts.by_verb();
    ensure!(counted.get("patch").is_some_and(|n| *n >= 6) && counted.contains_key("delete"), "{counted:?}");
    place.remove().await
}

fn kget_says(state: TransferState) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "Snapshot",
        "metadata": {"name": "pi-1"},
        "status": {
            "transfer": {"state": state, "sent": 1, "total": 2},
            "conditions": [{
                "type": "Stored", "status": "False", "reason": "Transferring", "message": "",
                "lastTransitionTime": "2027-01-15T08:00:00Z",
            }],
        },
    })
}

/// Operator and kget write the same status, each its own part, never by force (B14).
#[tokio::test]
async fn b14_each_owns_its_part_of_a_snapshot() -> Result<()> {
    let (Some(bed), Some(place)) = (TestBed::find().await?, Place::new("owners").await?) else { return Ok(()) };
    without_operator(&bed, share(place)).await
}

/// Does this while neither operator nor kget of the test bed writes to the same objects.
async fn without_operator(bed: &TestBed, work: impl Future<Output = Result<()>>) -> Result<()> {
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _alone = ALONE.lock().await;
    let all = |replicas| {
        let [operator, kget] = ["operator", "kget"].map(|component| bed.scale(component, replicas));
        operator.and(kget)
    };
    let stopped = all(0);
    let done = if stopped.is_ok() { work.await } else { Ok(()) };
    // whatever has failed, other tests need them
    let started = all(1);
    stopped.and(done).and(started)
}

async fn share(place: Place) -> Result<()> {
    let (cluster, api) = (place.cluster(), place.api::<Snapshot>());
    let spec = SnapshotSpec { job: "pi".into(), reason: SnapshotReason::Periodic, retain: false };
    let mut snapshot = Snapshot::new("pi-1", spec);
    snapshot.metadata.namespace = Some(place.namespace.clone());
    snapshot.metadata.labels = Some([(LABEL_JOB_UID.to_owned(), "first".to_owned())].into());
    cluster.create_snapshot(&snapshot).await?;
    cluster.create_snapshot(&snapshot).await?;
    let meta = api.get("pi-1").await?.metadata;
    // a later job of the same name does not take it for its own (B12)
    snapshot.metadata.labels = Some([(LABEL_JOB_UID.to_owned(), "second".to_owned())].into());
    let refused = cluster.create_snapshot(&snapshot).await;
    ensure!(matches!(refused, Err(ClusterError::Invalid(_))), "{refused:?}");

    let mut status =
        SnapshotStatus { generation: Some(1), phase: SnapshotPhase::Captured, ..SnapshotStatus::default() };
    let now = Timestamp::from_second(1_800_000_000)?;
    conditions::set(&mut status.conditions, ConditionType::Ready, Truth::Unknown, Reason::Transferring, "", 1, now);
    cluster.apply_snapshot_status(&meta, &status).await?;
    let kget = PatchParams::apply("vmdeploy-kget");
    api.patch_status("pi-1", &kget, &Patch::Apply(kget_says(TransferState::Sending))).await?;

    // the operator's next write leaves kget's alone, though it had not seen it
    status.phase = SnapshotPhase::Stored;
    status.conditions.clear();
    cluster.apply_snapshot_status(&meta, &status).await?;
    let seen = api.get("pi-1").await?.status.context("no status")?;
    ensure!(seen.phase == SnapshotPhase::Stored && seen.generation == Some(1), "{seen:?}");
    ensure!(seen.transfer.as_ref().is_some_and(|t| t.state == TransferState::Sending), "{seen:?}");
    let left: Vec<&str> = seen.conditions.iter().map(|c| c.type_.as_str()).collect();
    ensure!(left == ["Stored"], "the operator's own is gone, kget's is not: {left:?}");

    // and kget cannot write what is the operator's
    let mut greedy = kget_says(TransferState::Published);
    greedy["status"]["phase"] = json!("Failed");
    let refused = api.patch_status("pi-1", &kget, &Patch::Apply(greedy)).await;
    ensure!(matches!(&refused, Err(kube::Error::Api(error)) if error.code == 409), "{refused:?}");
    ensure!(api.get("pi-1").await?.status.context("no status")?.phase == SnapshotPhase::Stored);
    place.remove().await
}

#[tokio::test]
async fn an_importer_whose_operator_died_before_its_secret_is_finished_by_the_next() -> Result<()> {
    let Some(place) = Place::new("importers").await? else { return Ok(()) };
    let name = "import-x";
    let job = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": place.namespace},
        "spec": {"backoffLimit": 0, "template": {"spec": {"restartPolicy": "Never",
            "volumes": [{"name": "tls", "secret": {"secretName": name}}],
            "containers": [{"name": "importer", "image": "testbed.local/busybox:1", "imagePullPolicy": "Never",
                "command": ["sleep", "600"], "volumeMounts": [{"name": "tls", "mountPath": "/tls"}]}]}}},
    }))?;
    let secret: Secret =
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": place.namespace}, "data": {}}))?;
    let state = async |importers: &KubeImporters| importers.state(&place.namespace, name).await;
    KubeImporters::new(place.client.clone()).start(&job, None).await?;
    let next = KubeImporters::new(place.client.clone());
    let found = state(&next).await?;
    ensure!(matches!(found, Some(ImporterState::Unfinished(_))), "{found:?}");
    next.start(&job, Some(&secret)).await?;
    let owners = place.api::<Secret>().get(name).await?.metadata.owner_references.unwrap_or_default();
    ensure!(owners.iter().any(|owner| owner.kind == "Job" && owner.name == name), "{owners:?}");
    until("its container to run", Duration::from_secs(180), async || match state(&next).await? {
        Some(ImporterState::Running) => Ok(Some(())),
        Some(ImporterState::Waiting(_)) => Ok(None),
        other => anyhow::bail!("it is {other:?}"),
    })
    .await?;
    next.remove(&place.namespace, name).await?;
    until("its Secret to go", Duration::from_secs(60), async || {
        Ok(place.api::<Secret>().get_opt(name).await?.is_none().then_some(()))
    })
    .await?;
    place.remove().await
}

/// An agent's Secret goes with its pod, also when it is a later pod of the same name.
#[tokio::test]
async fn an_agent_is_made_and_removed_as_often_as_it_is_asked() -> Result<()> {
    let Some(place) = Place::new("agents").await? else { return Ok(()) };
    let accounts = place.api::<ServiceAccount>();
    for _ in 0..600 {
        if accounts.get_opt("default").await?.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let named = ObjectMeta {
        name: Some("agent-x-0-1".into()),
        namespace: Some(place.namespace.clone()),
        ..ObjectMeta::default()
    };
    let container = Container { name: "agent".into(), image: Some("vmdeploy/none".into()), ..Container::default() };
    let pod = Pod {
        metadata: named.clone(),
        spec: Some(PodSpec {
            containers: vec![container],
            node_name: Some("no-such-node".into()),
            automount_service_account_token: Some(false),
            ..PodSpec::default()
        }),
        ..Pod::default()
    };
    let secret = Secret { metadata: named, ..Secret::default() };
    let (cluster, pods, secrets) = (place.cluster(), place.api::<Pod>(), place.api::<Secret>());
    let make = async || {
        let made = cluster.create_agent_pod(&pod).await?;
        cluster.create_agent_secret(&secret, &made).await
    };
    for _ in 0..2 {
        make().await?;
        // the garbage collector may still be taking the Secret of the pod before: asked again, it is made again
        until("a Secret that is the pod's", Duration::from_secs(60), async || {
            make().await?;
            let Some(made) = pods.get_opt("agent-x-0-1").await? else { return Ok(None) };
            let Some(kept) = secrets.get_opt("agent-x-0-1").await? else { return Ok(None) };
            let owners = kept.metadata.owner_references.unwrap_or_default();
            Ok((owners.len() == 1 && Some(&owners[0].uid) == made.metadata.uid.as_ref()).then_some(()))
        })
        .await?;
        // the pod alone goes: what is left of it is not taken for the next one's
        pods.delete("agent-x-0-1", &DeleteParams::default().grace_period(0)).await?;
    }
    make().await?;
    cluster.delete_agent("agent-x-0-1", Duration::ZERO).await?;
    cluster.delete_agent("agent-x-0-1", Duration::ZERO).await?;
    ensure!(pods.get_opt("agent-x-0-1").await?.is_none() && secrets.get_opt("agent-x-0-1").await?.is_none());
    place.remove().await
}

/// Tokens may be offered and taken back again and again, and no request is answered as it was before.
#[tokio::test]
async fn a12_tokens_and_answers_may_be_repeated() -> Result<()> {
    let Some(place) = Place::new("joins").await? else { return Ok(()) };
    let joins = KubeJoins(place.client.clone());
    let number = Timestamp::now().as_nanosecond() & 0xff_ffff;
    let token = BootstrapToken { id: format!("{number:06x}"), secret: "0123456789abcdef".into() };
    let expires = Timestamp::now() + Duration::from_secs(60);
    let offer = JoinOffer { token, description: "of a test".into(), expires, certificate: None };
    joins.offer(&offer).await?;
    joins.offer(&offer).await?;
    joins.withdraw(&offer.token.id).await?;
    joins.withdraw(&offer.token.id).await?;

    let pem = CertificateParams::new([])?.serialize_request(&KeyPair::generate()?)?.pem()?;
    // of a signer that nobody serves
    let request = json!({"metadata": {"generateName": "vmdeploy-e2e-"}, "spec": {"signerName": "example.com/nobody",
        "usages": ["client auth"], "request": STANDARD.encode(pem)}});
    let requests: Api<CertificateSigningRequest> = Api::all(place.client.clone());
    let made = requests.create(&PostParams::default(), &serde_json::from_value(request)?).await?;
    joins.answer(&made.metadata, Answer::Denied, "because").await?;
    let late = joins.answer(&made.metadata, Answer::Approved, "after all").await;
    ensure!(matches!(late, Err(ClusterError::Conflict(_))), "answered as it was before: {late:?}");
    let said = requests.get(&made.name_any()).await?.status.and_then(|status| status.conditions).unwrap_or_default();
    let words: Vec<_> = said.iter().map(|one| (one.type_.as_str(), one.message.as_deref())).collect();
    ensure!(words == [("Denied", Some("because"))], "{words:?}");
    requests.delete(&made.name_any(), &DeleteParams::default()).await?;
    let gone = joins.answer(&made.metadata, Answer::Denied, "because").await;
    ensure!(matches!(gone, Err(ClusterError::NotFound(_) | ClusterError::Conflict(_))), "{gone:?}");
    place.remove().await
}
