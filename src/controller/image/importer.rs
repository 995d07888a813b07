//! How an importer is made: pure but for its certificate.
//!
//! An image from the web is imported in the operator's namespace. One from a claim is imported where
//! the claim is, with a short-lived certificate in a Secret that goes with the Job: an importer's
//! certificate allows nothing but to bring images, which the repository files under their digest. Logins that the image
//! names lie in such a Secret too, copies of what its namespace has: none is in the Job itself. So do the certificates of
//! whom importers trust beside others (`importers.ca`).

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use k8s_openapi::{
    api::{batch::v1::Job, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Resource as _, ResourceExt as _};
use serde_json::{Value, json};

use super::{
    Context,
    decide::{fingerprint, pinned},
    environment,
    logins::Logins,
};
use crate::{
    api::{
        LABEL_COMPONENT, VmImage,
        image::{INITRD, ImageSource, KERNEL, SOURCE},
    },
    driver::cluster::ClusterError,
    image::{FileOrder, ImportOrder, LoginOrder, OciPlace, Place},
    names::{Identity, JobUid},
};

/// Secret of the operator's namespace with the importers' certificate.
pub const SECRET: &str = "vmdeploy-importer-tls";
/// Longest time an import may take.
const DEADLINE: Duration = Duration::from_secs(3600);
/// How long Kubernetes keeps an importer that has ended: longer than the longest back-off.
const KEPT: Duration = Duration::from_secs(3600);
/// Where the certificate is mounted.
const CREDENTIALS: &str = "/etc/vmdeploy/tls";
/// Name of the file there with the certificates of `importers.ca`.
const TRUSTED: &str = "trusted.crt";
/// Where claims are mounted.
const CLAIMS: &str = "/claims";
/// Where files are put on their way.
const WORK: &str = "/work";
/// Largest disk.
const DISK_LIMIT: u64 = 1 << 40;
/// Largest kernel or initial ram disk.
const BOOT_LIMIT: u64 = 1 << 30;
/// Most memory of an importer, and of one that starts what it has made.
const MEMORY: &str = "512Mi";
const STARTING_MEMORY: &str = "1536Mi";
/// A user that owns nothing.
const NOBODY: i64 = 65534;

/// Namespace and name of the importer that the status calls for. The name is another one for other
/// content and for another try.
pub fn place(image: &VmImage, operator: &str) -> (String, String) {
    let namespace = if claims(image).is_empty() { operator.into() } else { image.namespace().unwrap_or_default() };
    let uid = JobUid(image.uid().unwrap_or_default()).short();
    let fingerprint = fingerprint(image);
    let same = |status: &&crate::api::VmImageStatus| {
        status.import.as_ref().is_none_or(|record| record.fingerprint == fingerprint)
    };
    let tries = image.status.as_ref().filter(same).map_or(0, |status| status.failures);
    (namespace, format!("import-{uid}-{fingerprint}-{tries}"))
}

/// The importer's Job, and its Secret if it has logins or certificates of others, or does not run in the operator's
/// namespace.
pub fn build(image: &VmImage, logins: &Logins, context: &Context) -> Result<(Job, Option<Secret>), ClusterError> {
    let invalid = |error: String| ClusterError::Invalid(error);
    let (namespace, name) = place(image, &context.config.namespace);
    let more = !logins.is_empty() || context.config.importers.ca.is_some();
    let own = more || namespace != context.config.namespace;
    let secret = if own { Some(secret(&namespace, &name, logins, context).map_err(invalid)?) } else { None };
    let mut job = job(image, context, &namespace, &name, if own { &name } else { SECRET })
        .map_err(|error| invalid(error.to_string()))?;
    if image.namespace().as_deref() == Some(&namespace) {
        job.metadata.owner_references = owner(image).map(|owner| vec![owner]);
    }
    Ok((job, secret))
}

fn owner(image: &VmImage) -> Option<OwnerReference> {
    image.controller_owner_ref(&())
}

fn job(
    image: &VmImage,
    context: &Context,
    namespace: &str,
    name: &str,
    secret: &str,
) -> Result<Job, serde_json::Error> {
    let mut order = order(image);
    if context.config.importers.ca.is_some() {
        for file in order.files_mut().filter(|file| !matches!(file.place, Place::Beneath { .. })) {
            file.trusted = Some(PathBuf::from(CREDENTIALS).join(TRUSTED));
        }
    }
    let starts = order.check.is_some();
    let order = serde_json::to_string(&order)?;
    let agents = &context.config.agents;
    let scratch = context.config.importers.scratch.to_string();
    let mut volumes = vec![
        json!({"name": "tls", "secret": {"secretName": secret, "defaultMode": 0o444}}),
        json!({"name": "work", "emptyDir": {"sizeLimit": scratch}}),
    ];
    let mut mounts = vec![
        json!({"name": "tls", "mountPath": CREDENTIALS, "readOnly": true}),
        json!({"name": "work", "mountPath": WORK}),
    ];
    for (index, claim) in claims(image).iter().enumerate() {
        let volume = format!("claim-{index}");
        volumes.push(json!({"name": volume, "persistentVolumeClaim": {"claimName": claim, "readOnly": true}}));
        mounts.push(json!({"name": volume, "mountPath": format!("{CLAIMS}/{claim}"), "readOnly": true}));
    }
    let labels: Value = json!({
        LABEL_COMPONENT: "importer",
        "app.kubernetes.io/name": "vmdeploy",
        "vmdeploy.io/image": image.name_any().chars().take(63).collect::<String>(),
        "vmdeploy.io/image-uid": image.uid(),
    });
    serde_json::from_value(json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            // the controller tries again by itself, with another Job
            "backoffLimit": 0,
            "activeDeadlineSeconds": DEADLINE.as_secs(),
            "ttlSecondsAfterFinished": KEPT.as_secs(),
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "imagePullSecrets": agents.pull_secrets(),
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": NOBODY, "runAsGroup": NOBODY, "fsGroup": NOBODY,
                        "fsGroupChangePolicy": "OnRootMismatch",
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "volumes": volumes,
                    "containers": [{
                        "name": "importer",
                        "image": agents.image,
                        "imagePullPolicy": agents.image_pull_policy,
                        "args": ["importer", "--repository", context.config.repository, "--credentials", CREDENTIALS,
                            "--work", WORK, "--order", order],
                        "volumeMounts": mounts,
                        "resources": {
                            // most need little of the disk: without a request it would be as much as the limit
                            "requests": {"cpu": "100m", "memory": "64Mi", "ephemeral-storage": "0"},
                            "limits": {
                                "memory": if starts { STARTING_MEMORY } else { MEMORY },
                                "ephemeral-storage": scratch,
                            },
                        },
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "readOnlyRootFilesystem": true,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }],
                },
            },
        },
    }))
}

fn secret(namespace: &str, name: &str, logins: &Logins, context: &Context) -> Result<Secret, String> {
    let lifetime = DEADLINE + Duration::from_secs(600);
    let credentials = context
        .authority
        .issue(&Identity::Importer, context.clock.now(), lifetime)
        .map_err(|error| error.to_string())?;
    let mut data: BTreeMap<String, String> =
        logins.iter().map(|(field, login)| (login_key(field), login.to_file())).collect();
    data.extend(context.config.importers.ca.iter().map(|ca| (TRUSTED.into(), ca.clone())));
    data.extend([
        ("ca.crt".into(), credentials.ca),
        ("tls.crt".into(), credentials.certificate),
        ("tls.key".into(), credentials.key),
    ]);
    serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": {LABEL_COMPONENT: "importer"}},
        "stringData": data,
    }))
    .map_err(|error| error.to_string())
}

/// Name of the file with the login for what a part of the spec names.
fn login_key(field: &str) -> String {
    format!("login-{field}")
}

/// What the importer is told, but for whom it trusts beside others, which the image does not say.
pub fn order(image: &VmImage) -> ImportOrder {
    let spec = &image.spec;
    let os = spec.os.as_ref();
    let file = |field: &str, source: &ImageSource, limit| FileOrder {
        field: format!("{field}{}", kind(source)),
        place: place_of(image, source),
        digest: source.digest().cloned(),
        limit,
        login: source.credentials().map(|secret| LoginOrder {
            secret: secret.name.clone(),
            file: PathBuf::from(CREDENTIALS).join(login_key(field)),
        }),
        trusted: None,
    };
    ImportOrder {
        disk: file(SOURCE, &spec.source, DISK_LIMIT),
        boot: environment::boot(image),
        check: spec.check(),
        format: spec.format,
        disk_size: spec.made_disk().map(|size| size.0),
        kernel: os.and_then(|os| os.kernel.as_ref()).map(|source| file(KERNEL, source, BOOT_LIMIT)),
        initrd: os.and_then(|os| os.initrd.as_ref()).map(|source| file(INITRD, source, BOOT_LIMIT)),
    }
}

/// What of a source says where its file is.
fn kind(source: &ImageSource) -> String {
    let environment = if source.environment.is_some() { ".environment" } else { "" };
    let kind = match (source.web(), source.on_claim(), &source.oci) {
        (Some(_), _, _) => ".http",
        (None, Some(_), _) => ".claim",
        (None, None, Some(_)) => ".oci",
        (None, None, None) => "",
    };
    format!("{environment}{kind}")
}

fn place_of(image: &VmImage, source: &ImageSource) -> Place {
    if let Some(web) = source.web() {
        return Place::Url(web.url.clone());
    }
    if let Some(claim) = source.on_claim() {
        return Place::Beneath { root: PathBuf::from(CLAIMS).join(&claim.name), path: claim.path.clone() };
    }
    if let Some(oci) = &source.oci {
        return Place::Oci(OciPlace {
            reference: oci.reference.clone(),
            file: oci.file.clone(),
            manifest: pinned(image).and_then(|pinned| pinned.manifests.get(&oci.reference)).cloned(),
            plain_http: oci.plain_http,
        });
    }
    // no importer is started for a description without an address
    Place::Url(environment::address(image).unwrap_or_default())
}

/// Names of the claims the image needs, each once.
fn claims(image: &VmImage) -> Vec<String> {
    let mut names: Vec<String> =
        image.spec.sources().filter_map(|(_, source)| Some(source.on_claim()?.name.clone())).collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
#[path = "importer_tests.rs"]
mod tests;
