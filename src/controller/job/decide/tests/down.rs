//! Suspension and deletion, in every phase.

use rstest::rstest;

use super::life::*;
use crate::{
    api::{JobPhase, SnapshotStatus, snapshot::SnapshotReason},
    controller::job::plan::PodSeen,
    driver::{
        Fact,
        agent::VmState,
        site::{End, NoticeKind},
    },
};

/// A job in a phase, held there by its surroundings.
fn in_phase(phase: JobPhase) -> Life {
    let mut life = match phase {
        JobPhase::Pending => {
            let mut life = life(2);
            life.seen.site = None;
            life.settle();
            life
        }
        JobPhase::ImagePreparing => {
            let mut life = life(2);
            life.seen.image = Fact::Known(crate::controller::job::plan::ImageSeen::Importing(String::new()));
            life.settle();
            life
        }
        JobPhase::Queued => {
            let mut life = life(2);
            life.prompt = false;
            life.settle();
            life
        }
        JobPhase::Deploying => {
            let mut life = life(2);
            life.seen.nodes.clear();
            life.settle();
            life
        }
        JobPhase::Starting => {
            let mut life = life(2);
            while life.effects("CreateAgent").is_empty() {
                life.advance(1);
                life.pass();
            }
            life.agent(1).vm = VmState::Fetching { done: 0, total: 9 };
            life.settle();
            life
        }
        JobPhase::Restoring => {
            let mut life = Life::running(2);
            life.run(700);
            life.end_slot("101", End::Preempted);
            while life.effects("CreateAgent").len() < 4 {
                life.advance(1);
                life.pass();
            }
            life.agent(1).vm = VmState::Fetching { done: 0, total: 9 };
            life.settle();
            life
        }
        JobPhase::Running => Life::running(2),
        JobPhase::Snapshotting => {
            let mut life = Life::running(2);
            life.run(5);
            life.add_snapshot("mine", SnapshotReason::User);
            life.advance(1);
            life.pass();
            life
        }
        JobPhase::Evacuating => {
            let mut life = Life::running(2);
            life.run(5);
            life.stores = false;
            life.notice("101", NoticeKind::Preemption);
            life.settle();
            life.stores = true;
            life
        }
        JobPhase::Completing => {
            let mut life = Life::running(2);
            life.run(5);
            life.finish(0);
            life.agent(0).guest.outputs_kept = false;
            life.settle();
            life
        }
        JobPhase::Succeeded | JobPhase::Failed => {
            let mut life = Life::running(2);
            life.run(5);
            life.job.spec.backoff_limit = 0;
            life.finish(i32::from(phase == JobPhase::Failed));
            life.run(5);
            life
        }
        JobPhase::Suspended => {
            let mut life = Life::running(2);
            life.run(5);
            life.job.spec.suspend = true;
            life.run(30);
            life
        }
        JobPhase::Terminating => {
            let mut life = Life::running(2);
            life.job.metadata.deletion_timestamp = life.job.metadata.creation_timestamp.clone();
            life.pass();
            life
        }
    };
    assert_eq!(life.phase(), phase, "{:?}", life.whys);
    life.done.clear();
    life
}

#[rstest]
fn deletion_leaves_nothing(
    #[values(
        JobPhase::Pending,
        JobPhase::ImagePreparing,
        JobPhase::Queued,
        JobPhase::Deploying,
        JobPhase::Starting,
        JobPhase::Restoring,
        JobPhase::Running,
        JobPhase::Snapshotting,
        JobPhase::Evacuating,
        JobPhase::Completing,
        JobPhase::Succeeded,
        JobPhase::Failed,
        JobPhase::Suspended,
        JobPhase::Terminating
    )]
    phase: JobPhase,
) {
    let mut life = in_phase(phase);
    life.job.metadata.deletion_timestamp = life.job.metadata.creation_timestamp.clone();
    life.run(60);
    assert!(life.gone, "{:?}", &life.whys[life.whys.len() - 5..]);
    assert!(life.slots().iter().all(|slot| matches!(slot.phase, crate::driver::site::SlotPhase::Ended(_))));
    assert!(life.seen.pods.is_empty() && life.seen.snapshots.is_empty());
    assert!(life.content().generations.is_empty());
}

#[test]
fn deletion_says_whose_word_it_waits_for() {
    let mut life = in_phase(JobPhase::Running);
    life.job.metadata.deletion_timestamp = life.job.metadata.creation_timestamp.clone();
    let dead = PodSeen { node: "node-9".into(), incarnation: 1, deleting: true, ..PodSeen::default() };
    life.seen.pods.insert("agent-of-a-dead-node".into(), dead);
    life.run(60);
    let said = life.message("Ready");
    assert!(!life.gone && said.contains("kubelet of node-9 has yet to say that pod agent-of-a-dead-node"), "{said}");
    life.seen.pods.clear();
    life.run(5);
    assert!(life.gone);
}

#[test]
fn deletion_keeps_what_is_retained() {
    let mut life = Life::running(1);
    life.run(700);
    life.seen.snapshots[0].retain = true;
    life.job.metadata.deletion_timestamp = life.job.metadata.creation_timestamp.clone();
    life.run(30);
    assert!(life.gone);
    assert_eq!((life.seen.snapshots.len(), life.content().generations.len()), (1, 1));
}

#[test]
fn a_retained_snapshot_that_was_never_taken_keeps_nothing() {
    let mut life = Life::running(1);
    life.run(700);
    let mut mine = life.seen.snapshots[0].clone();
    (mine.name, mine.retain, mine.reason) = ("mine".into(), true, SnapshotReason::User);
    mine.status = SnapshotStatus::default();
    life.seen.snapshots.push(mine);
    life.job.metadata.deletion_timestamp = life.job.metadata.creation_timestamp.clone();
    life.advance(1);
    life.run(30);
    assert!(life.gone, "{:?}", life.whys);
    assert_eq!(life.effects("RemoveContent").len(), 1);
}

#[test]
fn deletion_waits_for_a_site_that_does_not_answer() {
    let mut life = Life::running(1);
    life.job.metadata.deletion_timestamp = life.job.metadata.creation_timestamp.clone();
    let slots = std::mem::replace(&mut life.seen.slots, Fact::Unknown { since: life.now });
    for _ in 0..100 {
        life.advance(1);
        let plan = life.plan();
        life.write_only(&plan);
        assert!(!plan.effects.iter().any(|effect| effect.name() == "RemoveFinalizer"));
    }
    life.seen.slots = slots;
    life.run(60);
    assert!(life.gone);
}

#[test]
fn a_request_in_doubt_is_found_before_the_object_goes() {
    let mut life = life(1);
    life.pass();
    let plan = life.plan();
    life.write_only(&plan);
    life.job.metadata.deletion_timestamp = life.job.metadata.creation_timestamp.clone();
    life.run(5);
    assert!(!life.gone);
    let id = life.add_slot(1);
    life.start_slot(&id);
    life.run(30);
    assert!(life.gone);
    assert_eq!(life.effects("ReleaseSlot").len(), 1);
}

#[rstest]
fn suspension_holds_nothing_and_the_job_goes_on(
    #[values(
        JobPhase::Pending,
        JobPhase::ImagePreparing,
        JobPhase::Queued,
        JobPhase::Deploying,
        JobPhase::Starting,
        JobPhase::Restoring,
        JobPhase::Running,
        JobPhase::Snapshotting,
        JobPhase::Evacuating
    )]
    phase: JobPhase,
) {
    let mut life = in_phase(phase);
    life.job.spec.suspend = true;
    life.run(60);
    assert_eq!(life.phase(), JobPhase::Suspended, "{:?}", &life.whys[life.whys.len() - 5..]);
    assert!(life.status().slots.is_empty() && life.seen.pods.is_empty());
    let good = super::life::life(2);
    (life.seen.site, life.seen.image, life.seen.nodes) = (good.seen.site, good.seen.image, good.seen.nodes);
    life.job.spec.suspend = false;
    life.job.metadata.generation = Some(3);
    life.prompt = true;
    life.run(20);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", &life.whys[life.whys.len() - 9..]);
    assert!(life.status().suspended_seconds >= 1);
    if phase == JobPhase::Running {
        assert_eq!(life.status().origin.unwrap().generation, Some(1), "captured before it was suspended");
    }
}

#[test]
fn a_job_deleted_at_the_site_goes_on_when_suspend_is_set_and_unset() {
    let mut life = Life::running(1);
    life.run(5);
    life.end_slot("101", End::Deleted("alice".into()));
    life.run(100);
    assert_eq!(life.phase(), JobPhase::Suspended);
    life.job.spec.suspend = true;
    life.run(5);
    life.job.spec.suspend = false;
    life.run(10);
    assert_eq!(life.phase(), JobPhase::Running);
}

#[test]
fn b12_content_is_not_removed_beside_a_snapshot_that_cannot_be_read() {
    let mut life = Life::running(1);
    life.run(700);
    life.seen.unread_snapshots = true;
    life.job.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(life.now));
    life.run(60);
    assert!(life.effects("RemoveContent").is_empty() && !life.gone);
    assert!(life.whys.last().unwrap().contains("cannot be read"));
    let told = life.message("Stalled");
    assert!(told.starts_with("True SnapshotUnreadable") && told.contains("delete it"), "{told}");
    let (writes, notes) = (life.writes, life.plan().notes);
    life.run(60);
    assert!(life.writes == writes && notes.is_empty(), "told of once");
    life.seen.unread_snapshots = false;
    life.run(20);
    assert!(life.gone && life.effects("RemoveContent").len() == 1);
}

#[test]
fn a_slot_that_the_site_does_not_take_back_is_told_of_once() {
    let mut life = Life::running(1);
    life.job.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(life.now));
    let mut told = Vec::new();
    for second in 0..60 {
        life.advance(1);
        let plan = life.plan();
        life.write_only(&plan);
        told.extend(plan.notes.iter().filter(|note| note.warning).map(|note| note.reason));
        match second {
            // another operator, which has not tried yet
            30 => drop(life.seen.releases.remove("101")),
            _ => drop(life.seen.releases.insert("101".into(), Some("not your job".into()))),
        }
        if second > 1 {
            let said = life.message("SchedulerUnavailable");
            assert!(said.starts_with("True ReleaseRefused") && said.contains("oardel 101"), "{second}: {said}");
            assert!(life.message("Stalled").contains("not your job"), "{}", life.message("Stalled"));
        }
    }
    assert_eq!(told, [crate::api::Reason::ReleaseRefused]);
    life.seen.releases.insert("101".into(), None);
    life.pass();
    assert_eq!((life.message("SchedulerUnavailable"), life.message("Stalled")), (String::new(), String::new()));
    life.run(60);
    assert!(life.gone, "{:?}", life.whys.last());
}
