//! Decisions about what the spec only names: environments, and tags of artifacts.

use super::{
    tests::{after, digest, failed, imported, now, ready, seen},
    *,
};
use crate::{
    api::{
        conditions::{get, is_true},
        image::RecordedEnvironment,
    },
    controller::image::importer,
    image::{Place, TroubleKind},
};

fn image() -> VmImage {
    let image = "apiVersion: vmdeploy.io/v1alpha1\nkind: VmImage\nmetadata: {name: debian, namespace: team, uid: 3f2b8a10}\n\
                 spec: {format: tar, source: {environment: {site: rennes, name: debian12-min}}}\n";
    crate::yaml::read(image).unwrap()
}

fn recorded(version: u64, file: &str) -> Looked {
    let description = format!("name: debian12-min\nversion: {version}\nimage: {{file: '{file}', kind: tar}}\n");
    let (name, user) = ("debian12-min".into(), Some("deploy".into()));
    Looked::Found(RecordedEnvironment { name, user, version: Some(version), description })
}

fn looked(environment: Looked) -> Seen {
    Seen { environment: Some(environment), ..seen(Fact::Unknown { since: now() }) }
}

fn silent() -> Seen {
    looked(Looked::Silent("the server at rennes does not answer".into()))
}

/// The image once its name has been looked up.
fn pinned_to(mut image: VmImage, version: u64) -> VmImage {
    assert!(wanted(&image).environment && !wanted(&image).importer);
    let found = recorded(version, &format!("https://files.example/{version}.tgz"));
    let plan = decide(&image, &looked(found), now());
    assert_eq!((plan.effects.as_slice(), plan.wake), ([].as_slice(), Some(Duration::ZERO)), "first it is written down");
    image.status = Some(plan.status);
    assert!(!wanted(&image).environment && wanted(&image).importer);
    image
}

fn asked_again(mut image: VmImage) -> VmImage {
    image.metadata.annotations = Some([(ANNOTATION_IMPORT.to_owned(), "again".to_owned())].into());
    image
}

fn version(image: &VmImage) -> Option<u64> {
    image.status.as_ref()?.pinned.as_ref()?.environment.as_ref()?.version
}

#[test]
fn the_newest_version_is_written_down_and_imported() {
    let image = pinned_to(image(), 3);
    assert_eq!(version(&image), Some(3));
    assert_eq!(decide(&image, &seen(Fact::Absent), now()).effects, [Effect::StartImporter]);
    let order = importer::order(&image);
    assert_eq!(order.disk.place, Place::Url("https://files.example/3.tgz".into()));
    let image = after(image, imported());
    let status = image.status.as_ref().unwrap();
    assert_eq!((status.digest.clone(), version(&image)), (Some(digest(1)), Some(3)));
    assert!(status.log.as_ref().unwrap().contains("debian12-min:3"), "{:?}", status.log);
}

#[test]
fn silence_of_the_deployment_server_is_waited_out() {
    let plan = decide(&image(), &silent(), now());
    assert_eq!((ready(&plan), plan.status.failures), (("False", "KadeployUnreachable"), 0));
    assert!(plan.wake.is_some() && plan.effects.is_empty());
}

#[test]
fn what_is_ready_stays_so_while_the_deployment_server_is_silent() {
    let image = asked_again(after(pinned_to(image(), 3), imported()));
    assert!(wanted(&image).environment);
    let plan = decide(&image, &silent(), now());
    assert_eq!((ready(&plan).0, plan.status.digest.clone()), ("True", Some(digest(1))));
    let reconciling = get(&plan.status.conditions, crate::api::ConditionType::Reconciling).unwrap();
    assert_eq!(reconciling.reason, "KadeployUnreachable");
    let mut image = image;
    image.status = Some(plan.status);
    let image = pinned_to(image, 4);
    assert_eq!((version(&image), image.status.as_ref().unwrap().digest.clone()), (Some(4), Some(digest(1))));

    let mut changed = after(image, imported());
    changed.spec.source.environment.as_mut().unwrap().name = Some("other".into());
    let plan = decide(&changed, &silent(), now());
    assert_eq!((ready(&plan).0, &plan.status.digest), ("False", &None), "what is there is not what the spec names now");
}

#[test]
fn another_version_is_taken_only_when_a_person_asks() {
    let image = after(pinned_to(image(), 3), imported());
    let gone = Seen { stored: [(digest(1), Fact::Absent)].into(), ..seen(Fact::Unknown { since: now() }) };
    let mut lost = image.clone();
    lost.status = Some(decide(&image, &gone, now()).status);
    assert_eq!((version(&lost), wanted(&lost).environment), (Some(3), false), "it is imported again as it was");
    let failed = after(lost, failed(true));
    assert_eq!((version(&failed), wanted(&failed).environment), (Some(3), false));
    assert_eq!(version(&pinned_to(asked_again(failed), 4)), Some(4));
}

#[test]
fn what_cannot_be_had_is_tried_again_or_refused() {
    let missing = Trouble::passing(TroubleKind::Environment, "no such environment");
    let plan = decide(&image(), &looked(Looked::Wrong(missing)), now());
    assert_eq!((ready(&plan).1, plan.status.failures, plan.wake.is_some()), ("EnvironmentNotFound", 1, true));
    let mut elsewhere = image();
    elsewhere.status = Some(decide(&elsewhere, &looked(recorded(1, "server:///x.tgz")), now()).status);
    let plan = decide(&elsewhere, &seen(Fact::Absent), now());
    assert_eq!((ready(&plan).1, plan.wake), ("ImageUnusable", None));
    let message = &get(&plan.status.conditions, crate::api::ConditionType::Ready).unwrap().message;
    let setting = "sites.rennes.kadeploy.files in the chart say where server:/// is on the web";
    for words in ["server:///x.tgz", "http or claim", setting, ANNOTATION_IMPORT] {
        assert!(message.contains(words), "{message}");
    }
    assert!(is_true(&plan.status.conditions, crate::api::ConditionType::Stalled));
}

#[test]
fn a_tag_stays_what_it_was() {
    let mut image = image();
    image.spec =
        serde_json::from_value(serde_json::json!({"source": {"oci": {"reference": "r.example/debian:12"}}})).unwrap();
    let manifest = |image: &VmImage| match importer::order(image).disk.place {
        Place::Oci(place) => place.manifest,
        other => panic!("{other:?}"),
    };
    assert_eq!((wanted(&image).importer, manifest(&image)), (true, None));
    let Importer::Ended(Outcome::Imported { disk, virtual_size, .. }) = imported() else { unreachable!() };
    let manifests = BTreeMap::from([("r.example/debian:12".to_owned(), digest(9))]);
    let outcome = Outcome::Imported { disk, virtual_size, kernel: None, initrd: None, conversion: None, manifests };
    let mut image = after(image, Importer::Ended(outcome));
    let gone = Seen { stored: [(digest(1), Fact::Absent)].into(), ..seen(Fact::Unknown { since: now() }) };
    image.status = Some(decide(&image, &gone, now()).status);
    assert_eq!(manifest(&image), Some(digest(9)), "the repository lost it: the same one is fetched again");
    assert_eq!(manifest(&asked_again(image)), None);
}
