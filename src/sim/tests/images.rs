//! Images that nothing names any more go; all others stay.

use std::time::Duration;

use super::super::{DIGEST, NAMESPACE, World, image, job};
use crate::{
    api::{
        ConditionType, JobPhase, Reason,
        conditions::{get, is_true},
    },
    driver::{
        cluster::{Cluster as _, ClusterView as _, Kind},
        repository::{Repository as _, fake::Trouble},
        site::End,
    },
    names::SlotId,
    store::images::ImageReview,
};

const HOUR: u64 = 3600;

impl World {
    async fn has_image(&self) -> bool {
        self.repository.image(DIGEST).await.is_ok_and(|size| size.is_some())
    }

    async fn remove_vm_image(&self) {
        let image = self.cluster.image(NAMESPACE, "debian").unwrap();
        self.cluster.delete(Kind::Image, &image.metadata).await.unwrap();
    }

    /// As a user applies it, without a status.
    fn apply_vm_image(&self) {
        let mut new = image(self.clock.now());
        new.status = None;
        self.cluster.put_image(new);
    }

    fn is_ready(&self) -> bool {
        let image = self.cluster.image(NAMESPACE, "debian");
        let status = image.and_then(|image| image.status.clone()).unwrap_or_default();
        is_true(&status.conditions, ConditionType::Ready)
    }

    /// Lets time pass in large steps; nothing but the operator is at work.
    async fn long(&mut self, seconds: u64) {
        for _ in 0..seconds / 20 {
            self.step(Duration::from_secs(20)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn b12_an_image_stays_as_long_as_a_job_or_a_generation_needs_it() {
    let mut world = World::new(4);
    world.pace.work = Duration::from_secs(3 * HOUR);
    world.cluster.put_job(job(2));
    world.until(200, "a complete generation", |world| world.status().snapshots.last_stored.is_some()).await;
    world.remove_vm_image().await;
    while world.age() < 5500 {
        world.stride(5).await;
        assert!(world.has_image().await, "{}", world.story());
    }
    // it is restored from there all the same
    let slot = SlotId(world.open_slots().first().cloned().expect("a slot"));
    world.site.end(&slot, End::Preempted);
    world.until(200, "another incarnation", |world| world.status().incarnation == 2).await;
    world.until_phase(200, JobPhase::Running).await;
    assert!(world.has_image().await, "{}", world.story());
    let job = world.job().unwrap();
    world.cluster.delete(Kind::Job, &job.metadata).await.unwrap();
    world.until(300, "the job is gone", |world| world.job().is_none() && world.leftovers().is_empty()).await;
    world.long(HOUR - 300).await;
    assert!(world.has_image().await, "too early: {}", world.story());
    world.long(1200).await;
    assert!(!world.has_image().await, "nothing names it any more: {}", world.story());
}

#[tokio::test(start_paused = true)]
async fn b12_what_is_not_known_removes_no_image() {
    let mut world = World::new(1);
    world.long(600).await;
    world.cluster.set_unread(Kind::Image, NAMESPACE, "another", true);
    world.remove_vm_image().await;
    world.long(3 * HOUR).await;
    assert!(world.has_image().await, "one that cannot be read may name it");
    world.cluster.set_unread(Kind::Image, NAMESPACE, "another", false);
    world.cluster.set_unread(Kind::Job, "elsewhere", "pi", true);
    world.long(3 * HOUR).await;
    assert!(world.has_image().await, "a job that cannot be read may need it");
    world.cluster.set_unread(Kind::Job, "elsewhere", "pi", false);
    world.cluster.set_down(true);
    world.long(3 * HOUR).await;
    assert!(world.has_image().await, "the API server does not answer");
    world.cluster.set_down(false);
    world.repository.set_trouble(Trouble::Unreachable);
    world.long(3 * HOUR).await;
    world.repository.set_trouble(Trouble::None);
    world.long(HOUR - 300).await;
    assert!(world.has_image().await, "its time begins when it is known");
    world.long(1200).await;
    assert!(!world.has_image().await);
}

#[tokio::test(start_paused = true)]
async fn b12_the_time_of_an_image_outlives_the_operator() {
    let mut world = World::new(1);
    world.remove_vm_image().await;
    for _ in 0..4 {
        world.long(900).await;
        assert!(world.has_image().await);
        world.operator.kill();
    }
    world.long(900).await;
    assert!(world.operator.epoch() > 4 && !world.has_image().await);
}

/// A removal that is on its way while the VmImage is made again, before and after what an importer brings.
#[rstest::rstest]
#[case::before_it_arrives(false)]
#[case::after_it_is_ready(true)]
#[tokio::test(start_paused = true)]
async fn b12_a_vm_image_made_again_in_the_moment_of_removal_ends_ready(#[case] ready_before: bool) {
    let mut world = World::new(1);
    world.remove_vm_image().await;
    world.long(HOUR - 100).await;
    assert!(world.has_image().await);
    let late = ImageReview { named: [].into(), now: world.clock.now() + Duration::from_secs(HOUR), grace: HOUR };
    world.apply_vm_image();
    if ready_before {
        world.until(100, "ready", World::is_ready).await;
    }
    let removed = world.repository.review_images(&late).await.unwrap();
    assert_eq!(removed.is_empty(), ready_before, "what has just arrived has all its time");
    world.until(100, "ready", World::is_ready).await;
    assert!(world.has_image().await && world.importers.started() > 0);
    world.long(3 * HOUR).await;
    assert!(world.has_image().await && world.is_ready());
}

/// However it came about: an image that is gone is imported again.
#[tokio::test(start_paused = true)]
async fn b12_an_image_that_is_gone_though_a_vm_image_names_it_is_imported_again() {
    let mut world = World::new(1);
    world.long(60).await;
    for _ in 0..2 {
        let now = world.clock.now();
        world.repository.review_images(&ImageReview { named: [].into(), now, grace: 0 }).await.unwrap();
    }
    assert!(!world.has_image().await);
    world.until(200, "it is seen", |world| !world.is_ready()).await;
    world.until(200, "ready again", World::is_ready).await;
    assert!(world.has_image().await);
    let image = world.cluster.image(NAMESPACE, "debian").unwrap();
    let status = image.status.clone().unwrap();
    assert_eq!(get(&status.conditions, ConditionType::Ready).unwrap().status, "True");
    world.cluster.put_job(job(1));
    world.until_phase(300, JobPhase::Succeeded).await;
}

#[tokio::test(start_paused = true)]
async fn no_slots_are_asked_for_while_a_started_jobs_image_is_gone() {
    let mut world = World::new(4);
    world.pace.work = Duration::from_secs(HOUR);
    let mut job = job(2);
    job.spec.snapshots.period = Duration::from_secs(5 * HOUR).into();
    world.cluster.put_job(job);
    world.until_phase(100, JobPhase::Running).await;
    world.remove_vm_image().await;
    world.repository.lose_image(DIGEST);
    world.pass(100).await;
    assert_eq!(world.phase(), Some(JobPhase::Running), "a guest that runs needs it no more: {}", world.story());
    let slot = SlotId(world.open_slots().first().cloned().expect("a slot"));
    world.repository.set_trouble(Trouble::Unreachable);
    world.site.end(&slot, End::Preempted);
    world.pass(100).await;
    let condition = |world: &World, kind| get(&world.status().conditions, kind).cloned();
    let image = condition(&world, ConditionType::ImageReady).unwrap();
    assert_eq!((image.status.as_str(), world.site.calls().submit), ("True", 1), "not known: {}", world.story());
    assert_eq!(world.phase(), Some(JobPhase::Queued));
    world.repository.set_trouble(Trouble::None);
    world.pass(100).await;
    let image = condition(&world, ConditionType::ImageReady).unwrap();
    assert_eq!((image.status.as_str(), image.reason.as_str()), ("False", "ImageLost"), "{}", world.story());
    assert!(image.message.contains(DIGEST) && image.message.contains("team/debian"), "{}", image.message);
    assert_eq!(condition(&world, ConditionType::Stalled).unwrap().reason, "ImageLost", "nothing brings it back");
    let told = |world: &World| world.cluster.events().iter().filter(|event| event.reason == Reason::ImageLost).count();
    assert_eq!((world.site.calls().submit, told(&world)), (1, 1), "{}", world.story());
    world.repository.set_trouble(Trouble::Unreachable);
    world.pass(100).await;
    assert_eq!(condition(&world, ConditionType::ImageReady).unwrap().status, "False", "silence takes nothing back");
    world.repository.set_trouble(Trouble::None);
    world.apply_vm_image();
    world.until_phase(300, JobPhase::Running).await;
    assert_eq!(condition(&world, ConditionType::ImageReady).unwrap().status, "True");
    assert!(condition(&world, ConditionType::Stalled).is_none() && told(&world) == 1, "{}", world.story());
}
