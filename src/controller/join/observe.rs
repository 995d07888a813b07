//! Reads what a decision about a request needs: the request itself, and the node whose token it was made with. Writes
//! nothing.

use std::time::Duration;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use rcgen::{CertificateSigningRequestParams, DnType, DnValue, PublicKeyData as _};

use super::{
    Context,
    decide::{Answered, Asked, Newcomer, Seen, Stage, Subject},
};
use crate::{
    api::{
        BestEffortJob,
        job_status::{DeployedNode, DeploymentState, SlotStatus},
    },
    controller::job::plan::uid,
    driver::cluster::joins::{GROUP, LEAST_LIFE, REASON, USER},
    names::NodeName,
};

/// The facts.
pub(super) fn observe(request: &CertificateSigningRequest, context: &Context) -> Seen {
    let Some(token) = token(request) else { return Seen::default() };
    let spec = &request.spec;
    let subject = subject(request);
    let newcomer = newcomer(token, context);
    let key = subject.as_ref().map(|subject| &subject.key);
    let rival = (context.requests)().iter().find_map(|other| {
        let is_rival = self::token(other) == Some(token)
            && answered(other) == Some(Answered::Approved { by_us: true })
            && self::subject(other).map(|other| other.key).as_ref() != key;
        is_rival.then(|| other.metadata.name.clone().unwrap_or_default())
    });
    Seen {
        token: Some(token.to_owned()),
        answered: answered(request),
        since: request.metadata.creation_timestamp.as_ref().map(|time| time.0),
        asked: Asked {
            signer: spec.signer_name.clone(),
            usages: spec.usages.clone().unwrap_or_default(),
            life: spec.expiration_seconds.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0))),
            subject,
        },
        newcomer,
        rival,
    }
}

/// Id of the token of ours that a request was made with.
fn token(request: &CertificateSigningRequest) -> Option<&str> {
    let ours = request.spec.groups.iter().flatten().any(|group| group == GROUP);
    request.spec.username.as_deref().filter(|_| ours)?.strip_prefix(USER)
}

fn answered(request: &CertificateSigningRequest) -> Option<Answered> {
    let conditions = request.status.as_ref()?.conditions.as_ref()?;
    let approved = conditions.iter().find(|condition| condition.type_ == "Approved");
    match approved {
        Some(condition) => Some(Answered::Approved { by_us: condition.reason.as_deref() == Some(REASON) }),
        None => (!conditions.is_empty()).then_some(Answered::Otherwise),
    }
}

/// Whom a request is for; none if it cannot be read.
fn subject(request: &CertificateSigningRequest) -> Option<Subject> {
    let pem = std::str::from_utf8(&request.spec.request.0).ok()?;
    let read = CertificateSigningRequestParams::from_pem(pem).ok()?;
    let names = &read.params.distinguished_name;
    let text = |kind: &DnType| match names.get(kind)? {
        DnValue::PrintableString(text) => Some(text.as_str().to_owned()),
        DnValue::Utf8String(text) => Some(text.clone()),
        _ => None,
    };
    Some(Subject {
        name: text(&DnType::CommonName)?,
        organization: text(&DnType::OrganizationName)?,
        parts: names.iter().count(),
        other_names: read.params.subject_alt_names.len(),
        key: read.public_key.der_bytes().to_vec(),
    })
}

/// The node that a token is of.
fn newcomer(token: &str, context: &Context) -> Option<Newcomer> {
    context.view.jobs().iter().find_map(|job| {
        let slots = &job.status.as_ref()?.slots;
        slots.iter().find_map(|slot| {
            let nodes = &slot.deployment.as_ref()?.nodes;
            let node = nodes.iter().find(|node| node.token.as_deref() == Some(token))?;
            Some(of_node(job, slot, node, context))
        })
    })
}

fn of_node(job: &BestEffortJob, slot: &SlotStatus, node: &DeployedNode, context: &Context) -> Newcomer {
    let site = context.config.sites.get(&job.spec.slots.site);
    let join = site.and_then(|site| site.kadeploy.as_ref()?.join.as_ref());
    // its token says how long the slot has been to last since it was to join, or less
    let left = slot.until.as_ref().map(|until| until.0.duration_since(node.since.0));
    let left = left.and_then(|left| Duration::try_from(left).ok()).unwrap_or_default();
    let stage = match node.state {
        DeploymentState::Joining if slot.lets_in() => Stage::Joins,
        DeploymentState::Waiting | DeploymentState::Deploying if slot.lets_in() => Stage::NotYet,
        _ => Stage::NoMore,
    };
    Newcomer {
        job: uid(job),
        name: NodeName(node.node.clone()),
        stage,
        longest: join.filter(|join| join.short_certificates).map(|_| left.max(LEAST_LIFE)),
    }
}
