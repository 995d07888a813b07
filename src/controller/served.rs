//! Waits until the API server serves our kinds as this program knows them, and looks after it: a
//! controller that starts before its CRDs waits and says so, instead of crashing.
//!
//! CRDs of another version than the program's are worse than none: the API server drops the fields they do
//! not know from every status, and with them what was written down before a leap (that a member is dead only
//! by its silence, that a slot was seen to end). So nothing is decided before every field of a status is
//! served, and no longer than it is. What users write is theirs, and between them and the API server.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{GROUP, VERSION, crds},
    health::Readiness,
};

/// The readiness check this module reports.
pub const CHECK: &str = "crds";

const INTERVAL: Duration = Duration::from_secs(2);
/// Time between two looks once they are served.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Fields that are named in a message.
const NAMED: usize = 5;

/// Why a controller cannot work with what is served.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unserved {
    /// A kind is not served at all.
    #[error("the API server does not serve {0} of {GROUP}/{VERSION}")]
    Missing(String),
    /// A definition lacks fields that would be dropped.
    #[error(
        "the CRDs are not of this program's version, and what it writes down would be dropped ({0}): upgrade \
         both to the same (helm upgrade vmdeploy-crds, then vmdeploy)"
    )]
    Other(String),
    /// They could not be looked at.
    #[error("failed to read the CRDs: {0}")]
    Unknown(String),
}

/// Returns once all `kinds` are served; false if it was told to stop before.
pub async fn wait(client: &Client, kinds: &[&str], readiness: &Readiness, stop: &CancellationToken) -> bool {
    loop {
        match check(client, kinds).await {
            Ok(()) => {
                readiness.ready(CHECK);
                return true;
            }
            Err(why) => readiness.not_ready(CHECK, why.to_string()),
        }
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// Looks again and again; returns once the definitions are known not to be this program's.
pub async fn until_other(client: &Client, kinds: &[&str], readiness: &Readiness) -> Unserved {
    loop {
        match check(client, kinds).await {
            Ok(()) => {}
            Err(why @ Unserved::Other(_)) => {
                readiness.not_ready(CHECK, why.to_string());
                return why;
            }
            // objects of a kind that is not served cannot be written either
            Err(why @ (Unserved::Missing(_) | Unserved::Unknown(_))) => tracing::warn!(%why, "looked at the CRDs"),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// One look.
async fn check(client: &Client, kinds: &[&str]) -> Result<(), Unserved> {
    // the API server ends requests that it does not answer; discovery is small
    let served: Vec<String> = match client.list_api_group_resources(&format!("{GROUP}/{VERSION}")).await {
        Ok(list) => list.resources.into_iter().map(|resource| resource.kind).collect(),
        // a group that is not there has no error of the API's own
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return Err(Unserved::Unknown(error.to_string())),
    };
    let missing: Vec<&str> = kinds.iter().filter(|kind| !served.iter().any(|one| one == *kind)).copied().collect();
    if !missing.is_empty() {
        return Err(Unserved::Missing(missing.join(", ")));
    }
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut dropped = Vec::new();
    for ours in crds::all().iter().filter(|crd| kinds.iter().any(|kind| crd["spec"]["names"]["kind"] == *kind)) {
        let name = ours["metadata"]["name"].as_str().unwrap_or_default();
        let theirs = api.get(name).await.map_err(|error| Unserved::Unknown(error.to_string()))?;
        dropped.extend(lacks(ours, &json!(theirs)));
    }
    match dropped.split_off(NAMED.min(dropped.len())).len() {
        _ if dropped.is_empty() => Ok(()),
        0 => Err(Unserved::Other(dropped.join(", "))),
        more => Err(Unserved::Other(format!("{} and {more} more", dropped.join(", ")))),
    }
}

/// The fields and values of the status in our definition that theirs would drop or refuse.
fn lacks(ours: &Value, theirs: &Value) -> Vec<String> {
    let schema = |crd: &Value| {
        let versions = crd["spec"]["versions"].as_array()?;
        let version = versions.iter().find(|version| version["name"] == VERSION)?;
        Some(version["schema"]["openAPIV3Schema"]["properties"]["status"].clone())
    };
    let kind = ours["spec"]["names"]["kind"].as_str().unwrap_or_default();
    let (Some(ours), Some(theirs)) = (schema(ours), schema(theirs)) else { return vec![kind.into()] };
    let mut found = Vec::new();
    compare(&format!("{kind}.status"), &ours, &theirs, &mut found);
    found
}

fn compare(path: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    if theirs["x-kubernetes-preserve-unknown-fields"] == true {
        return;
    }
    for (name, field) in ours["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match theirs["properties"].get(name) {
            Some(theirs) => compare(&path, field, theirs, found),
            None => found.push(path),
        }
    }
    for inner in ["items", "additionalProperties"] {
        if ours[inner].is_object() {
            compare(path, &ours[inner], &theirs[inner], found);
        }
    }
    if let (Some(ours), Some(theirs)) = (ours["enum"].as_array(), theirs["enum"].as_array()) {
        let words = ours.iter().filter(|word| !theirs.contains(word));
        found.extend(words.map(|word| format!("{path}: {word}")));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::{Json, Router, extract::Path, extract::State, routing::get};

    use super::*;

    const KINDS: &[&str] = &["BestEffortJob", "VmImage", "Snapshot"];

    type Served = Arc<Mutex<Vec<Value>>>;

    /// An API server that has these definitions, and serves these kinds.
    async fn cluster(kinds: &'static [&'static str], crds: &Served) -> Client {
        crate::tls::install_provider();
        let resources: Vec<Value> = kinds
            .iter()
            .map(|kind| json!({"name": kind, "singularName": "", "namespaced": true, "kind": kind, "verbs": []}))
            .collect();
        let list = json!({"kind": "APIResourceList", "groupVersion": "vmdeploy.io/v1alpha1", "resources": resources});
        let crd = |State(crds): State<Served>, Path(name): Path<String>| async move {
            let crds = crds.lock().unwrap();
            Json(crds.iter().find(|crd| crd["metadata"]["name"] == name).cloned().unwrap())
        };
        let router = Router::new()
            .route("/apis/vmdeploy.io/v1alpha1", get(move || async move { Json(list) }))
            .route("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}", get(crd))
            .with_state(crds.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Client::try_from(kube::Config::new(uri)).unwrap()
    }

    fn without(pointer: &str, name: &str) -> Vec<Value> {
        let mut crds = crds::all().to_vec();
        let schema =
            crds[0].pointer_mut(&format!("/spec/versions/0/schema/openAPIV3Schema/properties/status{pointer}"));
        schema.unwrap()["properties"].as_object_mut().unwrap().remove(name).unwrap();
        crds
    }

    #[tokio::test]
    async fn a1_no_controller_works_with_definitions_that_would_drop_what_it_writes() {
        let crds: Served = Arc::new(Mutex::new(crds::all().to_vec()));
        let client = cluster(KINDS, &crds).await;
        assert_eq!(check(&client, KINDS).await, Ok(()));
        for (place, name, shown) in [
            ("/properties/members/items/properties/agent", "unproven", "BestEffortJob.status.members.agent.unproven"),
            ("/properties/origin", "silent", "BestEffortJob.status.origin.silent"),
            ("/properties/origin", "fenced", "BestEffortJob.status.origin.fenced"),
            ("/properties/slots/items", "cleared", "BestEffortJob.status.slots.cleared"),
            ("", "network", "BestEffortJob.status.network"),
        ] {
            *crds.lock().unwrap() = without(place, name);
            assert_eq!(check(&client, KINDS).await, Err(Unserved::Other(shown.into())));
            assert_eq!(check(&client, &["VmImage", "Snapshot"]).await, Ok(()), "who does not use it does not mind");
        }
        let mut old = crds::all().to_vec();
        old[0]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"] = json!({});
        *crds.lock().unwrap() = old;
        let text = check(&client, KINDS).await.unwrap_err().to_string();
        assert!(text.contains(" more)") && text.contains("helm upgrade vmdeploy-crds"), "{text}");
    }

    #[tokio::test]
    async fn what_is_missing_is_named() {
        let client = cluster(&["VmImage"], &Served::default()).await;
        let text = check(&client, KINDS).await.unwrap_err().to_string();
        assert_eq!(text, "the API server does not serve BestEffortJob, Snapshot of vmdeploy.io/v1alpha1");
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_no_older_one() {
        let client = Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        assert!(matches!(check(&client, KINDS).await, Err(Unserved::Unknown(_))));
    }

    #[test]
    fn a_value_that_would_be_refused_is_named_and_a_newer_definition_is_none() {
        let [job, ..] = crds::all();
        let mut other = job.clone();
        let status = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties";
        let fields = other.pointer_mut(status).unwrap();
        fields["later"] = json!({"type": "string"});
        assert_eq!(lacks(&job, &other), [""; 0]);
        other.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec").unwrap()["properties"] = json!({});
        assert_eq!(lacks(&job, &other), [""; 0], "a spec is not ours to write");
        let words = other.pointer_mut(&format!("{status}/phase/enum")).unwrap().as_array_mut().unwrap();
        words.retain(|word| word != "Evacuating");
        assert_eq!(lacks(&job, &other), ["BestEffortJob.status.phase: \"Evacuating\""]);
        assert_eq!(lacks(&job, &json!({})), ["BestEffortJob"]);
    }
}
