//! The samples and the rules of the API: read and judged without a cluster, and by a real API server.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::TestBed;
use k8s_openapi::{
    api::core::v1::Namespace, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ObjectMeta, Patch, PatchParams, PostParams},
};
use rejected::{Case, good, merge};
use serde_json::{Value, json};
use vmdeploy::{
    api::{BestEffortJob, GROUP, Snapshot, VERSION, VmImage, crds},
    yaml,
};

#[path = "../../src/api/rejected.rs"]
mod rejected;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every object of the samples, with the file it is in.
fn samples() -> Result<Vec<(String, Value)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(root().join("manifests/samples"))? {
        let path = entry?.path();
        for object in yaml::read_all(&fs::read_to_string(&path)?)? {
            all.push((path.display().to_string(), object));
        }
    }
    ensure!(!all.is_empty(), "no samples");
    Ok(all)
}

#[test]
fn samples_are_valid() -> Result<()> {
    for (path, object) in samples()? {
        let said = match object["kind"].as_str() {
            Some("BestEffortJob") => serde_json::from_value::<BestEffortJob>(object)?.validate_cel(),
            Some("VmImage") => serde_json::from_value::<VmImage>(object)?.validate_cel(),
            Some("Snapshot") => serde_json::from_value::<Snapshot>(object)?.validate_cel(),
            kind => bail!("{path}: kind {kind:?}"),
        };
        said.map_err(|errors| anyhow::anyhow!("{path}: {errors}"))?;
    }
    Ok(())
}

/// Else it would be refused with SnapshotMismatch.
#[test]
fn the_clone_is_shaped_as_the_job_of_its_snapshot() -> Result<()> {
    let all = samples()?;
    let spec = |kind: &str, name: &str| {
        let named = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
        all.iter().map(|(_, object)| object).find(named).map(|object| &object["spec"]).context(name.to_owned())
    };
    let clone = spec("BestEffortJob", "counter-again")?;
    let from = clone["restoreFrom"]["snapshot"].as_str().context("no snapshot")?;
    let job = spec("BestEffortJob", spec("Snapshot", from)?["job"].as_str().context("no job")?)?;
    for field in ["members", "vm", "run"] {
        ensure!(!job[field].is_null() && clone[field] == job[field], "{field}: {} is not {}", clone[field], job[field]);
    }
    Ok(())
}

/// A namespace of the real API server, with our kinds served.
struct Place {
    bed: TestBed,
    client: Client,
    namespace: String,
}

impl Place {
    /// A new one on the test bed's API server, if there is a test bed.
    async fn new(name: &str) -> Result<Option<Self>> {
        let Some(bed) = TestBed::find().await? else { return Ok(None) };
        let client = bed.client.clone();
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
        Ok(Some(Self { bed, client, namespace }))
    }

    fn api(&self, kind: &str) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk(GROUP, VERSION, kind);
        Api::namespaced_with(self.client.clone(), &self.namespace, &ApiResource::from_gvk(&kind))
    }

    async fn remove(self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client);
        namespaces.delete(&self.namespace, &DeleteParams::default()).await?;
        Ok(())
    }
}

fn dry() -> PostParams {
    PostParams { dry_run: true, ..PostParams::default() }
}

#[tokio::test]
async fn samples_are_accepted_by_the_api_server() -> Result<()> {
    let Some(place) = Place::new("samples").await? else { return Ok(()) };
    // as users do it: kubectl reads YAML its own way
    let strict = ["create", "--dry-run=server", "--validate=strict", "-f"];
    let samples_of = root().join("manifests/samples");
    let place_of = samples_of.to_str().context("a path that is no text")?;
    let said = place.bed.run(&[&["kubectl", "-n", &place.namespace], &strict[..], &[place_of]].concat())?;
    ensure!(said.lines().filter(|line| line.contains("created")).count() == samples()?.len(), "{said}");
    // and the API server keeps every word of it
    for (path, object) in samples()? {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let made = place.api(&kind).create(&dry(), &serde_json::from_value(object.clone())?).await?;
        ensure!(contains(&serde_json::to_value(&made)?["spec"], &object["spec"]), "{path} became {made:?}");
    }
    place.remove().await
}

/// Whether everything of `part` is in `whole`.
fn contains(whole: &Value, part: &Value) -> bool {
    match part {
        Value::Object(fields) => fields.iter().all(|(name, value)| contains(&whole[name], value)),
        other => whole == other,
    }
}

/// What the API server says about the object of a case. One that was made goes in the operator's time: each has a
/// name of its own.
async fn said(place: &Place, case: &Case, name: &str) -> Result<String> {
    let api = place.api(&case.kind);
    let result = if let Some(old) = &case.old {
        let mut object = good(&case.kind);
        merge(&mut object, old);
        object["metadata"]["name"] = name.into();
        api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        if let Some(status) = &case.status {
            let patch = Patch::Merge(json!({"status": status}));
            api.patch_status(name, &PatchParams::default(), &patch).await?;
        }
        let result = api.patch(name, &PatchParams::default(), &Patch::Merge(&case.patch)).await;
        api.delete(name, &DeleteParams::default()).await?;
        result
    } else {
        let mut object = good(&case.kind);
        merge(&mut object, &case.patch);
        api.create(&dry(), &serde_json::from_value(object)?).await
    };
    match result {
        Ok(_) => bail!("{}: accepted; it should be refused by {}", case.name, case.by.as_deref().unwrap_or("a rule")),
        Err(error) => Ok(error.to_string()),
    }
}

#[tokio::test]
async fn bad_objects_are_refused_by_the_api_server() -> Result<()> {
    let Some(place) = Place::new("rules").await? else { return Ok(()) };
    let cases: Vec<Case> = yaml::read(&fs::read_to_string(root().join("src/api/rejected.yaml"))?)?;
    for (number, case) in cases.iter().enumerate() {
        let said = said(&place, case, &format!("pi-{number}")).await?;
        ensure!(said.contains(&case.says), "{}: {said}", case.name);
    }
    place.remove().await
}
