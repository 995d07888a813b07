//! What an agent is told at its start, by the Secret in its pod. Data only.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{HostKey, KeptKey};
use crate::{
    api::{
        job::{OutputFile, RunSpec, VmSpec},
        job_status::ResolvedImage,
    },
    names::{Generation, Incarnation, JobUid, MemberIndex, SlotId},
};

/// Where an agent pod finds its Secret: `config.json`, `ca.crt`, `tls.crt`, `tls.key`.
pub const CONFIG_DIR: &str = "/etc/vmdeploy/agent";
/// The directory of the node that agent pods mount at the same path (`hostPath`,
/// `DirectoryOrCreate`): leases and the cache of images.
pub const NODE_DIR: &str = "/var/lib/vmdeploy";
/// Where agent pods mount the claim of shared images, if the job uses them.
pub const SHARED_DIR: &str = "/var/lib/vmdeploy-shared";
/// Usual root of the leases (`LeaseConfig::root`), below [`NODE_DIR`].
pub const LEASE_ROOT: &str = "/var/lib/vmdeploy/leases";
/// Cache of images, below [`NODE_DIR`].
pub const IMAGE_DIR: &str = "/var/lib/vmdeploy/images";
/// Where the VM's memory and disks lie: an `emptyDir` of the pod, on the node's disk.
pub const VM_DIR: &str = "/run/vmdeploy-vm";
/// All an agent knows, from the Secret mounted into its pod (with `ca.crt`, `tls.crt`, `tls.key`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentConfig {
    /// [`super::PROTOCOL`] of the operator that wrote it.
    pub protocol: u32,
    /// Uid of the job.
    pub job: JobUid,
    /// Its name, for people.
    pub job_name: String,
    /// Its namespace, for people.
    pub namespace: String,
    /// The member this agent has.
    pub member: MemberIndex,
    /// Number of members of the job.
    pub members: u32,
    /// The incarnation it belongs to.
    pub incarnation: Incarnation,
    /// The slot it lives on.
    pub slot: SlotId,
    /// Address it serves on (the node's own address; host network).
    pub listen: SocketAddr,
    /// The lease.
    pub lease: LeaseConfig,
    /// Silence of the leading operator and of the repository after which it kills its VM (`T_iso`).
    pub isolation: Duration,
    /// After this time it refuses to start anything (safety A8).
    pub not_after: Timestamp,
    /// `host:port` of the repository.
    pub repository: String,
    /// The image.
    pub image: ResolvedImage,
    /// Shape of the VM.
    pub vm: VmSpec,
    /// The generation to restore; absent: boot from the image.
    pub restore: Option<Generation>,
    /// The command, if this member runs one.
    pub run: Option<RunSpec>,
    /// Files to keep at the end.
    pub outputs: Vec<OutputFile>,
    /// Small input files: path in the guest, content.
    pub inputs: BTreeMap<String, String>,
    /// Public ssh keys for root of the guest.
    pub ssh_keys: Vec<String>,
    /// Host name of the guest.
    pub hostname: String,
    /// The job's own network, if jobs have one.
    pub network: Option<MemberNetwork>,
    /// The way in to the members, if this agent serves it.
    #[serde(default)]
    pub master: Option<MasterConfig>,
    /// What it is there for.
    #[serde(default)]
    pub role: Role,
    /// Limit of the barrier: a stopped guest that hears nothing this long runs on.
    pub max_pause: Duration,
    /// How QEMU runs the guest.
    pub accelerator: Accelerator,
    /// What the guest may reach by its first network card.
    pub guest_network: GuestNetwork,
    /// A guest whose agent does not answer for this long while it runs is told of; it is not ended.
    #[serde(default = "guest_silence")]
    pub guest_silence: Duration,
    /// Most bytes of images that the node keeps beyond those in use.
    #[serde(default = "image_cache")]
    pub image_cache: u64,
    /// Whom images are fetched from, the nearest first; absent: from the repository only.
    #[serde(default)]
    pub chain: Vec<ChainPeer>,
    /// Images on a file system that all nodes see; absent: the job does not use them.
    #[serde(default)]
    pub shared_images: Option<SharedImages>,
    /// Whether images come by the hold's TakTuk, if it has one.
    #[serde(default)]
    pub images_by_taktuk: bool,
    /// What the node keeps of the job's captures for the next agent; absent: nothing.
    #[serde(default)]
    pub kept: Option<KeptConfig>,
}

/// The agent of another member, as it passes images on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChainPeer {
    /// Its member.
    pub member: MemberIndex,
    /// Address it serves on.
    pub endpoint: SocketAddr,
}

/// Images on a file system that all nodes see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SharedImages {
    /// Where it is mounted.
    pub directory: PathBuf,
    /// Most bytes of all images there.
    pub limit: u64,
}

/// What a node keeps of a job's captures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptConfig {
    /// Seals it.
    pub key: KeptKey,
    /// Most bytes that the node keeps of all jobs.
    pub limit: u64,
}

/// A guest boots, and its agent with it, within this time.
pub fn guest_silence() -> Duration {
    Duration::from_secs(600)
}

/// What agents of an older operator keep.
fn image_cache() -> u64 {
    50 << 30
}

/// VXLANs have numbers below this.
pub const VNI_LIMIT: u32 = 1 << 24;

/// A member's place in the job's own network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberNetwork {
    /// The job's subnet.
    pub subnet: ipnet::Ipv4Net,
    /// Number of the incarnation's VXLAN, below [`VNI_LIMIT`].
    pub vni: u32,
    /// Its UDP port on the nodes.
    pub port: u16,
    /// Largest packet of the guests.
    pub mtu: u16,
    /// Address of the agent there, by which it reaches guests.
    pub door: Ipv4Addr,
    /// Its hardware address.
    pub door_mac: String,
    /// All members, in the order of their indexes.
    pub members: Vec<NetworkMember>,
    /// A master on a node of its own.
    #[serde(default)]
    pub master: Option<MasterPlace>,
}

/// What an agent is there for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A virtual machine.
    #[default]
    Member,
    /// Only the way in. It says that it is loaded once it is in the job's network, and that it runs once it
    /// was told to; it takes part in no capture.
    Master,
}

/// A master on a node of its own, as all in the job's network know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MasterPlace {
    /// Hardware address in the job's network.
    pub mac: String,
    /// Address of its node.
    pub node: IpAddr,
}

/// The way in to a job's members: an ssh server for the keys of the guests' root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MasterConfig {
    /// Where it is served: the node's own address.
    pub listen: SocketAddr,
    /// Its host key.
    pub host_key: HostKey,
}

/// What everybody in a job's network knows of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkMember {
    /// Host name.
    pub name: String,
    /// Address in the job's network.
    pub address: Ipv4Addr,
    /// Hardware address there.
    pub mac: String,
    /// Hardware address of its agent there.
    #[serde(default)]
    pub door_mac: Option<String>,
    /// Address of its node.
    pub node: IpAddr,
}

/// Where and how the lease is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseConfig {
    /// Root of the leases on the node, as both sides see it.
    pub root: String,
    /// Directory of this slot below it, see `names::lease_directory`.
    pub directory: String,
    /// Numeric owner of the directory: the site's user, who runs the hold.
    pub owner: u32,
    /// The agent ends if the lease is not held by then.
    pub arm_within: Duration,
    /// A beat older than this is a lost lease.
    pub beat_limit: Duration,
}

/// How QEMU runs the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Accelerator {
    /// KVM if a guest really runs under it, else TCG.
    #[default]
    Probe,
    /// Software emulation.
    Tcg,
    /// The processor's virtualisation.
    Kvm,
}

/// What the guest may reach by its first network card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestNetwork {
    /// Nothing.
    #[default]
    Isolated,
    /// Whatever the node can reach.
    Open,
}
