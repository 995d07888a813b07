use jiff::SignedDuration;

use super::*;
use crate::{
    driver::site::{
        NoticeKind, SlotPhase, SlotRequest,
        fake::{FakeSite, Outage},
    },
    names::slot_name,
};

struct World {
    clock: Clock,
    site: FakeSite,
    poller: Poller,
}

fn job(letter: char) -> JobUid {
    JobUid(format!("{}-0000", letter.to_string().repeat(8)))
}

fn request(job: &JobUid, submission: u32) -> SlotRequest {
    SlotRequest {
        name: slot_name(job, submission),
        nodes: 1,
        reservations: 1,
        acquire: Duration::ZERO,
        walltime: Duration::from_secs(3600),
        grace: Duration::from_secs(30),
        lease_prefix: format!("{}-", job.short()),
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

impl World {
    fn new() -> Self {
        let clock = Clock::manual(Timestamp::from_second(1_800_000_000).unwrap());
        let site = FakeSite::new(clock.clone(), &["node-1", "node-2", "node-3", "node-4"]);
        let poller = Poller::new(Arc::new(site.clone()), clock.clone());
        Self { clock, site, poller }
    }

    async fn submit(&self, job: &JobUid) -> SlotId {
        self.site.submit(&request(job, 1)).await.unwrap().remove(0)
    }

    async fn pass(&self, seconds: i64) {
        self.clock.advance(SignedDuration::from_secs(seconds));
        self.poller.round().await;
    }

    fn slots(&self, job: &JobUid) -> Vec<SlotFacts> {
        match self.poller.facts(job).slots {
            Fact::Known(slots) => slots,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_job_is_unknown_until_it_was_read() {
    let w = World::new();
    let a = job('a');
    w.poller.watch(&a, &[], None);
    assert_eq!(w.poller.facts(&a).slots, Fact::Unknown { since: w.clock.now() });
    w.pass(0).await;
    assert_eq!(w.slots(&a), []);
    assert_eq!(w.poller.facts(&a).looked_up, Some(w.clock.now()));
}

#[tokio::test]
async fn a_notice_reaches_the_subscribers_in_one_round() {
    let w = World::new();
    let (a, b) = (job('a'), job('b'));
    let (ida, idb) = (w.submit(&a).await, w.submit(&b).await);
    w.poller.watch(&a, std::slice::from_ref(&ida), None);
    w.poller.watch(&b, &[idb], None);
    w.pass(2).await;
    w.pass(2).await;
    let mut changes = w.poller.subscribe();
    w.site.preempt(&ida);
    w.pass(2).await;
    assert_eq!(changes.try_recv().unwrap(), a);
    assert!(changes.try_recv().is_err());
    assert_eq!(w.slots(&a)[0].notice.unwrap().kind, NoticeKind::Preemption);
}

#[tokio::test]
async fn a10_a_slot_of_a_lost_reply_is_found_by_name() {
    let w = World::new();
    let a = job('a');
    w.poller.watch(&a, &[], Some(w.clock.now()));
    w.pass(2).await;
    w.site.set_outage(Outage::RepliesLost);
    w.site.submit(&request(&a, 1)).await.unwrap_err();
    w.site.set_outage(Outage::None);
    w.pass(11).await;
    assert_eq!(w.slots(&a).iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["vmdeploy-aaaaaaaa-1"]);
}

#[tokio::test]
async fn an_outage_makes_facts_unknown_and_changes_none() {
    let w = World::new();
    let a = job('a');
    let id = w.submit(&a).await;
    w.poller.watch(&a, &[id], None);
    w.pass(2).await;
    let last = w.clock.now();
    assert_eq!(w.poller.reads_good_since(), Some(last));
    w.site.set_outage(Outage::All);
    w.pass(2).await;
    assert!(w.poller.facts(&a).slots.known().is_some());
    assert_eq!(w.poller.reads_good_since(), None);
    w.pass(20).await;
    assert_eq!(w.poller.facts(&a).slots, Fact::Unknown { since: last });
    assert!(matches!(w.poller.facts(&a).error, Some(SiteError::Unreachable(_))));
    w.site.set_outage(Outage::None);
    let mut changes = w.poller.subscribe();
    w.pass(2).await;
    assert_eq!(changes.try_recv().unwrap(), a);
    assert_eq!(w.slots(&a)[0].phase, SlotPhase::Running);
    assert_eq!(w.poller.facts(&a).error, None);
}

#[test]
fn what_rounds_fail_with_is_news_once_it_lasts() {
    let mut cache = Cache::default();
    let failed = |cache: &mut Cache, why: &str| cache.failed(SiteError::Unreachable(why.into()));
    assert!(failed(&mut cache, "refused") && !failed(&mut cache, "refused"));
    for _ in 0..5 {
        assert!(!failed(&mut cache, "no answer") && !failed(&mut cache, "refused"), "now this, now that");
    }
    let news: Vec<bool> = (0..4).map(|_| failed(&mut cache, "no answer")).collect();
    assert_eq!(news, [false, false, true, false]);
    let error = cache.facts(&job('a'), Timestamp::UNIX_EPOCH).error;
    assert_eq!(error, Some(SiteError::Unreachable("no answer".into())));
}

#[tokio::test]
async fn a_slot_unknown_to_the_site_is_not_absent() {
    let w = World::new();
    let a = job('a');
    w.poller.watch(&a, &["99".into()], None);
    w.pass(2).await;
    assert!(matches!(w.slots(&a)[0].phase, SlotPhase::Unknown(_)));
}

#[tokio::test]
async fn many_jobs_cost_one_list_and_finished_ones_nothing() {
    let w = World::new();
    let jobs: Vec<JobUid> = ('a'..='h').map(job).collect();
    for j in &jobs {
        let id = w.submit(j).await;
        w.poller.watch(j, &[id], None);
    }
    w.pass(2).await;
    let before = w.site.calls();
    w.pass(2).await;
    let after = w.site.calls();
    assert_eq!((after.glance - before.glance, after.status - before.status), (1, 1));
    for slot in w.site.slots() {
        w.site.end(&slot.id, crate::driver::site::End::Done);
    }
    w.pass(2).await;
    let before = w.site.calls();
    w.pass(2).await;
    let after = w.site.calls();
    assert_eq!((after.glance, after.status), (before.glance, before.status));
}

#[tokio::test]
async fn a_forgotten_job_costs_nothing() {
    let w = World::new();
    let a = job('a');
    let id = w.submit(&a).await;
    w.poller.watch(&a, &[id], None);
    w.pass(2).await;
    w.poller.forget(&a);
    let before = w.poller.reads();
    w.pass(60).await;
    assert_eq!(w.poller.reads(), before);
    assert!(w.poller.facts(&a).slots.known().is_none());
}
