//! Jobs with a way in.

use super::life::*;
use crate::{
    api::{
        JobPhase,
        job::{Master, NetworkSpec},
        job_status::WayIn,
    },
    driver::site::{End, NoticeKind},
};

fn with(members: u32, master: Master) -> Life {
    let mut life = life(members);
    life.job.spec.network = Some(NetworkSpec { master, ..NetworkSpec::default() });
    life
}

impl Life {
    fn way_in(&self) -> Option<WayIn> {
        self.status().network.unwrap().master
    }
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
