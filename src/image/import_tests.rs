use std::{path::PathBuf, process::Command};

use rstest::rstest;

use super::*;
use crate::{
    api::image::ImageFormat,
    driver::repository::{Repository as _, fake::FakeRepository},
    image::Place,
};

fn from(directory: &Path, file: &str) -> FileOrder {
    let place = Place::Beneath { root: directory.into(), path: file.into() };
    FileOrder { field: "spec.source.claim".into(), place, digest: None, limit: 64 << 20, login: None, trusted: None }
}

fn disk_order(directory: &Path, file: &str, format: ImageFormat) -> ImportOrder {
    ImportOrder {
        disk: from(directory, file),
        format,
        boot: None,
        check: None,
        disk_size: None,
        kernel: None,
        initrd: None,
    }
}

/// Makes a disk with qemu-img; skips the test's point nowhere: qemu-img is part of what is shipped.
fn make(directory: &Path, arguments: &[&str]) {
    let made = Command::new("qemu-img").current_dir(directory).args(arguments).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

fn work(directory: &Path) -> PathBuf {
    let work = directory.join("work");
    std::fs::create_dir(&work).unwrap();
    work
}

#[tokio::test]
async fn disk_kernel_and_initrd_reach_the_repository() {
    let directory = tempfile::tempdir().unwrap();
    make(directory.path(), &["create", "-q", "-f", "qcow2", "disk", "3M"]);
    std::fs::write(directory.path().join("vmlinuz"), "kernel").unwrap();
    std::fs::write(directory.path().join("initrd.img"), "initrd").unwrap();
    let order = ImportOrder {
        kernel: Some(from(directory.path(), "vmlinuz")),
        initrd: Some(from(directory.path(), "initrd.img")),
        ..disk_order(directory.path(), "disk", ImageFormat::Qcow2)
    };
    let repository = FakeRepository::new();
    let outcome = import(&order, &repository, &work(directory.path())).await;
    let Outcome::Imported { disk, virtual_size, kernel: Some(kernel), initrd: Some(initrd), .. } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(virtual_size, 3 << 20);
    let record = DiskRecord { format: DiskFormat::Qcow2, virtual_size };
    assert_eq!(repository.disk_record(&disk.digest).await, Ok(Some(record)));
    for file in [disk, kernel, initrd] {
        assert_eq!(repository.image(&file.digest).await.unwrap(), Some(file.size));
    }
}

#[rstest]
#[case::raw_called_qcow2("raw", ImageFormat::Qcow2, "is raw, but spec.format says qcow2")]
#[case::qcow2_called_raw("plain", ImageFormat::Raw, "is qcow2, but spec.format says raw")]
#[case::reads_another_file("overlay", ImageFormat::Qcow2, "overlay over another file")]
#[case::data_elsewhere("split", ImageFormat::Qcow2, "data lies in another file")]
#[case::rubbish_behind_the_head("rubbish", ImageFormat::Qcow2, "QEMU cannot open")]
#[case::empty("empty", ImageFormat::Raw, "has no bytes")]
#[tokio::test]
async fn a_disk_that_must_not_be_used_is_refused(#[case] file: &str, #[case] format: ImageFormat, #[case] words: &str) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    make(directory.path(), &["create", "-q", "-f", "raw", "raw", "1M"]);
    make(directory.path(), &["create", "-q", "-f", "qcow2", "plain", "1M"]);
    make(directory.path(), &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "raw", "overlay"]);
    make(directory.path(), &["create", "-q", "-f", "qcow2", "-o", "data_file=data", "split", "1M"]);
    let mut rubbish = std::fs::read(at("plain")).unwrap()[..104].to_vec();
    rubbish[20..24].copy_from_slice(&[0xff; 4]);
    std::fs::write(at("rubbish"), rubbish).unwrap();
    std::fs::write(at("empty"), "").unwrap();
    let repository = FakeRepository::new();
    let order = disk_order(directory.path(), file, format);
    let outcome = import(&order, &repository, &work(directory.path())).await;
    let Outcome::Failed(trouble) = outcome else { panic!("{outcome:?}") };
    assert_eq!((trouble.kind, trouble.again), (TroubleKind::Unusable, false), "{trouble}");
    assert!(trouble.message.contains(words), "{trouble}");
}
