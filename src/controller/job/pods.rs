//! The pod of an agent and the Secret with all it is told. Pure.
//!
//! The pod is bound to its node by name and stays there: it tolerates every taint without limit, is
//! never restarted, and nothing of it can be evicted before others (safety A7, A8).

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use k8s_openapi::{
    ByteString,
    api::core::v1::{
        Container, EmptyDirVolumeSource, EnvVar, HostPathVolumeSource, PersistentVolumeClaimVolumeSource, Pod, PodSpec,
        ResourceRequirements, Secret, SecretVolumeSource, SecurityContext, Toleration, Volume, VolumeMount,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};

use super::{
    identity::hostname,
    network,
    plan::{AgentPlacement, uid},
};
use crate::{
    api::{
        BestEffortJob, LABEL_COMPONENT, LABEL_INCARNATION, LABEL_JOB, LABEL_JOB_NAMESPACE, LABEL_JOB_UID, LABEL_MEMBER,
        job::{Distribution, LauncherKind, RunMembers},
        job_status::{MemberStatus, NetworkStatus},
    },
    config::{Config, SharedImagesConfig, SiteConfig, vxlan_port},
    driver::agent::{
        AgentConfig, CONFIG_DIR, ChainPeer, HostKey, KeptConfig, KeptKey, LeaseConfig, MasterConfig, MasterPlace,
        MemberNetwork, NODE_DIR, NetworkMember, PROTOCOL, Role, SHARED_DIR, SharedImages, VM_DIR, guest_silence,
    },
    names::{JobUid, MemberIndex, lease_directory},
    store::manifest::{MOST_OUTPUT, most_of_part},
    tls::Credentials,
    transfer::plan::chain::{Place, before},
};

/// A beat older than this is a lost lease (safety A2).
const BEAT_LIMIT: Duration = Duration::from_secs(15);
/// Time an agent gets to end by itself after its pod was deleted.
const TERMINATION: i64 = 30;
/// Generations on an agent's disk: two are kept, one is written, one was loaded.
const GENERATIONS: u64 = 4;
/// Overlays in an agent's chain: those that are left alone, one that is merged, a new one.
const OVERLAYS: u64 = 5;
/// Room for the state of devices, sockets and logs.
const DISK_MARGIN: u64 = 1 << 30;

/// Keys of the job, which follow from the operator's.
#[derive(Clone, Debug)]
pub struct Keys {
    /// By which people know the way in again.
    pub host: HostKey,
    /// Seals what nodes keep of its captures.
    pub kept: KeptKey,
}

impl Keys {
    /// Those of a job.
    pub fn of_job(secret: &str, job: &JobUid) -> Self {
        Self { host: HostKey::of_job(secret, job), kept: KeptKey::of_job(secret, job) }
    }
}

/// What an agent is told. None if the job has not been accepted.
pub fn config(
    job: &BestEffortJob,
    placement: &AgentPlacement,
    config: &Config,
    site: &SiteConfig,
    owner: u32,
    inputs: BTreeMap<String, String>,
    keys: Keys,
) -> Option<AgentConfig> {
    let (spec, status, uid) = (&job.spec, job.status.as_ref()?, uid(job));
    let network = match &status.network {
        None => None,
        Some(network) => Some(member_network(job, placement, network, config)?),
    };
    let name = job.metadata.name.clone().unwrap_or_default();
    let has_vm = has_vm(job, placement);
    let runs = has_vm && (spec.run.members == RunMembers::All || placement.member == 0);
    Some(AgentConfig {
        protocol: PROTOCOL,
        job: uid.clone(),
        namespace: job.metadata.namespace.clone().unwrap_or_default(),
        member: placement.member,
        members: spec.members,
        incarnation: placement.incarnation,
        slot: placement.slot.clone(),
        listen: placement.endpoint,
        lease: LeaseConfig {
            root: site.lease_root.clone(),
            directory: lease_directory(&uid, &placement.slot),
            owner,
            arm_within: site.agent_wait.into(),
            beat_limit: BEAT_LIMIT,
        },
        isolation: site.isolation.into(),
        not_after: placement.not_after,
        repository: repository(job, config, site),
        image: status.image.clone()?,
        vm: spec.vm.clone(),
        restore: placement.restore.filter(|_| has_vm),
        run: runs.then(|| spec.run.clone()),
        outputs: if runs { spec.outputs.clone() } else { Vec::new() },
        inputs: if has_vm { inputs } else { BTreeMap::new() },
        ssh_keys: spec.access.clone().unwrap_or_default().ssh_keys,
        hostname: hostname(&name, placement.member),
        network,
        master: placement.way_in.map(|listen| MasterConfig { listen, host_key: keys.host }),
        role: if has_vm { Role::Member } else { Role::Master },
        max_pause: spec.snapshots.max_pause.into(),
        guest_silence: guest_silence(),
        accelerator: config.agents.accelerator,
        guest_network: config.agents.guest_network,
        image_cache: config.agents.image_cache.0,
        kept: Some(KeptConfig { key: keys.kept, limit: config.agents.capture_cache.0 })
            .filter(|kept| has_vm && kept.limit > 0),
        chain: Vec::new(),
        shared_images: shared(job, placement, config)
            .map(|shared| SharedImages { directory: SHARED_DIR.into(), limit: shared.limit.0 }),
        images_by_taktuk: spec.distribution == Distribution::TakTuk,
        job_name: name,
    })
}

/// The repository as the agent reaches it.
fn repository(job: &BestEffortJob, config: &Config, site: &SiteConfig) -> String {
    let launch = site.launch.as_ref().filter(|_| job.spec.launcher == LauncherKind::TakTuk);
    launch.and_then(|launch| launch.repository.as_ref()).unwrap_or(&config.repository).clone()
}

/// Whom an agent fetches images from, the nearest first: nobody else, unless all of its incarnation are placed.
pub fn chain(
    job: &BestEffortJob,
    placement: &AgentPlacement,
    switches: &BTreeMap<MemberIndex, String>,
) -> Vec<ChainPeer> {
    let members = job.status.as_ref().map_or(&[][..], |status| &status.members);
    if job.spec.distribution == Distribution::NodeCache || !has_vm(job, placement) {
        return Vec::new();
    }
    let peer = |member: &MemberStatus| {
        let agent = member.agent.as_ref().filter(|agent| agent.incarnation == placement.incarnation)?;
        Some((member.index, agent.endpoint.parse().ok()?))
    };
    let Some(endpoints) = members.iter().map(peer).collect::<Option<BTreeMap<MemberIndex, SocketAddr>>>() else {
        return Vec::new();
    };
    let places: Vec<Place> =
        endpoints.keys().map(|member| Place { member: *member, switch: switches.get(member).cloned() }).collect();
    let before = before(&places, placement.member);
    before.into_iter().filter_map(|member| Some(ChainPeer { member, endpoint: *endpoints.get(&member)? })).collect()
}

/// The claim that the job's images come from, if they do.
fn shared<'a>(job: &BestEffortJob, placement: &AgentPlacement, config: &'a Config) -> Option<&'a SharedImagesConfig> {
    let wanted = job.spec.distribution == Distribution::Shared && has_vm(job, placement);
    config.agents.shared_images.as_ref().filter(|_| wanted)
}

/// Whether it has a virtual machine; a master on a node of its own has none.
fn has_vm(job: &BestEffortJob, placement: &AgentPlacement) -> bool {
    placement.member < job.spec.members
}

/// The port of VXLANs as configured now: a job keeps its network when new ones get none.
pub(super) fn network_port(config: &Config) -> u16 {
    config.job_network.as_ref().map_or_else(vxlan_port, |ours| ours.port)
}

/// The member's place in the job's network. None unless all members are placed.
fn member_network(
    job: &BestEffortJob,
    placement: &AgentPlacement,
    network: &NetworkStatus,
    config: &Config,
) -> Option<MemberNetwork> {
    let status = job.status.as_ref()?;
    let subnet = network.subnet.parse().ok()?;
    let door = network::door(subnet, placement.member);
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let members = status.members.iter().map(|member| {
        let endpoint: std::net::SocketAddr = member.agent.as_ref()?.endpoint.parse().ok()?;
        Some(NetworkMember {
            name: hostname(name, member.index),
            address: member.address.parse().ok()?,
            mac: member.mac.clone(),
            door_mac: Some(network::mac(network::door(subnet, member.index)).to_string()),
            node: endpoint.ip(),
        })
    });
    Some(MemberNetwork {
        subnet,
        vni: network.vni,
        port: if network.port == 0 { network_port(config) } else { network.port },
        mtu: u16::try_from(network.mtu).ok()?,
        door,
        door_mac: network::mac(door).to_string(),
        members: members.collect::<Option<_>>()?,
        master: match &status.master {
            None => None,
            Some(master) => Some(MasterPlace {
                mac: master.mac.clone(),
                node: master.agent.as_ref()?.endpoint.parse::<SocketAddr>().ok()?.ip(),
            }),
        },
    })
}

fn labels(job: &BestEffortJob, placement: &AgentPlacement) -> BTreeMap<String, String> {
    // a label's value is shorter than a name may be; the uid decides
    let short = |text: Option<&String>| text.map(|t| t.chars().take(63).collect::<String>()).unwrap_or_default();
    let trim = |text: String| text.trim_end_matches(['.', '-']).to_owned();
    BTreeMap::from([
        (LABEL_COMPONENT.into(), "agent".into()),
        (LABEL_JOB_UID.into(), uid(job).0),
        (LABEL_JOB.into(), trim(short(job.metadata.name.as_ref()))),
        (LABEL_JOB_NAMESPACE.into(), trim(short(job.metadata.namespace.as_ref()))),
        (LABEL_MEMBER.into(), placement.member.to_string()),
        (LABEL_INCARNATION.into(), placement.incarnation.to_string()),
    ])
}

fn metadata(job: &BestEffortJob, placement: &AgentPlacement, config: &Config) -> ObjectMeta {
    ObjectMeta {
        name: Some(placement.pod.clone()),
        namespace: Some(config.namespace.clone()),
        labels: Some(labels(job, placement)),
        ..ObjectMeta::default()
    }
}

/// The files of an agent's configuration.
pub fn files(told: &AgentConfig, credentials: &Credentials) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("config.json".into(), serde_json::to_string(told).unwrap_or_default()),
        ("ca.crt".into(), credentials.ca.clone()),
        ("tls.crt".into(), credentials.certificate.clone()),
        ("tls.key".into(), credentials.key.clone()),
    ])
}

/// The Secret of an agent.
pub fn secret(
    job: &BestEffortJob,
    placement: &AgentPlacement,
    config: &Config,
    told: &AgentConfig,
    credentials: &Credentials,
) -> Secret {
    let files = files(told, credentials).into_iter();
    Secret {
        metadata: metadata(job, placement, config),
        immutable: Some(true),
        data: Some(files.map(|(name, text)| (name, ByteString(text.into_bytes()))).collect()),
        ..Secret::default()
    }
}

/// The pod of an agent.
pub fn pod(job: &BestEffortJob, placement: &AgentPlacement, config: &Config) -> Pod {
    let agents = &config.agents;
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.into(),
        mount_path: path.into(),
        read_only: Some(read_only),
        ..VolumeMount::default()
    };
    let mut mounts =
        vec![mount("config", CONFIG_DIR, true), mount("node", NODE_DIR, false), mount("vm", VM_DIR, false)];
    let mut volumes = volumes(job, placement);
    if let Some(shared) = shared(job, placement, config) {
        mounts.push(mount("shared", SHARED_DIR, false));
        let claim = PersistentVolumeClaimVolumeSource { claim_name: shared.claim.clone(), read_only: None };
        volumes.push(Volume { name: "shared".into(), persistent_volume_claim: Some(claim), ..Volume::default() });
    }
    let container = Container {
        name: "agent".into(),
        image: Some(agents.image.clone()),
        image_pull_policy: Some(agents.image_pull_policy.clone()),
        command: Some(vec!["vmdeploy".into(), "agent".into(), "--config".into(), CONFIG_DIR.into()]),
        env: Some(vec![EnvVar { name: "RUST_LOG".into(), value: Some(agents.log.clone()), ..EnvVar::default() }]),
        resources: Some(resources(job, placement, config)),
        security_context: Some(SecurityContext { privileged: Some(true), ..SecurityContext::default() }),
        volume_mounts: Some(mounts),
        ..Container::default()
    };
    Pod {
        // what is stored is written to it afterwards, by whom it belongs to
        metadata: metadata(job, placement, config),
        spec: Some(PodSpec {
            node_name: Some(placement.node.0.clone()),
            host_network: Some(true),
            // the repository is found by its service name, also from the host's network
            dns_policy: Some("ClusterFirstWithHostNet".into()),
            restart_policy: Some("Never".into()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(TERMINATION),
            priority_class_name: agents.priority_class.clone(),
            image_pull_secrets: agents.pull_secrets(),
            // every taint, whatever its effect, without limit
            tolerations: Some(vec![Toleration { operator: Some("Exists".into()), ..Toleration::default() }]),
            containers: vec![container],
            volumes: Some(volumes),
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}

/// Most bytes that an agent has on its node's disk: all generations that it may hold at once, its
/// chain of overlays, and a margin. More than that is a fault, and not another job's to pay for.
fn disk_limit(job: &BestEffortJob, placement: &AgentPlacement) -> Quantity {
    if !has_vm(job, placement) {
        return Quantity(format!("{}Mi", DISK_MARGIN >> 20));
    }
    let vm = &job.spec.vm;
    let image = job.status.as_ref().and_then(|status| status.image.as_ref()).map_or(0, |image| image.virtual_size);
    let disk = vm.disk_over(image);
    let overlays = disk.saturating_add(disk / 64).saturating_mul(OVERLAYS);
    let all = most_of_part(vm, image).saturating_mul(GENERATIONS).saturating_add(overlays);
    Quantity(format!("{}Mi", all.saturating_add(MOST_OUTPUT).saturating_add(DISK_MARGIN) >> 20))
}

fn volumes(job: &BestEffortJob, placement: &AgentPlacement) -> Vec<Volume> {
    vec![
        Volume {
            name: "config".into(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(placement.pod.clone()),
                default_mode: Some(0o400),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        },
        Volume {
            name: "node".into(),
            host_path: Some(HostPathVolumeSource { path: NODE_DIR.into(), type_: Some("DirectoryOrCreate".into()) }),
            ..Volume::default()
        },
        Volume {
            name: "vm".into(),
            empty_dir: Some(EmptyDirVolumeSource {
                size_limit: Some(disk_limit(job, placement)),
                ..EmptyDirVolumeSource::default()
            }),
            ..Volume::default()
        },
    ]
}

/// Requests equal limits, so that the pod is the last to be evicted.
fn resources(job: &BestEffortJob, placement: &AgentPlacement, config: &Config) -> ResourceRequirements {
    let (vm, agents) = (&job.spec.vm, &config.agents);
    let (cpus, guest) = if has_vm(job, placement) { (vm.cpus, vm.memory.as_mebibytes()) } else { (0, 0) };
    let milli = u64::from(cpus) * u64::from(agents.milli_cpu_per_cpu) + u64::from(agents.milli_cpu_overhead);
    let memory = guest + agents.memory_overhead.as_mebibytes();
    let amounts = BTreeMap::from([
        ("cpu".to_owned(), Quantity(format!("{milli}m"))),
        ("memory".to_owned(), Quantity(format!("{memory}Mi"))),
    ]);
    ResourceRequirements { limits: Some(amounts.clone()), requests: Some(amounts), ..ResourceRequirements::default() }
}

#[cfg(test)]
#[path = "pods_tests.rs"]
mod tests;
