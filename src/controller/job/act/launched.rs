//! Has launchers start agents, and end them. One that does not obey is told again by a later pass.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use crate::{
    controller::job::{Context, memory::LauncherKnown, plan::AgentPlacement},
    driver::{
        agent::LeaseConfig,
        launcher::{LaunchOrder, Launcher, LauncherError},
    },
    names::{JobUid, NodeName},
};

/// Has an agent started on its node. Nobody waits for it.
pub(super) fn start(
    placement: &AgentPlacement,
    files: BTreeMap<String, String>,
    lease: &LeaseConfig,
    uid: &JobUid,
    ctx: &Context,
) {
    let place = (placement.slot.0.clone(), placement.node.clone());
    let Some(launcher) = launcher(&place, uid, ctx) else {
        return tracing::warn!(job = %uid, node = %placement.node, "the launcher is not known");
    };
    let log = ctx.config.agents.log.clone();
    let lease = Path::new(&lease.root).join(&lease.directory);
    let order = LaunchOrder { incarnation: placement.incarnation, files, log, lease };
    let (name, uid, ctx) = (placement.pod.clone(), uid.clone(), ctx.clone());
    tokio::spawn(async move {
        let Err(error) = launcher.start(&name, &order).await else { return };
        tracing::warn!(job = %uid, node = %place.1, %error, "failed to have an agent started");
        if let LauncherError::Refused(why) = error {
            ctx.memory.update_known(&uid, |memory| {
                let known = memory.launchers.get_mut(&place);
                known.map(|known| known.refused.insert(name, why));
            });
            (ctx.wake)(&uid);
        }
    });
}

/// Has an agent end.
pub(super) fn end(name: &str, uid: &JobUid, ctx: &Context) {
    let remembered = ctx.memory.get(uid);
    ctx.memory.update(uid, |memory| memory.launchers.values_mut().for_each(|known| drop(known.refused.remove(name))));
    let has =
        |known: &LauncherKnown| known.agents.iter().any(|agent| agent.name == name) || known.refused.contains_key(name);
    let Some((place, _)) = remembered.launchers.iter().find(|(_, known)| has(known)) else { return };
    if let Some(launcher) = launcher(place, uid, ctx) {
        let (name, node, uid) = (name.to_owned(), place.1.clone(), uid.clone());
        tokio::spawn(async move {
            if let Err(error) = launcher.end(&name).await {
                tracing::warn!(job = %uid, %node, %error, "failed to have an agent end");
            }
        });
    }
}

fn launcher(place: &(String, NodeName), uid: &JobUid, ctx: &Context) -> Option<Arc<dyn Launcher>> {
    let (address, key) = ctx.memory.get(uid).launchers.remove(place)?.found?;
    Some(ctx.launchers.at(address, &key))
}
