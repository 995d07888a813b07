//! How far the nodes of slots are with their hypervisor, in words.

use crate::{
    api::{
        BestEffortJobStatus,
        job_status::{DeployedNode, DeploymentState, DeploymentStatus, SlotStatus},
    },
    controller::job::plan::{DeploymentSeen, Seen},
    driver::kadeploy::{EnvironmentName, NodeState},
    names::NodeName,
};

/// Of a server that does not answer: its own words change, and each change is a write.
const SILENT: &str = "waits: the deployment server does not answer";
/// So many nodes are named.
const NAMED: usize = 12;

/// What is still to happen before agents can be placed; nothing if nothing is deployed, or all is.
pub(super) fn deploying(status: &BestEffortJobStatus, seen: &Seen) -> Option<String> {
    let slots = status.slots.iter().filter(|slot| slot.is_in_use());
    let pending = |slot: &&SlotStatus| {
        let nodes = slot.deployment.iter().flat_map(|deployment| &deployment.nodes);
        nodes.into_iter().any(|node| node.state != DeploymentState::Ready)
    };
    let mut what = None;
    let mut words = Vec::new();
    for slot in slots.filter(pending) {
        let Some(deployment) = &slot.deployment else { continue };
        what.get_or_insert_with(|| EnvironmentName::from(&deployment.environment));
        let known = seen.deployments.get(&slot.id);
        words.extend(deployment.nodes.iter().map(|node| format!("{} {}", node.node, of(node, deployment, known))));
    }
    let more = words.len().saturating_sub(NAMED);
    words.truncate(NAMED);
    if more > 0 {
        words.push(format!("and {more} more"));
    }
    what.map(|what| format!("{what}: {}", words.join(", ")))
}

fn of(node: &DeployedNode, deployment: &DeploymentStatus, seen: Option<&DeploymentSeen>) -> String {
    let said = || seen?.observation.as_ref()?.nodes.get(&NodeName(node.node.clone()));
    let silent = seen.is_some_and(|seen| seen.error.is_some());
    match (node.state, &node.error) {
        (DeploymentState::Waiting, Some(error)) if node.failures > 0 => {
            format!("failed in {} workflows; {error}", node.failures)
        }
        (DeploymentState::Waiting, Some(error)) => format!("waits: {error}"),
        (DeploymentState::Failed, Some(error)) => format!("given up: {error}"),
        (DeploymentState::Waiting, None) if silent => SILENT.into(),
        (DeploymentState::Waiting, None) => "is asked for".into(),
        // the large steps only: each change is a write
        (DeploymentState::Deploying, _) => match said() {
            _ if silent => SILENT.into(),
            Some(NodeState::Working { step }) => {
                let step = step.split(':').next().unwrap_or_default();
                format!("in {step}")
            }
            _ => format!("in workflow {}", deployment.last_workflow),
        },
        (DeploymentState::Joining, _) => "deployed, to join the cluster".into(),
        (DeploymentState::Ready, _) => "ready".into(),
        (DeploymentState::Failed, None) => "given up".into(),
    }
}
