use std::collections::BTreeMap;

use jiff::SignedDuration;
use rstest::rstest;

use super::*;
use crate::{
    api::{
        ConditionType,
        conditions::{get, is_true},
        image::{HttpSource, VmImageSpec},
    },
    image::{StoredFile, TroubleKind},
};

pub(super) fn now() -> Timestamp {
    "2026-11-25T12:00:00Z".parse().unwrap()
}

pub(super) fn digest(n: u8) -> String {
    format!("sha256:{n:064x}")
}

fn image(url: &str) -> VmImage {
    let http = HttpSource { url: url.into(), digest: digest(1), credentials: None, plain_http: false };
    let spec = VmImageSpec {
        source: ImageSource { http: Some(http), ..ImageSource::default() },
        arch: Default::default(),
        format: Default::default(),
        disk_size: None,
        os: None,
        skip_boot_check: false,
        standard: false,
    };
    let mut image = VmImage::new("debian-12", spec);
    image.metadata.namespace = Some("team".into());
    image.metadata.generation = Some(1);
    image
}

pub(super) fn seen(importer: Fact<Importer>) -> Seen {
    let logins = Fact::Known(Ok(BTreeMap::new()));
    Seen { importer, present: None, stored: BTreeMap::new(), logins, environment: None }
}

fn unknown<T>() -> Fact<T> {
    Fact::Unknown { since: now() }
}

pub(super) fn imported() -> Importer {
    let disk = StoredFile { digest: digest(1), size: 7 };
    Importer::Ended(Outcome::Imported {
        disk,
        virtual_size: 1 << 20,
        kernel: None,
        initrd: None,
        conversion: None,
        manifests: BTreeMap::new(),
    })
}

pub(super) fn failed(again: bool) -> Importer {
    let kind = if again { TroubleKind::Fetch } else { TroubleKind::Digest };
    Importer::Ended(Outcome::Failed(Trouble { kind, message: "no".into(), again }))
}

fn unfinished() -> Fact<Importer> {
    Fact::Known(Importer::Unfinished("ContainerCreating".into()))
}

/// The image after a pass in which the importer was seen so.
pub(super) fn after(mut image: VmImage, importer: Importer) -> VmImage {
    image.status = Some(decide(&image, &seen(Fact::Known(importer)), now()).status);
    image
}

pub(super) fn ready(plan: &Plan) -> (&str, &str) {
    let condition = get(&plan.status.conditions, ConditionType::Ready).unwrap();
    (&condition.status, &condition.reason)
}

#[rstest]
#[case::not_started(Fact::Absent, vec![Effect::StartImporter], "ImageImporting")]
#[case::no_answer(unknown(), vec![], "ImageImporting")]
#[case::at_work(Fact::Known(Importer::Working(None)), vec![], "ImageImporting")]
#[case::waiting(Fact::Known(Importer::Working(Some("ErrImagePull".into()))), vec![], "ImageImporting")]
#[case::begun_by_an_operator_that_died(unfinished(), vec![Effect::StartImporter], "ImageImporting")]
#[case::network(Fact::Known(failed(true)), vec![], "ImageFetchFailed")]
#[case::other_file(Fact::Known(failed(false)), vec![], "DigestMismatch")]
fn an_image_that_is_not_there(#[case] importer: Fact<Importer>, #[case] effects: Vec<Effect>, #[case] reason: &str) {
    let plan = decide(&image("http://x/a"), &seen(importer), now());
    assert_eq!(plan.effects, effects);
    assert_eq!(ready(&plan), ("False", reason));
    assert_eq!(plan.status.observed_generation, 1);
    let stalled = is_true(&plan.status.conditions, ConditionType::Stalled);
    assert_eq!(stalled, reason == "DigestMismatch");
    assert_eq!(is_true(&plan.status.conditions, ConditionType::Reconciling), !stalled);
    assert_eq!(plan.wake.is_none(), stalled, "only a person's change ends a refusal");
}

#[test]
fn no_importer_is_started_without_the_logins_it_needs() {
    let image = image("https://x/a");
    let silent = Seen { logins: unknown(), ..seen(Fact::Absent) };
    let plan = decide(&image, &silent, now());
    assert_eq!((plan.effects.len(), ready(&plan).1, plan.status.failures), (0, "ImageImporting", 0));
    let begun = Seen { logins: unknown(), ..seen(unfinished()) };
    assert_eq!(decide(&image, &begun, now()).effects, []);
    let missing = Trouble::passing(TroubleKind::LoginMissing, "there is no Secret");
    let plan = decide(&image, &Seen { logins: Fact::Known(Err(missing)), ..seen(Fact::Absent) }, now());
    assert_eq!((plan.effects.len(), ready(&plan)), (0, ("False", "CredentialsMissing")));
    assert!(plan.wake.is_some(), "it may be made");
}

#[test]
fn an_image_becomes_ready_once_and_stays_so() {
    let mut image = after(image("http://x/a"), imported());
    let status = image.status.clone().unwrap();
    assert_eq!((status.digest, status.failures), (Some(digest(1)), 0));
    let there = Seen { stored: BTreeMap::from([(digest(1), Fact::Known(7))]), ..seen(unknown()) };
    for _ in 0..3 {
        let plan = decide(&image, &there, now() + SignedDuration::from_hours(1));
        assert_eq!((ready(&plan), plan.effects.len(), &plan.note), (("True", "ImageImported"), 0, &None));
        assert_eq!(Some(&plan.status), image.status.as_ref(), "a pass with nothing to do writes nothing");
        image.status = Some(plan.status);
    }
}

#[test]
fn silence_of_the_repository_takes_nothing_back() {
    let image = after(image("http://x/a"), imported());
    let silent = Seen { stored: BTreeMap::from([(digest(1), unknown())]), ..seen(unknown()) };
    let plan = decide(&image, &silent, now());
    assert_eq!((Some(&plan.status), plan.effects.len()), (image.status.as_ref(), 0));
    assert!(plan.wake.is_some());
}

#[test]
fn what_the_repository_lost_is_imported_again() {
    let mut image = after(image("http://x/a"), imported());
    let gone = Seen { stored: BTreeMap::from([(digest(1), Fact::Absent)]), ..seen(unknown()) };
    let plan = decide(&image, &gone, now());
    assert_eq!((plan.effects.as_slice(), ready(&plan).0), ([Effect::RemoveImporter].as_slice(), "False"));
    assert_eq!(plan.status.digest, None, "no job may start from it");
    image.status = Some(plan.status);
    assert_eq!(decide(&image, &seen(Fact::Absent), now()).effects, [Effect::StartImporter]);
}

#[test]
fn failures_are_tried_again_ever_later() {
    let mut image = image("http://x/a");
    let mut time = now();
    let mut waits = Vec::new();
    for tries in 1..=8 {
        let plan = decide(&image, &seen(Fact::Known(failed(true))), time);
        assert_eq!(plan.status.failures, tries);
        let wait = plan.wake.unwrap();
        waits.push(wait.as_secs());
        image.status = Some(plan.status);
        let early = decide(&image, &seen(Fact::Absent), time + wait / 2);
        assert_eq!((early.effects.len(), early.why), (0, "backing off"));
        time += wait;
        assert_eq!(decide(&image, &seen(Fact::Absent), time).effects, [Effect::StartImporter]);
    }
    assert_eq!(waits, [10, 20, 40, 80, 160, 320, 600, 600]);
}

#[test]
fn a_refusal_is_mended_by_a_corrected_spec_only() {
    let mut refused = after(image("http://x/a"), failed(false));
    let plan = decide(&refused, &seen(Fact::Absent), now() + SignedDuration::from_hours(100));
    assert_eq!((plan.effects.len(), plan.wake, plan.why), (0, None, "refused until the spec changes"));
    refused.spec.source.http.as_mut().unwrap().digest = digest(2);
    refused.metadata.generation = Some(2);
    let plan = decide(&refused, &seen(Fact::Absent), now());
    assert_eq!(plan.effects, [Effect::StartImporter]);
    assert!(!is_true(&plan.status.conditions, ConditionType::Stalled));
    assert_eq!((plan.status.observed_generation, plan.status.failures), (2, 0));
}

#[test]
fn other_content_is_not_ready_until_it_is_imported() {
    let mut changed = after(image("http://x/a"), imported());
    changed.spec.source.http.as_mut().unwrap().digest = digest(2);
    let plan = decide(&changed, &seen(Fact::Absent), now());
    assert_eq!((plan.status.digest.as_ref(), ready(&plan).0), (None, "False"));
}

#[test]
fn what_is_not_imported_does_not_matter() {
    let mut changed = after(image("http://x/a"), imported());
    changed.spec.standard = true;
    changed.metadata.generation = Some(2);
    let there = Seen { stored: BTreeMap::from([(digest(1), Fact::Known(7))]), ..seen(unknown()) };
    let plan = decide(&changed, &there, now());
    assert_eq!((ready(&plan).0, plan.effects.len(), plan.status.observed_generation), ("True", 0, 2));
}

#[test]
fn deletion_starts_nothing() {
    let mut image = image("http://x/a");
    image.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    let plan = decide(&image, &seen(Fact::Absent), now());
    assert_eq!((plan.effects.len(), plan.wake), (0, None));
}

#[test]
fn what_the_repository_has_already_needs_no_importer() {
    let Importer::Ended(outcome) = imported() else { unreachable!() };
    let there = Seen { present: Some(outcome), ..seen(Fact::Absent) };
    let plan = decide(&image("http://a/b"), &there, now());
    assert_eq!(plan.effects, []);
    assert_eq!((plan.status.digest, plan.status.virtual_size.map(|size| size.0)), (Some(digest(1)), Some(1 << 20)));
    assert!(is_true(&plan.status.conditions, ConditionType::Ready));
}

#[test]
fn an_image_is_imported_again_when_a_person_asks() {
    let mut image = after(image("https://example.org/a"), failed(false));
    assert_eq!(decide(&image, &seen(Fact::Absent), now()).effects, [], "refused until something changes");
    image.metadata.annotations = Some([(crate::api::ANNOTATION_IMPORT.to_owned(), "1".to_owned())].into());
    assert_eq!(decide(&image, &seen(Fact::Absent), now()).effects, [Effect::StartImporter]);
    let image = after(image, imported());
    assert_eq!(wanted(&image).digests, [digest(1)], "once");
}
