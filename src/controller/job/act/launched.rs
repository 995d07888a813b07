//! Has launchers start agents, and end them. One that does not obey is told again by a later pass.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    controller::job::{Context, plan::AgentPlacement},
    driver::launcher::{LaunchOrder, LaunchedAgent, Launcher},
    names::{JobUid, NodeName},
};

/// Has an agent started on its node. Nobody waits for it.
pub(super) fn start(placement: &AgentPlacement, files: BTreeMap<String, String>, uid: &JobUid, ctx: &Context) {
    let place = (placement.slot.0.clone(), placement.node.clone());
    let Some(launcher) = launcher(&place, uid, ctx) else {
        return tracing::warn!(job = %uid, node = %placement.node, "the launcher is not known");
    };
    let order = LaunchOrder { incarnation: placement.incarnation, files, log: ctx.config.agents.log.clone() };
    let (name, node, uid) = (placement.pod.clone(), placement.node.clone(), uid.clone());
    tokio::spawn(async move {
        if let Err(error) = launcher.start(&name, &order).await {
            tracing::warn!(job = %uid, %node, %error, "failed to have an agent started");
        }
    });
}

/// Has an agent end. Whether a launcher has started it.
pub(super) fn end(name: &str, uid: &JobUid, ctx: &Context) -> bool {
    let remembered = ctx.memory.get(uid);
    let has = |agents: &[LaunchedAgent]| agents.iter().any(|agent| agent.name == name);
    let Some((place, _)) = remembered.launchers.iter().find(|(_, known)| has(&known.agents)) else { return false };
    if let Some(launcher) = launcher(place, uid, ctx) {
        let (name, node, uid) = (name.to_owned(), place.1.clone(), uid.clone());
        tokio::spawn(async move {
            if let Err(error) = launcher.end(&name).await {
                tracing::warn!(job = %uid, %node, %error, "failed to have an agent end");
            }
        });
    }
    true
}

fn launcher(place: &(String, NodeName), uid: &JobUid, ctx: &Context) -> Option<Arc<dyn Launcher>> {
    let (address, key) = ctx.memory.get(uid).launchers.remove(place)?.found?;
    Some(ctx.launchers.at(address, &key))
}
