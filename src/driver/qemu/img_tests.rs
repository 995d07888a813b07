use super::*;

fn header(version: u32, backing: u64, size: u64, features: u64) -> Vec<u8> {
    let mut header = b"QFI\xfb".to_vec();
    header.extend(version.to_be_bytes());
    header.extend(backing.to_be_bytes());
    header.extend([0; 8]);
    header.extend(size.to_be_bytes());
    header.resize(72, 0);
    header.extend(features.to_be_bytes());
    header
}

#[test]
fn d3_images_that_name_other_files_are_refused() {
    assert_eq!(classify(&header(3, 0, 1 << 30, 0)), Ok((Format::Qcow2, Some(1 << 30))));
    assert_eq!(classify(&header(2, 0, 1 << 30, 4)), Ok((Format::Qcow2, Some(1 << 30))));
    assert!(classify(&header(3, 104, 1 << 30, 0)).is_err());
    assert!(classify(&header(3, 0, 1 << 30, 4)).is_err());
    assert!(classify(&header(9, 0, 1 << 30, 0)).is_err());
    assert!(classify(&header(3, 0, 1, 0)[..20]).is_err());
    assert_eq!(classify(b"\xeb\x63\x90"), Ok((Format::Raw, None)));
}

fn chain(numbers: &[u32]) -> Chain {
    Chain { overlays: numbers.iter().map(|n| (*n, PathBuf::from(format!("/{n}")))).collect() }
}

#[test]
fn b8_only_overlays_nobody_reads_are_merged_and_never_into_the_base() {
    assert_eq!(chain(&[0, 1, 2]).to_commit(false), None);
    assert_eq!(chain(&[0, 1, 2, 3]).to_commit(true), None);
    let mut long = chain(&[0, 1, 2, 3]);
    assert_eq!(long.to_commit(false), Some((2, 0)));
    assert_eq!(long.committed(2), [PathBuf::from("/1"), PathBuf::from("/2")]);
    assert_eq!(long, chain(&[0, 3]));
}

fn write(path: &Path, what: &[&str]) {
    let mut command = std::process::Command::new("qemu-io");
    for line in what {
        command.args(["-c", line]);
    }
    assert!(command.arg(path).output().unwrap().status.success());
}

#[tokio::test]
async fn a_flattened_chain_has_the_content_of_all_its_overlays() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("base"), vec![7; 8 << 20]).unwrap();
    create_overlay(&at("o0"), &at("base"), Format::Raw, 16 << 20).await.unwrap();
    write(&at("o0"), &["write -P 1 1M 1M", "write -P 1 9M 64k"]);
    create_overlay(&at("o1"), &at("o0"), Format::Qcow2, 16 << 20).await.unwrap();
    write(&at("o1"), &["write -P 2 2M 1M"]);
    create_overlay(&at("o2"), &at("o1"), Format::Qcow2, 16 << 20).await.unwrap();
    write(&at("o2"), &["write -P 3 1536k 64k"]);
    flatten(&at("o2"), &at("base"), Format::Raw, &at("flat")).await.unwrap();
    for gone in ["o0", "o1", "o2"] {
        std::fs::rename(at(gone), at(&format!("{gone}-gone"))).unwrap();
    }
    let read = |what: &str| {
        let output = std::process::Command::new("qemu-io").args(["-r", "-c", what]).arg(at("flat")).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("read ") && !text.contains("verification failed"), "{what}: {text}");
    };
    for what in ["read -P 7 0 1M", "read -P 1 1M 512k", "read -P 3 1536k 64k", "read -P 1 1600k 448k"] {
        read(what);
    }
    for what in ["read -P 2 2M 1M", "read -P 7 3M 5M", "read -P 0 8M 1M", "read -P 1 9M 64k"] {
        read(what);
    }
}
