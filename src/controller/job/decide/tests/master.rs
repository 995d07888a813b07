//! Jobs with a way in.

use super::life::*;
use crate::{
    api::{
        JobPhase,
        job::{Master, NetworkSpec},
        job_status::WayIn,
    },
    controller::job::{decide::master::beside, plan::Effect},
    driver::{
        agent::VmState,
        site::{End, NoticeKind},
    },
};

fn with(members: u32, master: Master) -> Life {
    let mut life = life(members);
    life.job.spec.network = Some(NetworkSpec { master, ..NetworkSpec::default() });
    life
}

impl Life {
    fn way_in(&self) -> Option<WayIn> {
        self.status().network.unwrap().way_in
    }
}

/// A job of two with a master of its own: its agents are made, and none has been heard yet.
fn placed() -> Life {
    let mut life = with(2, Master::Dedicated);
    life.prompt = false;
    life.run(3);
    life.start_slot("101");
    while life.effects("CreateAgent").is_empty() {
        life.pass();
    }
    life
}

#[test]
fn the_way_in_is_told_of_while_the_members_run() {
    let mut life = with(2, Master::Shared);
    life.run(5);
    assert_eq!(life.phase(), JobPhase::Running);
    let port = |life: &Life| life.status().members[0].agent.clone().unwrap().endpoint.parse::<std::net::SocketAddr>();
    let first = port(&life).unwrap();
    let told = life.way_in().unwrap();
    assert_eq!(
        (told.address, told.host_key.as_str()),
        (format!("192.0.2.1:{}", first.port() + 64), "ssh-ed25519 AAAA")
    );
    life.run(700);
    life.notice("101", NoticeKind::Preemption);
    life.pass();
    assert_eq!((life.phase(), life.way_in()), (JobPhase::Evacuating, None));
    life.run(20);
    assert_eq!(life.status().incarnation, 2, "{:?}", life.whys);
    let next = port(&life).unwrap();
    assert_ne!(next, first);
    assert_eq!(life.way_in().unwrap().address, format!("192.0.2.1:{}", next.port() + 64));
    life.end_slot("102", End::Preempted);
    life.pass();
    assert_eq!(life.way_in(), None, "{:?}", life.phase());
    life.run(20);
    life.finish(0);
    life.run(20);
    assert_eq!((life.phase(), life.way_in()), (JobPhase::Succeeded, None));
}

#[test]
fn a_way_in_stays_where_it_is_when_other_ports_are_configured() {
    let mut life = with(2, Master::Shared);
    life.run(5);
    let told = life.way_in().unwrap();
    (life.seen.setup.port_first, life.seen.setup.port_count) = (30000, 5);
    life.run(5);
    assert_eq!(life.way_in().unwrap(), told);
    // its Secret is lost with its pod before it is heard: it is made again as it was
    let mut life = placed();
    let made = |life: &Life| {
        life.effects("CreateAgent").into_iter().rev().find_map(|effect| match effect {
            Effect::CreateAgent(placement) if placement.member == 2 => placement.way_in,
            _ => None,
        })
    };
    let (first, count) = (made(&life).unwrap(), life.effects("CreateAgent").len());
    life.seen.setup.port_count = 5;
    let pod = life.pod_of(2);
    life.seen.pods.remove(&pod);
    life.seen.agents.remove(&pod);
    life.run(10);
    assert!(life.effects("CreateAgent").len() > count, "{:?}", life.whys);
    assert_eq!(made(&life), Some(first));
}

#[test]
fn where_agents_do_not_meet_their_ways_in_do_not_and_neither_meets_the_other() {
    let at = |port| beside(([192, 0, 2, 1], port).into(), 64).map(|way_in| way_in.port());
    let (agents, ways): (Vec<u16>, Vec<u16>) = (17700..17764).map(|port| (port, at(port).unwrap())).unzip();
    let all: std::collections::BTreeSet<_> = agents.iter().chain(&ways).collect();
    assert_eq!(all.len(), 128);
    assert_eq!(at(65500), None);
}

#[test]
fn a_job_without_a_master_tells_of_none_and_the_way_in_costs_no_writes() {
    let mut none = Life::running(2);
    assert_eq!(none.way_in(), None);
    let mut shared = with(2, Master::Shared);
    shared.run(5);
    none.run(2000);
    shared.run(2000);
    assert!(shared.way_in().is_some());
    assert_eq!(shared.writes, none.writes);
}

#[test]
fn a_way_in_needs_a_network() {
    let mut life = with(2, Master::Shared);
    life.seen.network.pool = None;
    life.seen.network.subnet = None;
    life.run(3);
    assert_eq!(life.phase(), JobPhase::Pending);
    assert!(life.message("Ready").contains("gives jobs none: use None"), "{}", life.message("Ready"));
    life.job.spec.network = None;
    life.run(20);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
}

fn master(life: &Life) -> crate::api::job_status::MemberStatus {
    life.status().master.expect("a master")
}

#[test]
fn a_master_of_its_own_has_the_last_node_and_no_guest() {
    let mut life = with(2, Master::Dedicated);
    life.run(5);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
    let Effect::SubmitSlots { request, .. } = life.effects("SubmitSlots")[0] else { panic!() };
    assert_eq!(request.nodes, 3);
    let (status, place) = (life.status(), master(&life));
    assert_eq!((status.members.len(), place.index, place.node.as_deref()), (2, 2, Some("node-3")));
    assert_eq!((place.address.as_str(), place.mac.as_str()), ("198.18.3.10", "02:76:c6:12:03:0a"));
    let endpoint: std::net::SocketAddr = place.agent.unwrap().endpoint.parse().unwrap();
    assert_eq!(life.way_in().unwrap().address, format!("192.0.2.3:{}", endpoint.port() + 64));
    life.run(700);
    let Effect::Capture(capture) = life.effects("Capture")[0] else { panic!() };
    assert_eq!(capture.agents.iter().map(|agent| agent.member).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(life.status().snapshots.last_stored, Some(1));
    life.finish(0);
    life.run(20);
    assert_eq!(life.phase(), JobPhase::Succeeded, "{:?}", life.whys);
    assert!(life.seen.pods.is_empty() && life.status().slots.is_empty(), "{:?}", life.seen.pods);
}

#[test]
fn nothing_runs_before_the_master_is_in_the_network() {
    let mut life = placed();
    life.agent(2).vm = VmState::None;
    life.run(30);
    assert!(matches!(life.phase(), JobPhase::Starting | JobPhase::Deploying), "{:?}", life.phase());
    assert!(life.effects("Go").is_empty());
    life.agent(2).vm = VmState::Loaded;
    life.run(5);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
}

#[test]
fn a_slot_without_a_node_for_the_master_is_given_back() {
    let mut life = with(2, Master::Dedicated);
    life.prompt = false;
    life.run(5);
    life.start_slot("101");
    life.slot("101").nodes.pop();
    life.run(3);
    assert!(life.message("Ready").contains("has 2 nodes, and the job needs 3"), "{}", life.message("Ready"));
    assert!(life.effects("CreateAgent").is_empty());
    assert_eq!(life.effects("ReleaseSlot").len(), 1);
}

#[test]
fn the_loss_of_a_master_takes_no_member_down() {
    for ended in [true, false] {
        let mut life = with(2, Master::Dedicated);
        life.run(700);
        let (pod, before) = (life.pod_of(2), life.status());
        if ended {
            life.end_pod(&pod);
        } else {
            life.silence(2);
        }
        life.run(140);
        let status = life.status();
        assert_eq!((life.phase(), status.incarnation), (JobPhase::Running, 1), "{:?}", life.whys);
        assert_eq!((status.work.lost, status.kills.node, life.way_in()), (0, 0, None));
        let told = life.message("GuestDegraded");
        assert!(told.starts_with("True WayInLost: the master on node node-3 is lost"), "{told}");
        let writes = life.writes;
        life.run(100);
        assert_eq!(life.writes, writes, "told of once");
        // snapshots go on, and the next attempt has a way in again
        life.run(600);
        assert!(life.status().snapshots.last_stored > before.snapshots.last_stored, "{:?}", life.whys);
        life.notice("101", NoticeKind::Preemption);
        life.run(300);
        let status = life.status();
        assert_eq!((life.phase(), status.incarnation), (JobPhase::Running, 2), "{:?}", life.whys);
        assert!(status.work.lost == 0 && life.way_in().is_some(), "{:?}", status.work);
        assert_eq!(life.message("GuestDegraded"), "");
    }
}

/// With the whole slot its death is nothing to tell of.
#[test]
fn a_master_that_is_killed_with_its_slot_is_not_told_of() {
    let mut life = with(2, Master::Dedicated);
    life.run(700);
    let (pod, writes) = (life.pod_of(2), life.writes);
    life.end_pod(&pod);
    life.run(5);
    assert_eq!((life.writes, life.message("GuestDegraded")), (writes, String::new()));
}

#[test]
fn a1_a_master_that_was_silent_is_awaited_like_a_member() {
    let mut life = with(2, Master::Dedicated);
    life.run(700);
    life.silence(2);
    life.run(140);
    // a member is lost besides: the slot's other node is not to be had again
    let pod = life.pod_of(0);
    life.end_pod(&pod);
    life.run(60);
    let status = life.status();
    assert_eq!((status.incarnation, status.kills.node, status.slots[0].id.as_str()), (2, 1, "102"), "{:?}", life.whys);
    assert!(status.origin.unwrap().silent, "guests wait until it must have been refused");
}

#[test]
fn a_master_that_dies_while_outputs_are_kept_or_slots_are_left_costs_nothing() {
    let mut life = with(2, Master::Dedicated);
    life.run(5);
    for member in 0..2 {
        life.agent(member).guest.exit_code = Some(0);
    }
    life.pass();
    assert_eq!(life.phase(), JobPhase::Completing);
    let pod = life.pod_of(2);
    life.end_pod(&pod);
    life.run(10);
    assert_eq!(life.phase(), JobPhase::Completing, "{:?}", life.whys);
    life.finish(0);
    life.run(20);
    assert_eq!((life.phase(), life.status().incarnation), (JobPhase::Succeeded, 1), "{:?}", life.whys);

    let mut life = with(2, Master::Dedicated);
    life.run(700);
    life.stores = false;
    life.notice("101", NoticeKind::Preemption);
    life.pass();
    let pod = life.pod_of(2);
    life.end_pod(&pod);
    life.run(5);
    assert_eq!(life.phase(), JobPhase::Evacuating);
    life.stores = true;
    life.store(2, 1);
    life.run(30);
    let status = life.status();
    assert!(status.incarnation == 2 && status.work.lost < 10, "{:?} {:?}", status.work, life.whys);
}

#[test]
fn a_master_may_be_asked_for_until_the_first_start() {
    let mut life = with(2, Master::None);
    life.prompt = false;
    life.run(5);
    assert_eq!(life.phase(), JobPhase::Queued);
    life.job.spec.network = Some(NetworkSpec { master: Master::Dedicated, ..NetworkSpec::default() });
    life.prompt = true;
    life.run(30);
    let Effect::SubmitSlots { request, .. } = life.effects("SubmitSlots")[1] else { panic!() };
    assert_eq!((request.nodes, life.phase()), (3, JobPhase::Running), "{:?}", life.whys);
    assert_eq!(master(&life).node.as_deref(), Some("node-3"));
}
