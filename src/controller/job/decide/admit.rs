//! Pending: what the schema cannot check. A mistake is a condition, and is mended by `kubectl apply`.

use std::time::Duration;

use super::{
    adopt::{Source, differences},
    draft::{Draft, Problem, wrong},
    master::wanted,
};
use crate::{
    api::{
        BestEffortJobSpec, JobPhase, Reason,
        job::{Allocation, Distribution, LauncherKind, Master, NetworkKind},
        job_status::{NetworkStatus, ResolvedImage},
    },
    controller::job::{
        identity, network,
        plan::{ImageSeen, SiteSeen},
    },
    driver::Fact,
};

/// How often something is looked at that no watch tells of.
const SLOW: Duration = Duration::from_secs(15);

/// What was found good.
pub(super) struct Checked<'a> {
    image: ResolvedImage,
    source: Option<Source<'a>>,
}

impl<'a> Draft<'a> {
    /// Accepts the job, or says what is wrong.
    pub(super) fn admit(&mut self) {
        self.note_adopted();
        match self.check() {
            Ok(Checked { source: Some(source), .. }) if self.must_adopt() => {
                match self.seen.source.as_ref().and_then(|seen| seen.refused.clone()) {
                    Some((reason, message)) => self.refuse(reason, message),
                    None => self.status.retry = None,
                }
                self.phase(JobPhase::Pending);
                self.adopt_generation(source);
            }
            Ok(checked) => {
                self.accept(checked);
                self.phase(JobPhase::Queued);
                self.status.attempt = self.status.attempt.max(1);
                self.queued();
            }
            Err(Some((reason, message))) => {
                self.refuse(reason, message);
                self.phase(JobPhase::Pending);
                self.because("refused");
            }
            Err(None) => self.because("not known enough yet"),
        }
    }

    fn refuse(&mut self, reason: Reason, message: String) {
        self.wake(SLOW);
        let same = self.status.retry.as_ref().is_some_and(|retry| retry.reason == reason && retry.message == message);
        if !same {
            self.status.retry = None;
            self.stall(reason, message);
        }
    }

    pub(super) fn accept(&mut self, Checked { image, source }: Checked<'_>) {
        self.status.image = Some(image);
        self.status.retry = None;
        self.choose_period();
        self.status.network = match source {
            Some(source) => source.network(),
            None => self.network(),
        };
        let subnet = self.status.network.as_ref().and_then(|network| network.subnet.parse().ok());
        self.status.members = identity::members(subnet, self.job.spec.members);
    }

    /// The job's network: the one it has, if that fits, or what is offered.
    fn network(&self) -> Option<NetworkStatus> {
        let seen = &self.seen.network;
        let kept = self.status.network.clone().filter(|network| fits(network, self.job.spec.members));
        let offered = || {
            seen.subnet.map(|subnet| NetworkStatus {
                subnet: subnet.to_string(),
                mtu: seen.mtu.into(),
                vni: 0,
                port: 0,
                way_in: None,
            })
        };
        kept.or_else(offered)
    }

    /// What stands against a network for the job.
    fn no_network(&self) -> Option<(Reason, String)> {
        let seen = &self.seen.network;
        let Some(pool) = seen.pool else {
            let message = "network.master is the way in to the job's network, and the operator's configuration gives jobs none: use None";
            let has = self.status.network.is_some() || wanted(&self.job.spec) == Master::None;
            return (!has).then(|| (Reason::NotSupported, message.to_owned()));
        };
        if let Some(node) = &seen.overlap {
            let message = format!(
                "the pool of job networks, {pool}, contains the address of node {node}: jobNetwork.pool of the operator's configuration must overlap nothing that nodes or guests reach"
            );
            return Some((Reason::PoolOverlaps, message));
        }
        if self.network().is_none() {
            let message = format!(
                "no subnet for {} members is free in the pool of job networks, {}: jobs that are deleted give theirs back; jobNetwork.pool of the operator's configuration may be larger",
                self.job.spec.members, pool
            );
            return Some((Reason::NoSubnet, message));
        }
        None
    }

    /// The network of guests that go on: they have it, or never will.
    fn no_network_of(&self, source: Source<'_>) -> Option<(Reason, String)> {
        let lacks = source.guests.network.is_none() && wanted(&self.job.spec) != Master::None;
        let message =
            "network.master is the way in to the job's network, and the snapshot's guests have none: use None";
        lacks.then(|| (Reason::NotSupported, message.to_owned()))
    }

    /// What to run, or what is wrong, or nothing if that is not known yet.
    pub(super) fn check(&mut self) -> Result<Checked<'a>, Problem> {
        let spec = &self.job.spec;
        if let Some(feature) = unsupported(spec) {
            return wrong(Reason::NotSupported, feature);
        }
        let site = self.site()?;
        let source = self.source()?;
        let image = match source.filter(|_| spec.image.is_none()) {
            Some(source) => source.manifest.image.clone(),
            None => self.image()?,
        };
        if let Some(source) = source {
            let found = differences(spec, &image, source);
            if !found.is_empty() {
                let name = spec.restore_from.as_ref().map(|from| from.snapshot.as_str()).unwrap_or_default();
                return wrong(Reason::SnapshotMismatch, format!("Snapshot {name} does not fit: {}", found.join("; ")));
            }
        }
        self.account()?;
        if let Some(missing) = not_offered(spec, site, self.seen.setup.shared_images) {
            return wrong(Reason::NotSupported, missing);
        }
        self.prerequisites()?;
        let problem = match source {
            Some(source) => self.no_network_of(source),
            None => self.no_network(),
        };
        if let Some(problem) = problem {
            return Err(Some(problem));
        }
        match self.no_room(&image) {
            Ok(()) => Ok(Checked { image, source }),
            Err(None) => self.not_known(),
            Err(problem) => Err(problem),
        }
    }

    /// The job's site, if it is configured and its nodes have room for a guest.
    fn site(&self) -> Result<&'a SiteSeen, Problem> {
        let spec = &self.job.spec;
        let Some(site) = &self.seen.site else {
            let known: Vec<&str> = self.seen.setup.sites.iter().map(String::as_str).collect();
            let (name, known) = (&spec.slots.site, known.join(", "));
            return wrong(Reason::UnknownSite, format!("site {name:?} is not configured; slots.site may be: {known}"));
        };
        if let Some(most) = site.max_memory.filter(|most| spec.vm.memory.0 > *most) {
            let most = crate::api::quantity::Bytes(most);
            let message =
                format!("vm.memory is {}, but nodes of site {} can spare {most}", spec.vm.memory, spec.slots.site);
            return wrong(Reason::MemoryTooLarge, message);
        }
        Ok(site)
    }

    /// Whether there is an account for the job at its site.
    fn account(&mut self) -> Result<(), Problem> {
        match &self.seen.account {
            Fact::Known(Ok(())) => Ok(()),
            Fact::Known(Err(message)) => wrong(Reason::CredentialsMissing, message.clone()),
            Fact::Absent => {
                let message = format!(
                    "site {site} has no account for this namespace: set slots.credentials to a Secret with username and password, or tls.crt and tls.key, or have sites.{site}.users in the chart name this namespace",
                    site = self.job.spec.slots.site
                );
                wrong(Reason::CredentialsMissing, message)
            }
            Fact::Unknown { .. } => self.not_known(),
        }
    }

    /// Whether all else that the job needs is there: a launch key, the environment, inputs.
    fn prerequisites(&mut self) -> Result<(), Problem> {
        match &self.seen.launch_key {
            Fact::Absent | Fact::Known(Ok(())) => {}
            Fact::Known(Err(message)) => return wrong(Reason::CredentialsMissing, message.clone()),
            Fact::Unknown { .. } => return self.not_known(),
        }
        match &self.seen.environment {
            Fact::Absent | Fact::Known(Ok(())) => {}
            Fact::Known(Err(problem)) => return Err(Some(problem.clone())),
            Fact::Unknown { .. } => return self.not_known(),
        }
        match &self.seen.missing_inputs {
            Fact::Absent => Ok(()),
            Fact::Known(missing) if missing.is_empty() => Ok(()),
            Fact::Known(missing) => wrong(Reason::InputMissing, format!("not found: {}", missing.join(", "))),
            Fact::Unknown { .. } => self.not_known(),
        }
    }

    /// The image that the spec names, or the default one.
    fn image(&mut self) -> Result<ResolvedImage, Problem> {
        match &self.seen.image {
            Fact::Known(ImageSeen::Ready(image)) => Ok(image.clone()),
            Fact::Known(ImageSeen::Importing(message)) => {
                self.phase(JobPhase::ImagePreparing);
                self.because(if message.is_empty() { "image is to be imported" } else { "image is being imported" });
                Err(None)
            }
            Fact::Known(ImageSeen::Broken(reason, message)) => Err(Some((*reason, message.clone()))),
            Fact::Absent => {
                let message = match &self.job.spec.image {
                    Some(image) => format!(
                        "there is no VmImage {:?} in this namespace, and no standard one of this name",
                        image.name
                    ),
                    None => "image is not set, and the operator has no default image: name a VmImage, or have defaultImage in the chart name a standard one".to_owned(),
                };
                Err(Some((Reason::ImageNotFound, message)))
            }
            Fact::Unknown { .. } => self.not_known(),
        }
    }

    fn not_known<T>(&mut self) -> Result<T, Problem> {
        self.wake(Duration::from_secs(2));
        Err(None)
    }
}

/// Whether a network has the right size for this many members.
pub(crate) fn fits(network: &NetworkStatus, members: u32) -> bool {
    let subnet = network.subnet.parse::<ipnet::Ipv4Net>();
    subnet.is_ok_and(|subnet| subnet.prefix_len() == network::prefix(members))
}

/// What this version does not have, and what to write instead.
fn unsupported(spec: &BestEffortJobSpec) -> Option<String> {
    let network = spec.network.clone().unwrap_or_default();
    if network.kind != NetworkKind::Overlay {
        return Some(format!("network.kind {:?} is not available in this version: use Overlay", network.kind));
    }
    None
}

/// What the job wants that its site or this installation does not have, and what to write instead.
fn not_offered(spec: &BestEffortJobSpec, site: &SiteSeen, shared_images: bool) -> Option<String> {
    let name = &spec.slots.site;
    if spec.slots.allocation == Allocation::PerMember && !site.capabilities.per_member {
        return Some(format!("site {name} cannot give back one slot of several: slots.allocation must be Gang there"));
    }
    if spec.distribution == Distribution::Shared && !shared_images {
        let message = "there is no claim of shared images: use distribution Broadcast, or have agents.sharedImages.claim set in the chart";
        return Some(message.to_owned());
    }
    if spec.deployed().is_some() && site.deployment_wait.is_none() {
        return Some(format!(
            "site {name} has no deployment server: set hypervisor.deploy to Never, or have sites.{name}.kadeploy set in the chart"
        ));
    }
    if spec.launcher == LauncherKind::TakTuk && !site.launches {
        return Some(format!(
            "no agents are started in slots of site {name}: set launcher to Pod, or have sites.{name}.launch set in the chart"
        ));
    }
    None
}
