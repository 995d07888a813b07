//! The pod and the Secret of an agent.

use super::*;
use crate::{
    api::{job::Master, job_status::AgentStatus},
    controller::job::identity,
    names::agent_pod_name,
};

fn parts() -> (BestEffortJob, AgentPlacement, Config) {
    let mut job = crate::controller::job::testing::Stage::new().job();
    let uid = uid(&job);
    let status = job.status.get_or_insert_default();
    status.network =
        Some(NetworkStatus { subnet: "198.18.3.0/28".into(), mtu: 1450, vni: 77, port: 4789, way_in: None });
    status.members = identity::members(Some("198.18.3.0/28".parse().unwrap()), 2);
    for member in &mut status.members {
        let endpoint = format!("192.0.2.{}:17703", member.index + 1);
        let (pod, slot) = (agent_pod_name(&uid, member.index, 3), "41".to_owned());
        member.agent = Some(AgentStatus { pod, endpoint, incarnation: 3, slot, way_in: None, unproven: false });
    }
    status.image = Some(crate::api::job_status::ResolvedImage {
        namespace: "team".into(),
        name: "debian-12".into(),
        disk: format!("sha256:{}", "0".repeat(64)),
        virtual_size: 1 << 30,
        kernel: None,
        initrd: None,
        params: None,
    });
    let placement = AgentPlacement {
        member: 1,
        incarnation: 3,
        slot: "41".into(),
        node: "node-2".into(),
        pod: agent_pod_name(&uid, 1, 3),
        endpoint: "192.0.2.2:17703".parse().unwrap(),
        way_in: None,
        restore: Some(7),
        not_after: jiff::Timestamp::from_second(1_800_000_300).unwrap(),
    };
    let config = (*crate::controller::job::testing::Stage::new().ctx.config).clone();
    (job, placement, config)
}

fn keys() -> Keys {
    Keys::of_job("secret", &"uid".into())
}

#[test]
fn the_way_in_is_served_where_the_placement_says_whatever_is_configured() {
    let (mut job, mut placement, mut config) = parts();
    job.spec.network = Some(crate::api::job::NetworkSpec { master: Master::Shared, ..Default::default() });
    config.agents.port_count = 7;
    let told = |placement: &AgentPlacement| {
        super::config(&job, placement, &config, &config.sites["rennes"], 1000, BTreeMap::new(), keys()).unwrap().master
    };
    assert_eq!(told(&placement), None);
    let listen = "192.0.2.2:17767".parse().unwrap();
    placement.way_in = Some(listen);
    assert_eq!(told(&placement), Some(MasterConfig { listen, host_key: keys().host }));
}

#[test]
fn a_master_of_its_own_needs_no_room_for_a_guest_and_all_know_its_place() {
    let (mut job, mut placement, config) = parts();
    job.spec.network = Some(crate::api::job::NetworkSpec { master: Master::Dedicated, ..Default::default() });
    let mut place = identity::master(Some("198.18.3.0/28".parse().unwrap()), 2);
    let agent = AgentStatus {
        endpoint: "192.0.2.3:17703".into(),
        ..job.status.as_ref().unwrap().members[0].agent.clone().unwrap()
    };
    place.agent = Some(agent);
    job.status.as_mut().unwrap().master = Some(place);
    let told = |placement: &AgentPlacement| {
        let inputs = BTreeMap::from([("/a".to_owned(), "secret".to_owned())]);
        super::config(&job, placement, &config, &config.sites["rennes"], 1000, inputs, keys()).unwrap()
    };
    let member = told(&placement);
    assert_eq!((member.role, member.master, member.inputs.len()), (Role::Member, None, 1));
    let known = member.network.unwrap().master.unwrap();
    assert_eq!((known.mac.as_str(), known.node.to_string().as_str()), ("02:76:c6:12:03:0a", "192.0.2.3"));
    (placement.member, placement.endpoint) = (2, "192.0.2.3:17703".parse().unwrap());
    placement.way_in = Some("192.0.2.3:17767".parse().unwrap());
    let master = told(&placement);
    assert_eq!((master.role, master.restore, master.run, master.inputs.len()), (Role::Master, None, None, 0));
    assert_eq!(master.master.unwrap().listen.to_string(), "192.0.2.3:17767");
    assert_eq!(master.network.unwrap().door.to_string(), "198.18.3.10");
    let limits = resources(&job, &placement, &config).limits.unwrap();
    assert_eq!((limits["cpu"].0.as_str(), limits["memory"].0.as_str()), ("500m", "512Mi"));
    assert_eq!(disk_limit(&job, &placement).0, "1024Mi");
}

#[test]
fn a8_a_pod_stays_on_its_node_whatever_taints_it() {
    let (job, placement, config) = parts();
    let pod = pod(&job, &placement, &config);
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.node_name.as_deref(), Some("node-2"));
    assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
    let toleration = &spec.tolerations.as_ref().unwrap()[0];
    assert_eq!((toleration.key.as_ref(), toleration.toleration_seconds), (None, None));
    let resources = spec.containers[0].resources.as_ref().unwrap();
    assert_eq!(resources.requests, resources.limits, "guaranteed");
    insta::assert_yaml_snapshot!(pod);
}

#[test]
fn an_agents_image_is_fetched_with_the_logins_of_the_configuration() {
    let (job, placement, mut config) = parts();
    let named = |config: &Config| pod(&job, &placement, config).spec.unwrap().image_pull_secrets;
    assert_eq!(named(&config), None);
    config.agents.image_pull_secrets = crate::yaml::read("[{name: registry}, {name: mirror}]").unwrap();
    let names: Vec<String> = named(&config).unwrap().into_iter().map(|secret| secret.name).collect();
    assert_eq!(names, ["registry", "mirror"]);
}

#[test]
fn an_agents_disk_has_room_for_all_it_may_hold_and_a_limit() {
    let (mut job, placement, config) = parts();
    let mebibytes = |job: &BestEffortJob| {
        let volumes = pod(job, &placement, &config).spec.unwrap().volumes.unwrap();
        let limit = volumes.into_iter().find_map(|volume| volume.empty_dir).unwrap().size_limit.unwrap().0;
        limit.strip_suffix("Mi").unwrap().parse::<u64>().unwrap()
    };
    job.spec.vm.memory = crate::api::quantity::Bytes::mebibytes(1024);
    job.spec.vm.disk = Some(crate::api::quantity::Bytes::mebibytes(4096));
    let small = mebibytes(&job);
    assert!(small >= 4 * (1024 + 4096) + 5 * 4096, "{small}");
    job.spec.vm.memory = crate::api::quantity::Bytes::mebibytes(2048);
    assert_eq!(mebibytes(&job), small + 4 * (1024 + 16), "a part's most bytes are those that kget allows");
}

#[test]
fn an_agent_is_told_what_it_needs() {
    let (job, placement, config) = parts();
    let site = &config.sites["rennes"];
    let told = super::config(&job, &placement, &config, site, 1000, BTreeMap::new(), keys()).unwrap();
    assert_eq!((told.member, told.members, told.incarnation, told.restore), (1, 2, 3, Some(7)));
    assert_eq!(told.lease.directory, format!("{}-41", uid(&job).short()));
    assert_eq!(told.hostname, "pi-1");
    assert!(told.run.is_some());
    let network = told.network.as_ref().unwrap();
    assert_eq!((network.vni, network.door.to_string().as_str()), (77, "198.18.3.9"));
    let nodes: Vec<String> = network.members.iter().map(|m| format!("{} {} {}", m.name, m.address, m.node)).collect();
    assert_eq!(nodes, ["pi-0 198.18.3.1 192.0.2.1", "pi-1 198.18.3.2 192.0.2.2"]);
    let mut other = config.clone();
    let pool = "198.18.0.0/15".parse().unwrap();
    other.job_network = Some(crate::config::JobNetworkConfig { pool, port: 9999, mtu: 1450 });
    let later = super::config(&job, &placement, &other, site, 1000, BTreeMap::new(), keys()).unwrap();
    assert_eq!(later.network.unwrap().port, 4789, "all members of an incarnation have the one it began with");
    let mut older = job.clone();
    older.status.as_mut().unwrap().network.as_mut().unwrap().port = 0;
    let older = super::config(&older, &placement, &other, site, 1000, BTreeMap::new(), keys()).unwrap();
    assert_eq!(older.network.unwrap().port, 9999, "written down by an operator that did not know of it");
    let mut unplaced = job.clone();
    unplaced.status.as_mut().unwrap().members[0].agent = None;
    let told_too_early = super::config(&unplaced, &placement, &config, site, 1000, BTreeMap::new(), keys());
    assert!(told_too_early.is_none(), "the network is not known whole");
    let mut first = job.clone();
    first.spec.run.members = RunMembers::First;
    assert!(super::config(&first, &placement, &config, site, 1000, BTreeMap::new(), keys()).unwrap().run.is_none());
    let credentials = Credentials { ca: "ca".into(), certificate: "crt".into(), key: "key".into() };
    let secret = secret(&job, &placement, &config, &told, &credentials);
    let data = secret.data.unwrap();
    let read: AgentConfig = serde_json::from_slice(&data["config.json"].0).unwrap();
    assert_eq!(read, told);
    assert_eq!(secret.metadata.name.as_deref(), Some(placement.pod.as_str()));
}

#[test]
fn an_agent_fetches_images_from_those_before_it_and_from_nobody_that_is_not_placed() {
    let (mut job, mut placement, _) = parts();
    let members = |job: &BestEffortJob, placement: &AgentPlacement, switches: &[(u32, &str)]| {
        let switches = switches.iter().map(|(member, switch)| (*member, (*switch).to_owned())).collect();
        chain(job, placement, &switches)
            .into_iter()
            .map(|peer| (peer.member, peer.endpoint.to_string()))
            .collect::<Vec<_>>()
    };
    let mut third = job.status.as_ref().unwrap().members[1].clone();
    third.index = 2;
    third.agent.as_mut().unwrap().endpoint = "192.0.2.3:17703".into();
    job.status.as_mut().unwrap().members.push(third);
    job.spec.members = 3;
    let at = |member: u32| (member, format!("192.0.2.{}:17703", member + 1));
    placement.member = 2;
    assert_eq!(members(&job, &placement, &[]), [at(1), at(0)]);
    // the second one's switch comes behind that of the others
    assert_eq!(members(&job, &placement, &[(0, "a"), (1, "b"), (2, "a")]), [at(0)]);
    placement.member = 0;
    assert_eq!(members(&job, &placement, &[]), []);
    placement.member = 2;
    let master = AgentPlacement { member: 3, ..placement.clone() };
    assert_eq!(members(&job, &master, &[]), [], "it has no image");
    let cached = BestEffortJob {
        spec: crate::api::BestEffortJobSpec { distribution: Distribution::NodeCache, ..job.spec.clone() },
        ..job.clone()
    };
    assert_eq!(members(&cached, &placement, &[]), []);
    job.status.as_mut().unwrap().members[0].agent.as_mut().unwrap().incarnation = 2;
    assert_eq!(members(&job, &placement, &[]), [], "that is another incarnation's");
}

#[test]
fn images_of_a_claim_are_mounted_where_the_agent_is_told_and_only_for_jobs_that_want_them() {
    let (mut job, placement, mut config) = parts();
    let seen = |job: &BestEffortJob, placement: &AgentPlacement, config: &Config| {
        let site = &config.sites["rennes"];
        let told = super::config(job, placement, config, site, 1000, BTreeMap::new(), keys()).unwrap().shared_images;
        let spec = pod(job, placement, config).spec.unwrap();
        let claims = spec.volumes.unwrap().into_iter().filter_map(|volume| volume.persistent_volume_claim);
        let mounts = spec.containers[0].volume_mounts.clone().unwrap();
        let mounted = mounts
            .into_iter()
            .any(|mount| Some(&mount.mount_path) == told.as_ref().map(|_| SHARED_DIR.to_owned()).as_ref());
        (told, claims.map(|claim| claim.claim_name).collect::<Vec<_>>(), mounted)
    };
    config.agents.shared_images = Some(crate::yaml::read("{claim: images, limit: 1Gi}").unwrap());
    assert_eq!(seen(&job, &placement, &config), (None, vec![], false), "it comes from others");
    job.spec.distribution = Distribution::Shared;
    let told = SharedImages { directory: SHARED_DIR.into(), limit: 1 << 30 };
    assert_eq!(seen(&job, &placement, &config), (Some(told), vec!["images".to_owned()], true));
    let master = AgentPlacement { member: 2, ..placement.clone() };
    assert_eq!(seen(&job, &master, &config), (None, vec![], false), "it has no image");
}

#[test]
fn all_agents_of_jobs_that_distribute_by_taktuk_are_told_of_it() {
    let (mut job, placement, config) = parts();
    let told = |job: &BestEffortJob, placement: &AgentPlacement| {
        let site = &config.sites["rennes"];
        super::config(job, placement, &config, site, 1000, BTreeMap::new(), keys()).unwrap().images_by_taktuk
    };
    assert!(!told(&job, &placement));
    job.spec.distribution = Distribution::TakTuk;
    assert!(told(&job, &placement));
    assert!(told(&job, &AgentPlacement { member: 2, ..placement.clone() }), "a master is to say that it has none");
}
