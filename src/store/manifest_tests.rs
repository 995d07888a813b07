use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::store::adoption::GuestNetwork;

/// A manifest of two members that passes every check.
pub(crate) fn manifest(generation: Generation) -> Manifest {
    Manifest {
        version: VERSION,
        job: "3f2b8a10-9c1d-4e5f-8a7b-112233445566".into(),
        job_name: "pi".into(),
        namespace: "alice".into(),
        generation,
        incarnation: 1,
        parent: None,
        reason: SnapshotReason::Periodic,
        taken_at: Timestamp::UNIX_EPOCH,
        nonce: "n1".into(),
        image: ResolvedImage {
            namespace: "alice".into(),
            name: "light".into(),
            disk: format!("sha256:{}", "0".repeat(64)),
            virtual_size: 4 << 30,
            kernel: None,
            initrd: None,
            params: None,
        },
        members: vec![part(0), part(1)],
        guests: Some(GuestRecord {
            vm: VmSpec { memory: crate::api::quantity::Bytes::mebibytes(256), ..VmSpec::default() },
            run: "6".repeat(64),
            network: Some(GuestNetwork { subnet: "198.18.3.0/28".parse().unwrap(), mtu: 1450 }),
        }),
        ancestor: None,
    }
}

/// A part with memory and disk.
pub(crate) fn part(index: MemberIndex) -> MemberPart {
    let file =
        |kind| PartFile { kind, form: FileForm::Whole, size: 4096, stored: 100, packed: 0, digest: "5".repeat(64) };
    MemberPart {
        index,
        files: vec![file(FileKind::Memory), file(FileKind::Disk)],
        machine: crate::driver::agent::fake::machine_record(),
        output_bytes: 10,
        started: true,
        ran: 12.5,
    }
}

#[test]
fn a_manifest_is_read_back() {
    let bytes = serde_json::to_vec(&manifest(7)).unwrap();
    assert_eq!(Manifest::parse(&bytes), Ok(manifest(7)));
}

#[rstest]
#[case::version(|m: &mut Manifest| m.version = 0)]
#[case::later_version(|m: &mut Manifest| m.version = VERSION + 1)]
#[case::job_that_climbs(|m: &mut Manifest| m.job = "../x".into())]
#[case::no_nonce(|m: &mut Manifest| m.nonce.clear())]
#[case::parent_not_older(|m: &mut Manifest| m.parent = Some(7))]
#[case::nobody(|m: &mut Manifest| m.members.clear())]
#[case::a_member_missing(|m: &mut Manifest| { m.members.remove(0); })]
#[case::a_member_twice(|m: &mut Manifest| m.members[1].index = 0)]
#[case::no_memory(|m: &mut Manifest| { m.members[0].files.remove(0); })]
#[case::a_file_twice(|m: &mut Manifest| { let f = m.members[0].files[0].clone(); m.members[0].files.push(f); })]
#[case::digest_that_climbs(|m: &mut Manifest| m.members[0].files[0].digest = "../../x".into())]
#[case::endless_file(|m: &mut Manifest| m.members[0].files[0].stored = u64::MAX)]
#[case::endless_run(|m: &mut Manifest| m.members[0].ran = f64::INFINITY)]
fn d3_a_wrong_manifest_is_refused(#[case] spoil: fn(&mut Manifest)) {
    let mut spoilt = manifest(7);
    spoil(&mut spoilt);
    assert!(spoilt.check().is_err());
}

#[test]
fn d3_a_huge_manifest_is_not_even_parsed() {
    assert_eq!(Manifest::parse(&vec![b' '; MAX_BYTES + 1]), Err(ManifestError::TooLarge(MAX_BYTES + 1)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Bytes of a good manifest changed, cut and repeated at random: read or refused, never worse.
    #[test]
    fn d3_mutated_manifests_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        number in prop::sample::select(vec!["-1", "1e400", "18446744073709551616", "null", "\"x\"", "[]", "{}"]),
    ) {
        let good = serde_json::to_vec(&manifest(7)).unwrap();
        let mut bytes = good.clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(read) = Manifest::parse(&bytes) {
            prop_assert!(read.check().is_ok());
        }
        bytes.truncate(cut.index(good.len()));
        let _ = Manifest::parse(&bytes);
        let text = String::from_utf8(good).unwrap().replace("4096", number);
        prop_assert!(Manifest::parse(text.as_bytes()).is_err());
    }
}
