//! The launch key of a job's account: what operator, holds, launchers and joining nodes know each other by. It is read
//! from a Secret, and remembered.

use std::{collections::BTreeMap, time::Duration};

use super::ACCOUNT_AGE;
use crate::{
    api::{
        BestEffortJob, BestEffortJobStatus,
        job::LauncherKind,
        job_status::{DeployedNode, SlotState, SlotStatus},
    },
    config::SiteConfig,
    controller::{
        account,
        job::{
            Context, Error,
            memory::KeyRead,
            plan::{TokenSeen, uid},
        },
    },
    driver::{
        Fact,
        cluster::{ClusterError, joins::BootstrapToken},
        launcher::LaunchKey,
        site::Credentials,
    },
    names::{NodeName, lease_directory},
};

/// The key of a Secret in which a job's own launch key is.
const LAUNCH_KEY: &str = "launchKey";
/// A key that was found is read again after this time.
const KEY_AGE: jiff::SignedDuration = jiff::SignedDuration::from_secs(300);
/// Longest wait for a Secret.
const LIMIT: Duration = Duration::from_secs(5);

type Account = Fact<Result<Credentials, String>>;

/// What the key is needed for, and where it is.
struct Source<'a> {
    site: &'a SiteConfig,
    /// The section of the site's configuration.
    section: &'static str,
    why: &'static str,
    key_file: &'a str,
    secret: Option<&'a String>,
}

fn source<'a>(job: &BestEffortJob, ctx: &'a Context) -> Option<Source<'a>> {
    let site = ctx.config.sites.get(&job.spec.slots.site)?;
    if job.spec.launcher == LauncherKind::TakTuk {
        let launch = site.launch.as_ref()?;
        let (why, section) = ("launcher TakTuk needs a launch key", "launch");
        return Some(Source { site, section, why, key_file: &launch.key_file, secret: launch.secret.as_ref() });
    }
    let join = site.kadeploy.as_ref().filter(|_| job.spec.deployed().is_some())?.join.as_ref()?;
    let (why, section) = ("nodes that are deployed there join the cluster by a launch key", "kadeploy.join");
    Some(Source { site, section, why, key_file: &join.key_file, secret: join.secret.as_ref() })
}

/// The launch key of the job's account, or what is wrong with it. `Absent` where none is needed.
pub(super) async fn key(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    account: &Account,
    ctx: &Context,
) -> Result<Fact<Result<LaunchKey, String>>, Error> {
    let (Some(source), Some(Ok(credentials))) = (source(job, ctx), account.known()) else {
        return Ok(Fact::Absent);
    };
    let (uid, now) = (uid(job), ctx.clock.now());
    let remembered = ctx.memory.get(&uid);
    let known = remembered.launch_key;
    let mut launchers = remembered.launchers.values();
    let refused = launchers.clone().any(|launcher| launcher.found.is_none() && launcher.error.is_some());
    // those that have answered keep their slot's own, and holds read it at their beginning
    let waits = status.slots.iter().any(|slot| slot.state == SlotState::Waiting);
    let needed = status.slots.is_empty() || waits || launchers.any(|launcher| launcher.found.is_none());
    let age = |known: &KeyRead| if known.found.is_ok() && !refused { KEY_AGE } else { ACCOUNT_AGE };
    if let Some(known) = &known
        && ((known.found.is_ok() && !needed) || now.duration_since(known.read) < age(known))
    {
        return Ok(Fact::Known(known.found.clone()));
    }
    let site_name = &job.spec.slots.site;
    let (namespace, secret, entry) = match (&job.spec.slots.credentials, source.secret) {
        (Some(named), _) => {
            (job.metadata.namespace.clone().unwrap_or_default(), named.name.clone(), LAUNCH_KEY.to_owned())
        }
        (None, Some(secret)) => {
            let user = account::user(source.site, credentials).map_err(Error::Vanished)?;
            (ctx.config.namespace.clone(), secret.clone(), user)
        }
        (None, None) => {
            let missing = format!(
                "{}: set slots.credentials to a Secret with {LAUNCH_KEY}, or have sites.{site_name}.{}.secret set in the chart",
                source.why, source.section
            );
            return Ok(Fact::Known(Err(missing)));
        }
    };
    let late = || ClusterError::Unreachable(format!("no answer within {} s", LIMIT.as_secs()));
    let asked = tokio::time::timeout(LIMIT, account::read(&*ctx.view, &namespace, &secret)).await;
    let read = match asked.unwrap_or_else(|_| Err(late())) {
        Ok(Err(problem)) => Err(problem),
        Ok(Ok(found)) => {
            let data = found.data.as_ref().and_then(|data| data.get(&entry));
            let text = data.and_then(|bytes| std::str::from_utf8(&bytes.0).ok());
            let missing = || {
                format!(
                    "Secret {secret} of namespace {namespace} has no {entry}: put the launch key there that is in the \
                     file {} of the site's user",
                    source.key_file
                )
            };
            let key = text.ok_or_else(missing);
            key.and_then(|text| LaunchKey::read(text).map_err(|error| format!("{entry} of Secret {secret}: {error}")))
        }
        Err(error) => match known {
            Some(known) => known.found,
            None => return Err(error.into()),
        },
    };
    let found = match (read, ctx.memory.get(&uid).launch_key) {
        // launchers that are at work have the old one, also if its Secret is gone
        (Err(_), Some(KeyRead { found: Ok(old), .. })) if !status.slots.is_empty() => Ok(old),
        (read, _) => read,
    };
    ctx.memory.update(&uid, |memory| memory.launch_key = Some(KeyRead { found: found.clone(), read: now }));
    Ok(Fact::Known(found))
}

/// The tokens by which nodes of the job's slots may join the cluster, by slot and node; none where that is not ours to
/// see to.
pub(super) fn tokens(
    job: &BestEffortJob,
    status: &BestEffortJobStatus,
    key: &Fact<Result<LaunchKey, String>>,
    ctx: &Context,
) -> BTreeMap<String, BTreeMap<NodeName, TokenSeen>> {
    let known = ctx.memory.get(&uid(job));
    let of_node = |slot: &str, node: &DeployedNode| {
        let name = NodeName(node.node.clone());
        let found = key.known().and_then(|key| token(job, slot, &name, key.as_ref().ok()?, ctx));
        let unknown = key.known().and_then(|key| key.as_ref().err().cloned());
        let withdrawn = node.token.as_ref().is_some_and(|token| known.withdrawn.contains(token));
        let said = node.token.as_ref().and_then(|token| known.unoffered.get(token).or(known.denied.get(token)));
        let trouble = unknown.or_else(|| said.cloned());
        (name, TokenSeen { id: found.map(|token| token.id), withdrawn, trouble })
    };
    let of_slot = |slot: &SlotStatus| {
        let nodes = &slot.deployment.as_ref()?.nodes;
        Some((slot.id.clone(), nodes.iter().map(|node| of_node(&slot.id, node)).collect()))
    };
    status.slots.iter().filter_map(of_slot).collect()
}

/// The token by which a node of a slot may join the cluster, if that is ours to see to.
pub(in crate::controller::job) fn token(
    job: &BestEffortJob,
    slot: &str,
    node: &NodeName,
    key: &LaunchKey,
    ctx: &Context,
) -> Option<BootstrapToken> {
    let site = ctx.config.sites.get(&job.spec.slots.site).filter(|_| job.spec.deployed().is_some())?;
    site.kadeploy.as_ref()?.join.as_ref()?;
    let slot = slot.into();
    Some(BootstrapToken::of_node(&lease_directory(&uid(job), &slot), &key.of_slot(&slot), site.host_of(node)))
}
