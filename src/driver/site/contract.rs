//! What every site must do: the same suite runs against the double and against real clients.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;

use super::{End, Glance, Site, SiteError, SlotFacts, SlotPhase, SlotRequest};
use crate::names::{SlotId, slot_name};

/// A site under test, with at least two nodes and at most a hundred.
#[async_trait]
pub(crate) trait World: Sync {
    /// The site.
    fn site(&self) -> &dyn Site;
    /// The time.
    fn now(&self) -> Timestamp;
    /// The account's name at the site.
    fn user(&self) -> String;
    /// Lets a little time pass.
    async fn pass(&self);
}

/// A request of a job of its own for each test, so that tests may share a site.
pub(crate) fn request(job: &str, nodes: u32, grace: u64) -> SlotRequest {
    let job = job.into();
    SlotRequest {
        name: slot_name(&job, 1),
        nodes,
        reservations: 1,
        acquire: Duration::ZERO,
        walltime: Duration::from_secs(600),
        grace: Duration::from_secs(grace),
        lease_prefix: format!("{}-", job.short()),
        queue: None,
        project: Some("vmdeploy".into()),
        property: None,
        deploy: false,
        puts_images: false,
        launch: false,
        narrowed: Vec::new(),
        avoid: Vec::new(),
    }
}

/// Waits until the slot's phase is as wanted.
pub(crate) async fn until(
    world: &dyn World,
    id: &SlotId,
    wanted: impl Fn(&SlotPhase) -> bool + Send + Sync,
) -> SlotFacts {
    for _ in 0..300 {
        if let Some(facts) = one(world, id).await.filter(|f| wanted(&f.phase)) {
            return facts;
        }
        world.pass().await;
    }
    panic!("slot {id} stayed {:?}", one(world, id).await);
}

async fn one(world: &dyn World, id: &SlotId) -> Option<SlotFacts> {
    world.site().status(std::slice::from_ref(id)).await.unwrap().remove(id)
}

async fn look_up(world: &dyn World, request: &SlotRequest, since: Option<Timestamp>) -> BTreeMap<SlotId, Glance> {
    world.site().look_up(request.name.strip_suffix('1').unwrap(), since).await.unwrap()
}

/// Runs the whole suite.
pub(crate) async fn holds(world: &dyn World, tag: &str) {
    a_slot_lives_and_is_given_back(world, &format!("a{tag}")).await;
    slots_are_found_by_name(world, &format!("b{tag}")).await;
    reservations_of_one_request_go_one_by_one(world, &format!("d{tag}")).await;
    unknown_ids_are_missing_not_errors(world).await;
    too_many_nodes_are_refused(world, &format!("c{tag}")).await;
}

async fn a_slot_lives_and_is_given_back(world: &dyn World, job: &str) {
    let request = request(job, 2, 30);
    let id = world.site().submit(&request).await.unwrap().remove(0);
    let facts = until(world, &id, |p| *p == SlotPhase::Running).await;
    assert_eq!((facts.name.as_str(), facts.nodes.len(), facts.notice), (request.name.as_str(), 2, None));
    assert_ne!(facts.nodes[0], facts.nodes[1]);
    let length = facts.until.unwrap().duration_since(facts.since.unwrap());
    assert_eq!(length.as_secs(), 600);
    assert!(facts.since.unwrap().duration_since(world.now()).as_secs().abs() < 60);
    // nothing happened: the same facts, to the second
    assert_eq!(one(world, &id).await.unwrap(), facts);
    let glance = world.site().glance(std::slice::from_ref(&id)).await.unwrap().remove(&id).unwrap();
    assert!(glance.running && glance.name == request.name);

    // giving back may be repeated, also when the slot is over
    world.site().release(&id).await.unwrap();
    world.site().release(&id).await.unwrap();
    let facts = until(world, &id, |p| matches!(p, SlotPhase::Ended(_))).await;
    assert_eq!(facts.phase, SlotPhase::Ended(End::Deleted(world.user())));
    world.site().release(&id).await.unwrap();
}

async fn slots_are_found_by_name(world: &dyn World, job: &str) {
    let before = world.now();
    let request = request(job, 1, 0);
    assert!(look_up(world, &request, None).await.is_empty());
    let first = world.site().submit(&request).await.unwrap().remove(0);
    let second = world.site().submit(&request).await.unwrap().remove(0);
    assert_ne!(first, second);
    let found = look_up(world, &request, None).await;
    // names are in no order: 10 comes before 9
    assert_eq!(found.keys().collect::<BTreeSet<_>>(), BTreeSet::from([&first, &second]));
    assert!(found.values().all(|g| g.name == request.name));
    for id in [&first, &second] {
        world.site().release(id).await.unwrap();
        until(world, id, |p| matches!(p, SlotPhase::Ended(_))).await;
    }
    assert!(look_up(world, &request, None).await.is_empty());
    // finished ones count after a doubt
    assert_eq!(look_up(world, &request, Some(before)).await.len(), 2);
}

async fn reservations_of_one_request_go_one_by_one(world: &dyn World, job: &str) {
    let request = SlotRequest { reservations: 2, ..request(job, 1, 30) };
    let ids = world.site().submit(&request).await.unwrap();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 2, "{ids:?}");
    let found = look_up(world, &request, None).await;
    assert!(found.keys().eq(ids.iter().collect::<BTreeSet<_>>()), "{found:?}");
    assert!(found.values().all(|glance| glance.name == request.name), "{found:?}");
    let mut nodes = BTreeSet::new();
    for id in &ids {
        nodes.extend(until(world, id, |phase| *phase == SlotPhase::Running).await.nodes);
    }
    assert_eq!(nodes.len(), 2);
    world.site().release(&ids[0]).await.unwrap();
    until(world, &ids[0], |phase| matches!(phase, SlotPhase::Ended(_))).await;
    assert_eq!(one(world, &ids[1]).await.unwrap().phase, SlotPhase::Running);
    world.site().release(&ids[1]).await.unwrap();
    until(world, &ids[1], |phase| matches!(phase, SlotPhase::Ended(_))).await;
}

async fn unknown_ids_are_missing_not_errors(world: &dyn World) {
    let unknown: SlotId = "99999999".into();
    assert!(world.site().status(std::slice::from_ref(&unknown)).await.unwrap().is_empty());
    assert!(world.site().glance(std::slice::from_ref(&unknown)).await.unwrap().is_empty());
    assert!(matches!(world.site().release(&unknown).await, Err(SiteError::NotFound(_))));
}

async fn too_many_nodes_are_refused(world: &dyn World, job: &str) {
    let refused = world.site().submit(&request(job, 101, 0)).await;
    assert!(matches!(refused, Err(SiteError::NotEnoughNodes(_))), "{refused:?}");
}
