//! Bad input: a condition with a clear message at once, no storm, mended by a new spec.

use rstest::rstest;

use super::life::*;
use crate::{
    api::{
        JobPhase, Reason,
        job::{Allocation, NetworkKind, NetworkSpec},
        quantity::Bytes,
    },
    controller::job::plan::{ImageSeen, Reply},
    driver::{Fact, site::SiteError},
};

type Change = fn(&mut Life);

#[rstest]
#[case::unknown_site(|l: &mut Life| l.seen.site = None, "UnknownSite", "rennes")]
#[case::no_image(|l: &mut Life| l.seen.image = Fact::Absent, "ImageNotFound", "debian-12")]
#[case::wrong_digest(|l: &mut Life| l.seen.image = Fact::Known(ImageSeen::Broken(Reason::DigestMismatch, "not it".into())), "DigestMismatch", "not it")]
#[case::no_account(|l: &mut Life| l.seen.account = Fact::Absent, "CredentialsMissing", "slots.credentials")]
#[case::no_account_of_the_chart(|l: &mut Life| l.seen.account = Fact::Absent, "CredentialsMissing", "sites.rennes.users")]
#[case::bad_secret(|l: &mut Life| l.seen.account = Fact::Known(Err("Secret x lacks y".into())), "CredentialsMissing", "lacks y")]
#[case::no_input(|l: &mut Life| l.seen.missing_inputs = Fact::Known(vec!["key a of ConfigMap b".into()]), "InputMissing", "key a")]
#[case::too_large(|l: &mut Life| l.job.spec.vm.memory = Bytes(1 << 40), "MemoryTooLarge", "4Gi")]
#[case::per_member(
    |l: &mut Life| {
        l.job.spec.slots.allocation = Allocation::PerMember;
        l.seen.site.as_mut().unwrap().capabilities.per_member = false;
    },
    "NotSupported",
    "must be Gang"
)]
#[case::no_subnet(|l: &mut Life| l.seen.network.subnet = None, "NoSubnet", "jobNetwork.pool")]
#[case::overlap(|l: &mut Life| l.seen.network.overlap = Some("node-1".into()), "PoolOverlaps", "node-1")]
#[case::kavlan(|l: &mut Life| l.job.spec.network = Some(NetworkSpec { kind: NetworkKind::Kavlan, ..NetworkSpec::default() }), "NotSupported", "use Overlay")]
fn mistakes_are_said_and_mended(#[case] break_it: Change, #[case] reason: &str, #[case] words: &str) {
    let mut life = life(1);
    let good = (life.job.spec.clone(), life.seen.clone());
    break_it(&mut life);
    life.settle();
    assert_eq!(life.phase(), JobPhase::Pending);
    for kind in ["Ready", "Stalled"] {
        let message = life.message(kind);
        assert!(message.contains(reason) && message.contains(words), "{kind}: {message}");
    }
    let writes = life.writes;
    life.run(300);
    assert_eq!((life.writes, life.effects("SubmitSlots").len()), (writes, 0), "a storm");
    life.job.spec = good.0;
    life.seen = good.1;
    life.job.metadata.generation = Some(2);
    life.run(5);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
    assert_eq!(life.message("Stalled"), "");
}

#[test]
fn an_import_is_waited_for() {
    let mut life = life(1);
    let ready = std::mem::replace(&mut life.seen.image, Fact::Known(ImageSeen::Importing("half".into())));
    life.settle();
    assert_eq!(life.phase(), JobPhase::ImagePreparing);
    assert!(life.message("ImageReady").contains("half"));
    life.seen.image = ready;
    life.run(3);
    assert_eq!(life.phase(), JobPhase::Running);
}

#[test]
fn what_is_not_known_is_no_mistake() {
    let mut life = life(1);
    life.seen.account = Fact::Unknown { since: at(START) };
    life.settle();
    assert_eq!((life.phase(), life.message("Stalled").as_str()), (JobPhase::Pending, ""));
}

#[rstest]
#[case::refused(SiteError::Refused("[ADMISSION RULE] no".into()), "SubmissionRefused", "[ADMISSION RULE] no")]
#[case::too_many(SiteError::NotEnoughNodes("4".into()), "NotEnoughNodes", "not enough nodes")]
#[case::account(SiteError::Credentials("401".into()), "CredentialsRefused", "401")]
fn a_refusal_waits_longer_each_time_and_is_mended_by_a_new_spec(
    #[case] error: SiteError,
    #[case] reason: &str,
    #[case] words: &str,
) {
    let mut life = life(1);
    let mut sent = Vec::new();
    for second in 0..400 {
        life.advance(1);
        let plan = life.plan();
        life.write_only(&plan);
        for effect in &plan.effects {
            if let crate::controller::job::plan::Effect::SubmitSlots { submission, .. } = effect {
                sent.push(second);
                life.seen.reply = Some(Reply { submission: *submission, outcome: Err(error.clone()) });
            } else {
                life.job.metadata.finalizers = Some(vec![crate::api::FINALIZER.into()]);
            }
        }
    }
    assert!(sent.len() >= 3 && sent.len() <= 7, "{sent:?}");
    assert!(sent.windows(3).all(|s| s[2] - s[1] > s[1] - s[0]), "{sent:?}");
    let message = life.message("Stalled");
    assert!(message.contains(reason) && message.contains(words), "{message}");
    life.seen.reply = None;
    life.job.metadata.generation = Some(2);
    life.run(5);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
}

#[test]
fn a_node_that_the_cluster_does_not_have_is_said_with_what_to_change() {
    let mut life = life(1);
    let nodes = std::mem::take(&mut life.seen.nodes);
    life.run(70);
    let words =
        "node node-1 of slot 101 is not a node of this cluster: have sites.rennes.nodes give its Kubernetes name";
    for kind in ["Ready", "Stalled"] {
        let message = life.message(kind);
        assert!(message.contains("UnknownNode") && message.contains(words), "{kind}: {message}");
    }
    assert!(!life.effects("ReleaseSlot").is_empty(), "{:?}", life.whys);
    // it loops, later each time
    life.run(200);
    assert!(life.status().retry.unwrap().count > 1);
    life.seen.nodes = nodes;
    life.run(300);
    assert_eq!((life.phase(), life.message("Stalled").as_str()), (JobPhase::Running, ""), "{:?}", life.whys);
}

#[test]
fn why_a_site_does_not_answer_is_said_and_what_may_help() {
    let mut life = Life::running(1);
    life.seen.slots = Fact::Unknown { since: life.now };
    life.run(20);
    let said = |why: &str| format!("True SiteUnreachable: the site does not answer{why}");
    assert_eq!(life.message("SchedulerUnavailable"), said("; nothing is given up"));
    life.seen.site_error = Some(SiteError::Unreachable("connection refused".into()));
    life.run(1);
    assert_eq!(life.message("SchedulerUnavailable"), said(" (connection refused); nothing is given up"));
    life.seen.site_error = Some(SiteError::Unreachable("invalid peer certificate: UnknownIssuer".into()));
    life.run(1);
    let message = life.message("SchedulerUnavailable");
    assert!(message.ends_with("; an authority of your own goes into sites.rennes.ca"), "{message}");
    assert_eq!(life.message("Stalled"), "", "it may come back by itself");
}

#[test]
fn a_corrected_request_replaces_one_that_waits() {
    let mut life = life(1);
    life.prompt = false;
    life.settle();
    assert_eq!(life.phase(), JobPhase::Queued);
    life.job.metadata.generation = Some(2);
    life.job.spec.snapshots.keep = 5;
    life.run(2);
    assert_eq!(life.status().submission, 1, "what is asked for is the same");
    life.job.metadata.generation = Some(3);
    life.job.spec.slots.walltime = std::time::Duration::from_secs(600).into();
    life.run(3);
    let status = life.status();
    assert_eq!((status.submission, status.slots.len()), (2, 1), "{:?}", life.whys);
    assert_eq!(status.slots[0].id, "102");
}

#[test]
fn a_refused_account_is_said_and_tried_again_by_itself() {
    let mut life = life(1);
    let good = life.seen.clone();
    life.seen.slots = Fact::Unknown { since: life.now };
    life.seen.looked_up = None;
    life.seen.reads_good_since = None;
    life.seen.site_error = Some(SiteError::Credentials("wrong password".into()));
    life.settle();
    let message = life.message("Ready");
    assert!(message.contains("CredentialsRefused") && message.contains("wrong password"), "{message}");
    life.run(300);
    assert_eq!(life.effects("SubmitSlots").len(), 0);
    assert!(life.writes < 12, "a storm: {} writes", life.writes);
    // the Secret was corrected: no new spec is needed
    life.seen.slots = good.slots;
    life.seen.looked_up = Some(life.now);
    life.seen.reads_good_since = good.reads_good_since;
    life.seen.site_error = None;
    life.run(700);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
    assert!(!life.message("Ready").contains("CredentialsRefused"));
}
