use jiff::SignedDuration;

use super::*;
use crate::driver::site::{NoticeKind, contract};

fn request(nodes: u32, grace: u64) -> SlotRequest {
    SlotRequest {
        name: "vmdeploy-3f2b8a10-1".into(),
        nodes,
        reservations: 1,
        acquire: Duration::ZERO,
        walltime: Duration::from_secs(3600),
        grace: Duration::from_secs(grace),
        lease_prefix: "3f2b8a10-".into(),
        queue: None,
        project: None,
        property: None,
        deploy: false,
        puts_images: false,
        launch: false,
        narrowed: Vec::new(),
        avoid: Vec::new(),
    }
}

fn site() -> (Clock, FakeSite) {
    let clock = Clock::manual(Timestamp::from_second(1_800_000_000).unwrap());
    let site = FakeSite::new(clock.clone(), &["node-1", "node-2", "node-3", "node-4"]);
    (clock, site)
}

fn pass(clock: &Clock, seconds: i64) {
    clock.advance(SignedDuration::from_secs(seconds));
}

fn slot(site: &FakeSite, id: &SlotId) -> SlotFacts {
    site.slots().into_iter().find(|s| s.id == *id).unwrap()
}

#[tokio::test]
async fn a_rival_takes_the_nodes_after_the_grace() {
    let (clock, site) = site();
    let id = site.submit(&request(4, 30)).await.unwrap().remove(0);
    pass(&clock, 1);
    assert_eq!(slot(&site, &id).nodes.len(), 4);
    site.rival(4, Duration::from_secs(100));
    assert_eq!(slot(&site, &id).notice.unwrap().kind, NoticeKind::Preemption);
    pass(&clock, 29);
    assert!(site.holds_lease(&id));
    pass(&clock, 1);
    assert_eq!(slot(&site, &id).phase, SlotPhase::Ended(End::Preempted));
    let next = site.submit(&request(4, 30)).await.unwrap().remove(0);
    pass(&clock, 50);
    assert!(matches!(slot(&site, &next).phase, SlotPhase::Waiting { .. }));
    pass(&clock, 50);
    assert_eq!(slot(&site, &next).phase, SlotPhase::Running);
}

#[tokio::test]
async fn without_grace_the_kill_comes_at_once() {
    let (clock, site) = site();
    let id = site.submit(&request(2, 0)).await.unwrap().remove(0);
    pass(&clock, 1);
    site.preempt(&id);
    assert_eq!((slot(&site, &id).phase, slot(&site, &id).notice), (SlotPhase::Ending, None));
    pass(&clock, 2);
    assert_eq!(slot(&site, &id).phase, SlotPhase::Ended(End::Preempted));
}

#[tokio::test]
async fn the_hold_ends_when_all_agents_have_left() {
    let (clock, site) = site();
    let id = site.submit(&request(2, 30)).await.unwrap().remove(0);
    pass(&clock, 1);
    let nodes = slot(&site, &id).nodes;
    site.preempt(&id);
    site.release_node(&id, &nodes[0], LeaveCode::Saved);
    assert!(site.holds_lease(&id));
    site.release_node(&id, &nodes[1], LeaveCode::Saved);
    assert_eq!(slot(&site, &id).phase, SlotPhase::Ended(End::SavedAtPreemption));
    assert!(!site.holds_lease(&id));
}

#[tokio::test]
async fn b5_a_second_preemption_has_no_notice_left() {
    let (clock, site) = site();
    let id = site.submit(&request(1, 30)).await.unwrap().remove(0);
    pass(&clock, 1);
    site.preempt(&id);
    let first = slot(&site, &id).notice;
    pass(&clock, 20);
    site.preempt(&id);
    assert_eq!(slot(&site, &id).notice, first);
    pass(&clock, 10);
    assert_eq!(slot(&site, &id).phase, SlotPhase::Ended(End::Preempted));
}

#[tokio::test]
async fn the_end_of_the_walltime_is_announced() {
    let (clock, site) = site();
    let id = site.submit(&request(1, 60)).await.unwrap().remove(0);
    pass(&clock, 1);
    assert_eq!(slot(&site, &id).phase, SlotPhase::Running);
    pass(&clock, 3541);
    assert_eq!(slot(&site, &id).notice.unwrap().kind, NoticeKind::Walltime);
    pass(&clock, 60);
    assert_eq!(slot(&site, &id).phase, SlotPhase::Ended(End::Walltime));
}

#[tokio::test]
async fn a_lost_reply_leaves_a_slot_that_is_found_by_name() {
    let (_, site) = site();
    site.set_outage(Outage::RepliesLost);
    assert!(matches!(site.submit(&request(1, 0)).await, Err(SiteError::Unreachable(_))));
    let found = site.look_up("vmdeploy-3f2b8a10-", None).await.unwrap();
    assert_eq!(found.len(), 1);
    let id = found.into_keys().next().unwrap();
    site.set_outage(Outage::All);
    assert!(site.look_up("vmdeploy-3f2b8a10-", None).await.is_err());
    assert!(site.status(std::slice::from_ref(&id)).await.is_err());
    site.set_outage(Outage::None);
    site.duplicate(&id).unwrap();
    assert_eq!(site.look_up("vmdeploy-3f2b8a10-", None).await.unwrap().len(), 2);
}

struct World {
    clock: Clock,
    site: FakeSite,
}

#[async_trait]
impl contract::World for World {
    fn site(&self) -> &dyn Site {
        &self.site
    }
    fn now(&self) -> Timestamp {
        self.clock.now()
    }
    fn user(&self) -> String {
        self.site.user.clone()
    }
    async fn pass(&self) {
        pass(&self.clock, 1);
    }
}

#[tokio::test]
async fn the_double_keeps_the_contract() {
    let (clock, site) = site();
    contract::holds(&World { clock, site }, "fake").await;
}
