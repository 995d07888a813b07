//! What launchers say, of jobs whose agents are no pods. They are asked beside the passes, which take what is known by
//! then: a node that does not answer holds nothing else up.

use std::{collections::BTreeMap, net::SocketAddr};

use crate::{
    api::{BestEffortJob, BestEffortJobStatus, job::LauncherKind},
    config::{LaunchConfig, SiteConfig},
    controller::job::{
        Context,
        plan::{NodeSeen, PodSeen, uid},
    },
    driver::{
        Fact,
        launcher::{LaunchKey, LaunchedAgent, LauncherError},
    },
    names::{NodeName, agent_prefix},
};

/// A launcher that has not answered for so long is as one that never has.
const SILENCE: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);
/// What a launcher has said is as good as new for so long.
const FRESH: jiff::SignedDuration = jiff::SignedDuration::from_secs(2);

/// The nodes and agents of a job, as launchers tell of them.
#[derive(Default)]
pub(super) struct LaunchersSeen {
    pub(super) nodes: BTreeMap<NodeName, NodeSeen>,
    pub(super) pods: BTreeMap<String, PodSeen>,
    /// Why nothing is known of a node yet.
    pub(super) silent: BTreeMap<NodeName, String>,
}

fn configured<'a>(job: &BestEffortJob, ctx: &'a Context) -> Option<(&'a SiteConfig, &'a LaunchConfig)> {
    let site = ctx.config.sites.get(&job.spec.slots.site).filter(|_| job.spec.launcher == LauncherKind::TakTuk)?;
    Some((site, site.launch.as_ref()?))
}

/// What is known of the launchers on the nodes of the job's slots.
pub(super) fn launchers(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    key: &Fact<Result<LaunchKey, String>>,
    ctx: &Context,
) -> LaunchersSeen {
    let (Some((site, launch)), Some(Ok(key))) = (configured(job, ctx), key.known()) else {
        return LaunchersSeen::default();
    };
    let uid = uid(job);
    let slots = status.slots.iter().filter(|slot| slot.cleared.is_none());
    let places: Vec<(String, NodeName)> =
        slots.flat_map(|slot| slot.nodes.iter().map(|node| (slot.id.clone(), NodeName(node.clone())))).collect();
    ctx.memory.update(&uid, |memory| memory.launchers.retain(|place, _| places.contains(place)));
    let mut seen = LaunchersSeen::default();
    for place in places {
        let known = ctx.memory.get(&uid).launchers.remove(&place).unwrap_or_default();
        let (slot, node) = &place;
        let silent = known.silent.is_some_and(|since| ctx.clock.now().duration_since(since) >= SILENCE);
        match &known.found {
            Some((address, _)) if !silent => {
                seen.nodes.insert(node.clone(), NodeSeen { ready: true, ..NodeSeen::at(address.ip()) });
            }
            _ => {
                let why = known.error.as_ref().map(|error| (node.clone(), error.to_string()));
                seen.silent.extend(why);
            }
        }
        // a launcher is asked about its own node alone, whatever it says of others
        let its_own = |name: &str| {
            let named = status.everyone().find(|member| member.agent.as_ref().is_some_and(|agent| agent.pod == name));
            match named {
                Some(member) => {
                    let here = member.agent.as_ref().is_some_and(|agent| agent.slot == *slot);
                    here && member.node.as_ref() == Some(&node.0)
                }
                None => name.starts_with(&agent_prefix(&uid)),
            }
        };
        let told = known.agents.iter().filter(|agent| !silent || agent.ended.is_some());
        let started = told.map(|agent| (agent.name.clone(), pod(agent, node)));
        // what was never started is as dead as what has ended
        let refused = known.refused.iter().map(|(name, why)| {
            let ended = Some(format!("it was not started: {why}"));
            (name.clone(), PodSeen { node: node.0.clone(), ended, launched: true, ..PodSeen::default() })
        });
        seen.pods.extend(refused.chain(started).filter(|(name, _)| its_own(name)));
        let now = ctx.clock.now();
        if !known.looking && known.looked.is_none_or(|at| now.duration_since(at) >= FRESH) {
            let host = site.host_of(node).to_owned();
            look(job, place.clone(), host, (launch, key), ctx);
        }
    }
    seen
}

fn pod(agent: &LaunchedAgent, node: &NodeName) -> PodSeen {
    PodSeen {
        node: node.0.clone(),
        incarnation: agent.incarnation,
        ended: agent.ended.clone(),
        deleting: agent.ending,
        launched: true,
        ..PodSeen::default()
    }
}

/// Asks one launcher; the answer is a fact of later passes.
fn look(
    job: &BestEffortJob,
    place: (String, NodeName),
    host: String,
    (launch, key): (&LaunchConfig, &LaunchKey),
    ctx: &Context,
) {
    let (uid, port, key, ctx) = (uid(job), launch.port, key.of_slot(&place.0.as_str().into()), ctx.clone());
    let fixed = launch.addresses.get(&host).map(|address| SocketAddr::new(*address, port));
    let known = ctx.memory.update(&uid, |memory| {
        let known = memory.launchers.entry(place.clone()).or_default();
        known.looking = true;
        known.found.clone()
    });
    tokio::spawn(async move {
        let asked = async {
            let (address, key) = match (known, fixed) {
                (Some(found), _) => found,
                (None, Some(address)) => (address, key),
                (None, None) => (ctx.launchers.find(&host, port).await?, key),
            };
            let agents = ctx.launchers.at(address, &key).agents().await?;
            Ok::<_, LauncherError>(((address, key), agents))
        };
        let said = asked.await;
        let now = ctx.clock.now();
        let news = ctx.memory.update_known(&uid, |memory| {
            // its slot may be over by now
            let Some(known) = memory.launchers.get_mut(&place) else { return false };
            let before = known.clone();
            (known.looking, known.looked) = (false, Some(now));
            match said {
                Ok((found, agents)) => {
                    (known.found, known.agents, known.error) = (Some(found), agents, None);
                    known.silent = None;
                }
                Err(error) => {
                    known.silent.get_or_insert(now);
                    known.error = Some(error);
                }
            }
            (&known.found, &known.agents, &known.error) != (&before.found, &before.agents, &before.error)
        });
        if news == Some(true) {
            (ctx.wake)(&uid);
        }
    });
}
