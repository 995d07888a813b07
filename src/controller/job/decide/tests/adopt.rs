//! Jobs that begin with another one's generation.

use rstest::rstest;

use super::life::*;
use crate::{
    api::{
        JobPhase, Reason,
        job::{AccessSpec, Master, NetworkSpec, RestoreFrom},
        quantity::Bytes,
        snapshot::SnapshotPhase,
    },
    controller::job::plan::{Effect, ImageSeen, SourceSeen, SourceSnapshot},
    driver::{
        Fact,
        agent::{LoadFault, VmState},
        repository::DamagedGeneration,
        site::End,
    },
    store::{
        adoption::{Adoption, Ancestor, GuestNetwork, GuestRecord, run_digest},
        manifest::{Manifest, tests::manifest},
    },
};

const SOURCE: &str = "77777777-0000";

/// A job that is to start from generation 7 of another one, which is complete.
pub(super) fn cloning(members: u32) -> Life {
    let mut life = life(members);
    life.job.spec.restore_from = Some(RestoreFrom { snapshot: "pi-7".into() });
    let Fact::Known(ImageSeen::Ready(image)) = &life.seen.image else { panic!("no image") };
    let mut source = Manifest { job: SOURCE.into(), namespace: "team".into(), image: image.clone(), ..manifest(7) };
    source.members.truncate(members as usize);
    source.guests = Some(GuestRecord {
        vm: life.job.spec.vm.clone(),
        run: run_digest(&life.job.spec.run),
        network: Some(GuestNetwork { subnet: "198.18.7.0/28".parse().unwrap(), mtu: 1400 }),
    });
    life.seen.source = Some(SourceSeen {
        name: "pi-7".into(),
        snapshot: Some(SourceSnapshot {
            job: "source".into(),
            job_uid: SOURCE.into(),
            generation: 7,
            phase: SnapshotPhase::Stored,
            deleting: false,
        }),
        manifest: Fact::Known(Box::new(source)),
        trouble: None,
        refused: None,
    });
    life
}

fn source(life: &mut Life) -> &mut Manifest {
    match &mut life.seen.source.as_mut().unwrap().manifest {
        Fact::Known(manifest) => manifest,
        other => panic!("{other:?}"),
    }
}

fn snapshot(life: &mut Life) -> &mut SourceSnapshot {
    life.seen.source.as_mut().unwrap().snapshot.as_mut().unwrap()
}

fn restored_from(life: &Life) -> Option<u32> {
    life.status().origin.unwrap().generation
}

#[test]
fn b11_a_generation_is_copied_before_a_slot_is_asked_for_and_brings_its_addresses() {
    let mut life = cloning(2);
    life.pass();
    let plan = life.plan();
    let adopted = plan.status.adopted.clone().unwrap();
    assert_eq!((adopted.job_uid.as_str(), adopted.generation, &adopted.complete), (SOURCE, 7, &None));
    let order = Adoption {
        from: Ancestor { job: SOURCE.into(), generation: 7 },
        job_name: "pi".into(),
        namespace: "team".into(),
    };
    assert_eq!(plan.effects, [Effect::Adopt(order)], "what is copied is in the status before it is");
    assert_eq!(plan.status.phase, JobPhase::Pending);
    life.run(5);
    let status = life.status();
    assert_eq!(status.phase, JobPhase::Running, "{:?}", life.whys);
    assert_eq!((restored_from(&life), status.incarnation, status.snapshots.next_generation), (Some(0), 1, 1));
    let network = status.network.clone().unwrap();
    assert_eq!((network.subnet.as_str(), network.mtu, network.vni), ("198.18.7.0/28", 1400, 77));
    let places: Vec<_> = status.members.iter().map(|m| (m.address.as_str(), m.mac.as_str())).collect();
    assert_eq!(places, [("198.18.7.1", "02:76:c6:12:07:01"), ("198.18.7.2", "02:76:c6:12:07:02")]);
    let restores = |effect: &&Effect| matches!(effect, Effect::CreateAgent(placed) if placed.restore == Some(0));
    assert_eq!(life.effects("CreateAgent").iter().copied().filter(|e| restores(e)).count(), 2);
    let message = life.message("Adopted");
    assert!(message.contains("True") && message.contains("generation 7 of job source"), "{message}");
    assert!(message.contains("198.18.7.0/28"), "{message}");
    life.run(700);
    assert_eq!(life.status().snapshots.last_stored, Some(1), "its own are counted from 1: {:?}", life.whys);
}

#[test]
fn b11_an_operator_that_dies_while_it_is_copied_does_no_harm() {
    // before the copy, after it, and when it was not told of
    for copied in [false, true] {
        let mut life = cloning(1);
        life.pass();
        let plan = life.plan();
        life.write_only(&plan);
        if copied {
            life.perform(&plan);
            // whatever became of the other job since
            life.seen.source.as_mut().unwrap().snapshot = None;
        }
        life.seen.sent.clear();
        life.run(8);
        assert_eq!((life.phase(), restored_from(&life)), (JobPhase::Running, Some(0)), "{:?}", life.whys);
        assert_eq!(life.effects("SubmitSlots").len(), 1);
    }
}

type Change = fn(&mut Life);

#[rstest]
#[case::no_snapshot(|l: &mut Life| l.seen.source.as_mut().unwrap().snapshot = None, "SnapshotNotFound", "no Snapshot pi-7")]
#[case::going(|l: &mut Life| snapshot(l).deleting = true, "SnapshotLost", "being deleted")]
#[case::void(|l: &mut Life| snapshot(l).phase = SnapshotPhase::Failed, "SnapshotLost", "is void")]
#[case::gone(|l: &mut Life| l.seen.source.as_mut().unwrap().manifest = Fact::Absent, "SnapshotLost", "name another one")]
#[case::damaged(|l: &mut Life| {
    let seen = l.seen.source.as_mut().unwrap();
    seen.manifest = Fact::Unknown { since: l.now };
    seen.trouble = Some((Reason::SnapshotDamaged, "damaged: its manifest".into()));
}, "SnapshotDamaged", "cannot be had: damaged: its manifest")]
#[case::d2_of_another_namespace(|l: &mut Life| source(l).namespace = "bob".into(), "SnapshotLost", "not of this namespace")]
#[case::of_an_old_version(|l: &mut Life| source(l).guests = None, "NotSupported", "take another one of job pi")]
#[case::members(|l: &mut Life| { source(l).members.pop(); }, "SnapshotMismatch", "members is 2 and must be 1")]
#[case::memory(|l: &mut Life| l.job.spec.vm.memory = Bytes::mebibytes(64), "SnapshotMismatch", "vm.memory is 64Mi and must be 512Mi")]
#[case::cpus(|l: &mut Life| l.job.spec.vm.cpus = 3, "SnapshotMismatch", "vm.cpus is 3 and must be 1")]
#[case::disk(|l: &mut Life| l.job.spec.vm.disk = Some(Bytes(9 << 30)), "SnapshotMismatch", "vm.disk must be left out")]
#[case::image(|l: &mut Life| source(l).image.disk = format!("sha256:{}", "2".repeat(64)), "SnapshotMismatch", "leave image out")]
#[case::command(|l: &mut Life| l.job.spec.run.command = vec!["/bin/false".into()], "SnapshotMismatch", "run must be that of job pi")]
#[case::no_way_in(|l: &mut Life| {
    source(l).guests.as_mut().unwrap().network = None;
    l.job.spec.network = Some(NetworkSpec { master: Master::Shared, ..NetworkSpec::default() });
    l.job.spec.access = Some(AccessSpec { ssh_keys: vec!["ssh-ed25519 AAAA a".into()] });
}, "NotSupported", "network.master")]
fn mistakes_ask_for_no_slot_and_are_said_and_mended(
    #[case] break_it: Change,
    #[case] reason: &str,
    #[case] words: &str,
) {
    let mut life = cloning(2);
    let good = (life.job.spec.clone(), life.seen.clone());
    break_it(&mut life);
    life.settle();
    assert_eq!(life.phase(), JobPhase::Pending, "{:?}", life.whys);
    for kind in ["Ready", "Stalled", "Adopted"] {
        let message = life.message(kind);
        assert!(message.contains(reason) && message.contains(words), "{kind}: {message}");
    }
    let writes = life.writes;
    life.run(300);
    assert_eq!((life.writes, life.effects("SubmitSlots").len(), life.effects("Adopt").len()), (writes, 0, 0));
    (life.job.spec, life.seen) = good;
    life.job.metadata.generation = Some(2);
    life.run(8);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
    assert_eq!(life.message("Stalled"), "");
}

#[test]
fn a_snapshot_that_is_not_complete_is_waited_for() {
    let mut life = cloning(1);
    snapshot(&mut life).phase = SnapshotPhase::Captured;
    life.seen.source.as_mut().unwrap().manifest = Fact::Unknown { since: life.now };
    life.run(100);
    assert_eq!((life.phase(), life.message("Stalled").as_str()), (JobPhase::Pending, ""), "{:?}", life.whys);
    for kind in ["Ready", "Adopted"] {
        let message = life.message(kind);
        assert!(message.contains("SnapshotIncomplete") && message.contains("pi-7 is Captured"), "{kind}: {message}");
    }
    assert_eq!(life.effects("SubmitSlots").len() + life.effects("Adopt").len(), 0);
    life.seen.source = cloning(1).seen.source;
    life.run(8);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
}

#[test]
fn a_repository_that_does_not_answer_is_no_mistake() {
    let mut life = cloning(1);
    life.seen.source.as_mut().unwrap().manifest = Fact::Unknown { since: life.now };
    life.run(60);
    assert_eq!((life.phase(), life.message("Stalled").as_str()), (JobPhase::Pending, ""), "{:?}", life.whys);
    assert_eq!(life.effects("SubmitSlots").len(), 0);
}

#[test]
fn the_image_is_that_of_the_snapshot_where_none_is_named() {
    let mut life = cloning(1);
    life.job.spec.image = None;
    life.seen.image = Fact::Absent;
    life.run(8);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
    assert_eq!(life.status().image.unwrap(), source(&mut life).image);
}

#[test]
fn b11_a_source_that_goes_before_it_is_copied_is_said() {
    let mut life = cloning(1);
    life.pass();
    let plan = life.plan();
    life.write_only(&plan);
    life.seen.source.as_mut().unwrap().snapshot = None;
    life.seen.source.as_mut().unwrap().manifest = Fact::Absent;
    life.run(60);
    let message = life.message("Stalled");
    assert!(message.contains("SnapshotLost") && message.contains("another job"), "{message}");
    assert_eq!((life.phase(), life.effects("SubmitSlots").len()), (JobPhase::Pending, 0));
}

#[test]
fn a_copy_that_is_damaged_before_it_is_noted_is_said() {
    let mut life = cloning(1);
    life.adopts = false;
    life.settle();
    life.content().damaged.push(DamagedGeneration { generation: 0, why: "pack 1 has a bad frame".into() });
    life.run(60);
    let message = life.message("Stalled");
    assert!(message.contains("SnapshotDamaged") && message.contains("pack 1 has a bad frame"), "{message}");
    assert_eq!((life.phase(), life.effects("SubmitSlots").len()), (JobPhase::Pending, 0));
}

#[test]
fn what_the_repository_says_against_a_copy_is_told_and_tried_again() {
    let mut life = cloning(1);
    life.adopts = false;
    life.settle();
    life.seen.source.as_mut().unwrap().refused = Some((Reason::RepositoryFull, "no room".into()));
    life.run(300);
    let message = life.message("Stalled");
    assert!(message.contains("RepositoryFull") && message.contains("no room"), "{message}");
    let tries = life.effects("Adopt").len();
    assert!((4..10).contains(&tries), "{tries}");
    life.adopts = true;
    life.run(70);
    assert_eq!((life.phase(), life.message("Stalled").as_str()), (JobPhase::Running, ""), "{:?}", life.whys);
}

#[test]
fn b11_before_its_first_own_generation_a_job_goes_back_to_the_adopted_one() {
    let mut life = cloning(2);
    life.run(20);
    life.end_slot("101", End::Preempted);
    life.run(20);
    let status = life.status();
    assert_eq!((status.phase, status.incarnation, restored_from(&life)), (JobPhase::Running, 2, Some(0)));
    assert_eq!(status.kills.preempted, 1);
    // and to its own once it has one
    life.run(700);
    life.end_slot("102", End::Preempted);
    life.run(20);
    assert_eq!((life.phase(), restored_from(&life)), (JobPhase::Running, Some(1)), "{:?}", life.whys);
    // a run that failed is begun again where it was begun
    life.agent(0).guest.exit_code = Some(3);
    life.run(60);
    assert_eq!((life.phase(), restored_from(&life)), (JobPhase::Running, Some(0)), "{:?}", life.whys);
    assert!(life.status().snapshots.next_generation > 1);
}

#[test]
fn c3_an_adopted_generation_that_does_not_restore_is_never_a_cold_boot() {
    let mut life = cloning(1);
    let goes = |life: &Life| life.plan().effects.iter().any(|effect| effect.name() == "Go");
    while !goes(&life) {
        life.pass();
        life.advance(1);
    }
    assert_eq!(restored_from(&life), Some(0), "{:?}", life.whys);
    life.agent(0).vm = VmState::Gone { reason: "damaged".into(), fault: LoadFault::Part };
    life.run(600);
    let message = life.message("Stalled");
    assert!(message.contains("RestoreFailed") && message.contains("[0]"), "{message}");
    let boots = |effect: &&Effect| matches!(effect, Effect::CreateAgent(placed) if placed.restore.is_none());
    assert_eq!(life.effects("CreateAgent").iter().copied().filter(|e| boots(e)).count(), 0);
    // lost altogether
    let mut life = cloning(1);
    life.run(8);
    life.content().generations.clear();
    life.end_slot("101", End::Preempted);
    life.run(600);
    assert_eq!(life.effects("CreateAgent").iter().copied().filter(|e| boots(e)).count(), 0);
    assert!(life.message("Stalled").contains("no longer has generation 0"), "{}", life.message("Stalled"));
}

#[test]
fn the_work_of_the_other_job_is_not_counted() {
    let mut life = cloning(1);
    source(&mut life).members[0].ran = 5000.0;
    life.run(4);
    // an agent counts from its restore, a record from the beginning of time
    life.run(700);
    let status = life.status();
    assert_eq!(status.adopted.unwrap().work, 5000);
    assert!(status.work.useful < 1000, "{:?}", status.work);
}

#[test]
fn a_job_that_is_deleted_while_it_is_copied_leaves_nothing() {
    let mut life = cloning(1);
    life.adopts = false;
    life.run(3);
    life.job.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(life.now));
    life.run(10);
    assert!(life.gone, "{:?}", life.whys);
    assert_eq!(life.effects("RemoveContent").len(), 1);
}

#[test]
fn a_deletion_that_an_unread_snapshot_holds_up_says_so_before_anything_has_run() {
    let mut life = cloning(1);
    life.adopts = false;
    life.settle();
    life.job.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(life.now));
    life.seen.unread_snapshots = true;
    life.run(30);
    let message = life.message("Stalled");
    assert!(!life.gone && message.contains("SnapshotUnreadable"), "{message}");
}

#[test]
fn a_slot_that_waits_when_a_snapshot_is_named_is_given_back() {
    let mut life = cloning(1);
    let from = life.job.spec.restore_from.take();
    life.prompt = false;
    life.settle();
    assert_eq!(life.phase(), JobPhase::Queued);
    life.job.spec.restore_from = from;
    life.job.metadata.generation = Some(2);
    life.prompt = true;
    life.run(20);
    assert_eq!((life.phase(), restored_from(&life)), (JobPhase::Running, Some(0)), "{:?}", life.whys);
    assert_eq!(life.status().network.unwrap().subnet, "198.18.7.0/28");
}
