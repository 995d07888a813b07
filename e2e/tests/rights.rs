//! What each process may do on the test bed, where the chart is installed: all it needs, and none of
//! what would let it out of its place.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use e2e::{TestBed, testbed::SYSTEM};
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    rbac::v1::RoleBinding,
};
use kube::{Api, Client, Config, api::PostParams};
use serde_json::json;
use tokio::time::sleep;
use vmdeploy::subresources::paths;

/// Namespace of the release.
const OWN: &str = SYSTEM;
/// A namespace that nobody bound to anything.
const OTHER: &str = "kube-public";
/// Where the API server looks for bootstrap tokens.
const TOKENS: &str = "kube-system";
/// All namespaces.
const ALL: &str = "";
/// A binding counts within this time.
const BINDING: Duration = Duration::from_secs(60);

/// Who, where, group, resource, verbs.
type Right = (&'static str, &'static str, &'static str, &'static str, &'static [&'static str]);

const NEEDED: &[Right] = &[
    ("operator", ALL, "vmdeploy.io", "besteffortjobs", &["list", "watch", "patch", "delete"]),
    ("operator", ALL, "vmdeploy.io", "besteffortjobs/status", &["patch"]),
    ("operator", ALL, "vmdeploy.io", "vmimages", &["list", "watch", "patch"]),
    ("operator", ALL, "vmdeploy.io", "vmimages/status", &["patch"]),
    ("operator", ALL, "vmdeploy.io", "vmimages/finalizers", &["update"]),
    ("operator", ALL, "vmdeploy.io", "snapshots", &["list", "watch", "create", "patch", "delete"]),
    ("operator", ALL, "vmdeploy.io", "snapshots/status", &["patch"]),
    ("operator", ALL, "events.k8s.io", "events", &["create", "patch"]),
    // a site of the test bed has its nodes deployed
    ("operator", ALL, "", "nodes", &["list", "watch", "delete"]),
    // they join with tokens
    ("operator", TOKENS, "", "secrets", &["create", "delete"]),
    ("operator", ALL, "certificates.k8s.io", "certificatesigningrequests", &["get", "list", "watch"]),
    ("operator", ALL, "certificates.k8s.io", "certificatesigningrequests/approval", &["update", "patch"]),
    ("operator", OWN, "", "pods", &["get", "list", "watch", "create", "patch", "delete"]),
    ("operator", OWN, "", "secrets", &["get", "create", "patch", "delete"]),
    ("operator", OWN, "batch", "jobs", &["get", "create", "delete"]),
    ("operator", OWN, "coordination.k8s.io", "leases", &["get", "create", "update"]),
    ("kget", ALL, "vmdeploy.io", "snapshots", &["list", "watch"]),
    ("kget", ALL, "vmdeploy.io", "snapshots/status", &["patch"]),
    ("kget", OWN, "coordination.k8s.io", "leases", &["get", "create", "update"]),
];

const DENIED: &[Right] = &[
    ("operator", OTHER, "", "secrets", &["get", "list", "watch", "create", "patch", "delete"]),
    ("operator", OWN, "", "secrets", &["list", "watch"]),
    ("operator", TOKENS, "", "secrets", &["get", "list", "watch", "patch", "update"]),
    ("operator", ALL, "certificates.k8s.io", "certificatesigningrequests", &["create", "delete"]),
    ("operator", ALL, "certificates.k8s.io", "signers", &["sign", "approve"]),
    ("operator", OTHER, "", "configmaps", &["get", "list"]),
    ("operator", OTHER, "", "pods", &["create", "delete", "list"]),
    ("operator", OTHER, "batch", "jobs", &["create"]),
    ("operator", ALL, "", "nodes", &["patch", "update", "create"]),
    ("operator", ALL, "rbac.authorization.k8s.io", "clusterroles", &["create", "bind", "escalate"]),
    ("kget", OWN, "", "secrets", &["get", "list"]),
    ("kget", OWN, "", "pods", &["list", "create", "delete"]),
    ("kget", ALL, "vmdeploy.io", "besteffortjobs", &["patch", "delete"]),
    ("kget", ALL, "vmdeploy.io", "besteffortjobs/status", &["patch"]),
    ("repository", OWN, "", "secrets", &["get", "list"]),
    ("repository", ALL, "vmdeploy.io", "snapshots", &["list"]),
];

async fn may(reviews: &Api<SubjectAccessReview>, right: &Right, verb: &str) -> Result<bool> {
    let (who, namespace, group, resource, _) = *right;
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{OWN}:vmdeploy-{who}")),
            groups: Some(vec!["system:serviceaccounts".into(), "system:authenticated".into()]),
            resource_attributes: Some(ResourceAttributes {
                namespace: Some(namespace.into()),
                group: Some(group.into()),
                resource: Some(resource.into()),
                subresource: Some(subresource.into()),
                verb: Some(verb.into()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[tokio::test]
async fn each_process_has_the_rights_it_uses_and_no_others() -> Result<()> {
    let Some(bed) = TestBed::find().await? else { return Ok(()) };
    let reviews: Api<SubjectAccessReview> = Api::all(bed.client);
    for (rights, expected) in [(NEEDED, true), (DENIED, false)] {
        for right in rights {
            for verb in right.4 {
                let allowed = may(&reviews, right, verb).await?;
                ensure!(allowed == expected, "{verb} {right:?}: allowed = {allowed}");
            }
        }
    }
    Ok(())
}

/// A person who may what a role of the chart says, in one namespace.
async fn person(bed: &TestBed, namespace: &str, name: &str, role: &str) -> Result<Client> {
    let bindings: Api<RoleBinding> = Api::namespaced(bed.client.clone(), namespace);
    let binding = serde_json::from_value(json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}],
    }))?;
    bindings.create(&PostParams::default(), &binding).await?;
    let mut config = Config::infer().await?;
    config.auth_info.impersonate = Some(name.into());
    Ok(Client::try_from(config)?)
}

/// What the cluster answers, as a number.
fn answer(asked: kube::Result<impl Sized>) -> Result<u16> {
    match asked {
        Err(kube::Error::Api(status)) => Ok(status.code),
        // a connection that the API server has closed meanwhile: it is asked again
        Err(kube::Error::Service(_)) => Ok(0),
        Err(other) => bail!(other),
        Ok(_) => bail!("there is no such job"),
    }
}

/// What someone is told who wants into the guests of a job that is not there: its logs, a command, a port, its console.
async fn answers(client: &Client, namespace: &str) -> Result<[u16; 4]> {
    let get = |path: String| http::Request::get(path).body(Vec::new());
    let logs = get(paths::logs(namespace, "nothing", 0, false))?;
    let exec = http::Request::post(paths::exec(namespace, "nothing", 0)).header("content-type", "application/json");
    let exec = exec.body(serde_json::to_vec(&json!({"command": ["id"], "timeout": 5}))?)?;
    let port = get(paths::port(namespace, "nothing", 0, 22))?;
    let console = http::Request::post(paths::console(namespace, "nothing", 0)).body(Vec::new())?;
    Ok([
        answer(client.request_text(logs).await)?,
        answer(client.request_text(exec).await)?,
        answer(client.connect(port).await)?,
        answer(client.connect(console).await)?,
    ])
}

#[tokio::test]
async fn only_who_may_edit_jobs_gets_into_their_guests() -> Result<()> {
    let Some(bed) = TestBed::find().await? else { return Ok(()) };
    let namespace = bed.namespace("rights").await?;
    for (name, role, log, inside) in [("vera", "vmdeploy-view", 404, 403), ("eddy", "vmdeploy-edit", 403, 404)] {
        let client = person(&bed, &namespace, name, role).await?;
        let expected = [log, inside, inside, inside];
        let begun = Instant::now();
        loop {
            let answers = answers(&client, &namespace).await?;
            if answers == expected {
                break;
            }
            // a binding counts once the API server's own watch has brought it
            ensure!(begun.elapsed() < BINDING, "{name}: {answers:?}");
            sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(())
}
