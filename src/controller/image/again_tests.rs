//! Decisions about an image that is imported again because a person asks for it.

use jiff::SignedDuration;
use rstest::rstest;

use super::{
    tests::{digest, failed, imported, now, ready, seen},
    *,
};
use crate::{
    api::{
        ConditionType,
        conditions::{get, is_true},
    },
    controller::image::{importer, review},
    image::StoredFile,
};

/// What an importer ends with that has made another disk.
fn brought(n: u8) -> Importer {
    let Importer::Ended(Outcome::Imported { virtual_size, kernel, initrd, conversion, manifests, .. }) = imported()
    else {
        unreachable!()
    };
    let disk = StoredFile { digest: digest(n), size: 7 };
    Importer::Ended(Outcome::Imported { disk, virtual_size, kernel, initrd, conversion, manifests })
}

/// An image made of an archive on a claim: only its status names the disk.
struct Life {
    image: VmImage,
    time: Timestamp,
}

impl Life {
    /// Imported as the first disk, and asked for again.
    fn new() -> Self {
        let image = "apiVersion: vmdeploy.io/v1alpha1\nkind: VmImage\n\
                     metadata: {name: debian, namespace: team, uid: 3f2b8a10, generation: 1}\n\
                     spec: {format: tar, source: {claim: {name: disks, path: root.tar}}}\n";
        let mut life = Self { image: crate::yaml::read(image).unwrap(), time: now() };
        life.pass(Fact::Known(brought(1)));
        life.has(1);
        life.ask("again");
        life
    }

    fn ask(&mut self, value: &str) {
        self.image.metadata.annotations = Some([(ANNOTATION_IMPORT.to_owned(), value.to_owned())].into());
    }

    fn pass(&mut self, importer: Fact<Importer>) -> Plan {
        let stored = wanted(&self.image).digests.into_iter().map(|digest| (digest, Fact::Known(7))).collect();
        self.decide(&Seen { stored, ..seen(importer) })
    }

    fn decide(&mut self, seen: &Seen) -> Plan {
        let plan = decide(&self.image, seen, self.time);
        self.image.status = Some(plan.status.clone());
        plan
    }

    /// Jobs may start from this disk, and the repository is told to keep it.
    fn has(&self, n: u8) {
        let conditions = &self.image.status.as_ref().unwrap().conditions;
        assert!(is_true(conditions, ConditionType::Ready) && is_true(conditions, ConditionType::ImageReady));
        assert!(!is_true(conditions, ConditionType::Stalled));
        assert_eq!(self.image.status.as_ref().unwrap().digest, Some(digest(n)));
        assert_eq!(wanted(&self.image).digests, [digest(n)], "it is looked whether the repository has it");
        assert_eq!(review::named(std::slice::from_ref(&self.image), &[]), [digest(n)].into());
    }

    fn is_reconciling(&self) -> bool {
        is_true(&self.image.status.as_ref().unwrap().conditions, ConditionType::Reconciling)
    }

    fn message(&self) -> &str {
        &get(&self.image.status.as_ref().unwrap().conditions, ConditionType::Ready).unwrap().message
    }

    fn importer(&self) -> String {
        importer::place(&self.image, "vmdeploy-system").1
    }
}

#[test]
fn the_old_disk_is_used_until_the_new_one_is_there() {
    let mut life = Life::new();
    let name = life.importer();
    assert_eq!(life.pass(Fact::Absent).effects, [Effect::StartImporter]);
    life.has(1);
    let waits = Importer::Working(Some("ErrImagePull".into()));
    for importer in [Fact::Known(Importer::Working(None)), Fact::Unknown { since: now() }, Fact::Known(waits)] {
        assert_eq!(life.pass(importer).effects, []);
        life.has(1);
        assert!(life.is_reconciling() && life.importer() == name);
    }
    let silent = Seen { stored: [(digest(1), Fact::Unknown { since: now() })].into(), ..seen(Fact::Absent) };
    assert_eq!(life.decide(&silent).effects, [Effect::StartImporter], "silence takes nothing back");
    life.has(1);
    let plan = life.pass(Fact::Known(brought(2)));
    assert_eq!((plan.why, plan.note.map(|note| note.warning)), ("the importer has ended well", Some(false)));
    life.has(2);
    assert!(!life.is_reconciling());
    let status = life.image.status.clone();
    assert_eq!(life.pass(Fact::Unknown { since: now() }).why, "imported");
    assert_eq!(life.image.status, status, "once");
}

#[test]
fn a_failure_that_passes_is_tried_again_and_told_once() {
    let mut life = Life::new();
    for (tries, seconds) in [(1, 10), (2, 20), (3, 40)] {
        assert_eq!(life.pass(Fact::Absent).effects, [Effect::StartImporter]);
        let name = life.importer();
        let plan = life.pass(Fact::Known(failed(true)));
        life.has(1);
        assert_eq!((plan.status.failures, plan.wake), (tries, Some(Duration::from_secs(seconds))));
        assert!(life.message().contains("importing again failed: no; tried again in"), "{}", life.message());
        assert_eq!(plan.note.map(|note| note.warning), (tries == 1).then_some(true));
        assert!(life.is_reconciling() && life.importer() != name);
        let early = life.pass(Fact::Absent);
        assert_eq!((early.effects.len(), early.why), (0, "backing off"));
        life.has(1);
        life.time += SignedDuration::from_secs(seconds.try_into().unwrap());
    }
    assert_eq!(life.pass(Fact::Absent).effects, [Effect::StartImporter]);
    let plan = life.pass(Fact::Known(brought(2)));
    assert_eq!((ready(&plan), plan.status.failures), (("True", "ImageImported"), 0));
    life.has(2);
}

#[test]
fn a_refusal_ends_it_and_the_old_disk_stays() {
    let mut life = Life::new();
    life.pass(Fact::Absent);
    let plan = life.pass(Fact::Known(failed(false)));
    let note = plan.note.unwrap();
    assert_eq!((plan.why, note.warning, note.reason), ("refused", true, Reason::DigestMismatch));
    assert!(plan.wake.is_some(), "the repository may lose it");
    life.has(1);
    assert!(!life.is_reconciling());
    for words in ["importing again failed: no", ANNOTATION_IMPORT] {
        assert!(life.message().contains(words), "{}", life.message());
    }
    let status = life.image.status.clone();
    life.time += SignedDuration::from_hours(100);
    let later = life.pass(Fact::Absent);
    assert_eq!((later.effects.len(), later.note, later.why), (0, None, "refused until the spec changes"));
    assert_eq!(life.image.status, status);
    life.ask("once more");
    let plan = life.pass(Fact::Absent);
    assert_eq!((plan.effects.as_slice(), plan.status.failures), ([Effect::StartImporter].as_slice(), 0));
    life.has(1);
    life.pass(Fact::Known(brought(2)));
    life.has(2);
}

#[rstest]
#[case::under_way(Importer::Working(None))]
#[case::failed(failed(true))]
#[case::refused(failed(false))]
fn other_content_is_not_ready_meanwhile(#[case] importer: Importer) {
    let mut life = Life::new();
    life.pass(Fact::Known(importer));
    life.has(1);
    life.image.spec.source.claim.as_mut().unwrap().path = "other.tar".into();
    let plan = life.pass(Fact::Absent);
    assert_eq!((ready(&plan).0, &plan.status.digest, plan.status.failures), ("False", &None, 0));
    assert_eq!(plan.effects, [Effect::StartImporter]);
}

#[rstest]
#[case::under_way(Importer::Working(None), "-0")]
#[case::failed(failed(true), "-1")]
#[case::refused(failed(false), "-1")]
fn what_the_repository_lost_meanwhile_is_not_ready(#[case] importer: Importer, #[case] tries: &str) {
    let mut life = Life::new();
    life.pass(Fact::Known(importer));
    let gone = Seen { stored: [(digest(1), Fact::Absent)].into(), ..seen(Fact::Unknown { since: now() }) };
    let plan = life.decide(&gone);
    assert_eq!((ready(&plan).0, &plan.status.digest, plan.effects.len()), ("False", &None, 0));
    assert!(plan.note.is_some_and(|note| note.warning));
    life.time += SignedDuration::from_hours(1);
    assert!(life.importer().ends_with(tries), "an importer of its own, or the one that works: {}", life.importer());
    assert!(wanted(&life.image).importer, "also what was refused is tried once more");
    assert_eq!(life.pass(Fact::Absent).effects, [Effect::StartImporter]);
    life.pass(Fact::Known(brought(2)));
    life.has(2);
}
