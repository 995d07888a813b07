//! Reads what a decision about a request needs: the request itself, and the node whose token it was made with. Writes nothing.

use std::time::Duration;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use rcgen::{CertificateSigningRequestParams, DnType};

use super::{
    Context,
    decide::{Asked, NodeSeen, Seen, Subject},
};
use crate::{
    api::{
        BestEffortJob,
        job_status::{DeployedNode, DeploymentState, SlotStatus},
    },
    driver::cluster::joins::{GROUP, USER, certificate_life},
    names::NodeName,
};

/// The facts.
pub(super) fn observe(request: &CertificateSigningRequest, context: &Context) -> Seen {
    let (spec, status) = (&request.spec, request.status.clone().unwrap_or_default());
    let ours = spec.groups.iter().flatten().any(|group| group == GROUP);
    let token = spec.username.as_deref().and_then(|user| user.strip_prefix(USER)).filter(|_| ours);
    Seen {
        token: token.map(str::to_owned),
        answered: !status.conditions.unwrap_or_default().is_empty(),
        since: request.metadata.creation_timestamp.as_ref().map(|time| time.0),
        asked: Asked {
            signer: spec.signer_name.clone(),
            usages: spec.usages.clone().unwrap_or_default(),
            life: spec.expiration_seconds.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0))),
            subject: subject(&spec.request.0),
        },
        node: token.and_then(|token| node(token, context)),
    }
}

/// Whom a request is for; none if it cannot be read.
fn subject(pem: &[u8]) -> Option<Subject> {
    let read = CertificateSigningRequestParams::from_pem(std::str::from_utf8(pem).ok()?).ok()?.params;
    let text = |kind: &DnType| match read.distinguished_name.get(kind)? {
        rcgen::DnValue::PrintableString(text) => Some(text.as_str().to_owned()),
        rcgen::DnValue::Utf8String(text) => Some(text.clone()),
        _ => None,
    };
    Some(Subject {
        name: text(&DnType::CommonName)?,
        organization: text(&DnType::OrganizationName)?,
        parts: read.distinguished_name.iter().count(),
        other_names: read.subject_alt_names.len(),
    })
}

/// The node that a token is of.
fn node(token: &str, context: &Context) -> Option<NodeSeen> {
    context.view.jobs().iter().find_map(|job| {
        let slots = &job.status.as_ref()?.slots;
        slots.iter().find_map(|slot| {
            let nodes = &slot.deployment.as_ref()?.nodes;
            let node = nodes.iter().find(|node| node.token.as_deref() == Some(token))?;
            Some(node_seen(job, slot, node, context))
        })
    })
}

fn node_seen(job: &BestEffortJob, slot: &SlotStatus, node: &DeployedNode, context: &Context) -> NodeSeen {
    let site = context.config.sites.get(&job.spec.slots.site);
    let join = site.and_then(|site| site.kadeploy.as_ref()?.join.as_ref());
    NodeSeen {
        name: NodeName(node.node.clone()),
        is_to_join: slot.is_in_use() && matches!(node.state, DeploymentState::Deploying | DeploymentState::Joining),
        longest: join.filter(|join| join.short_certificates).map(|_| certificate_life(job.spec.slots.walltime.into())),
    }
}
