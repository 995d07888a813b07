//! Whose fault it is that there is no VM.

use rstest::rstest;

use super::{
    super::testing::{FileStore, Making, config},
    *,
};
use crate::{
    driver::agent::Accelerator,
    store::manifest::{FileForm, PartFile, tests::manifest},
};

fn io() -> std::io::Error {
    std::io::ErrorKind::StorageFull.into()
}

fn program(message: &str) -> QemuError {
    QemuError::Program { program: "qemu", message: message.into() }
}

#[rstest]
#[case::disk_full(QemuError::io("write")(io()), LoadFault::Node)]
#[case::late(QemuError::Late("the start"), LoadFault::Node)]
#[case::control_late(QmpError::Late("start".into()).into(), LoadFault::Node)]
#[case::control_closed(QmpError::Closed.into(), LoadFault::Node)]
#[case::no_kvm(program("Could not access KVM kernel module: No such file"), LoadFault::Node)]
#[case::no_memory(program("cannot set up guest memory 'pc.ram': Cannot allocate memory"), LoadFault::Node)]
#[case::wrong_cpu(program("unable to find CPU model 'z80'"), LoadFault::Unknown)]
#[case::refused_image(QemuError::Image { path: "x".into(), why: "an overlay".into() }, LoadFault::Unknown)]
fn b7_what_qemu_fails_at_is_never_the_generations_fault(#[case] error: QemuError, #[case] fault: LoadFault) {
    assert_eq!(LoadError::from(error).fault(), fault);
}

#[rstest]
#[case(RepositoryError::Damaged("x".into()), LoadFault::Part, LoadFault::Unknown)]
#[case(RepositoryError::NotFound("x".into()), LoadFault::Part, LoadFault::Unknown)]
#[case(RepositoryError::Refused("x".into()), LoadFault::Unknown, LoadFault::Unknown)]
#[case(RepositoryError::local("x", &io()), LoadFault::Node, LoadFault::Node)]
fn b7_only_what_the_repository_lacks_of_a_part_is_the_generations_fault(
    #[case] error: RepositoryError,
    #[case] of_part: LoadFault,
    #[case] of_image: LoadFault,
) {
    assert_eq!(LoadError::of_part(error.clone()).fault(), of_part);
    assert_eq!(LoadError::from(error).fault(), of_image);
}

/// What an agent says that restores generation 1 from this store.
async fn said(store: FileStore, accelerator: Accelerator, files: Vec<PartFile>) -> (String, LoadFault) {
    let root = tempfile::tempdir().unwrap();
    let mut made = manifest(1);
    made.members[0].files = files;
    made.members[0].machine.accelerator = accelerator;
    store.publish(&made);
    let mut config = config(root.path());
    config.image.disk = store.add_image(b"a disk");
    (config.accelerator, config.restore) = (accelerator, Some(1));
    let supervisor = Making::below(root.path()).config(config).store(Arc::new(store)).make();
    supervisor.view.change(|facts| facts.lease = LeaseState::Held);
    tokio::time::timeout(Duration::from_secs(60), supervisor.clone().live()).await.unwrap();
    match supervisor.view.render().vm {
        VmState::Gone { reason, fault } => (reason, fault),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn b7_a_damaged_part_is_the_generations_fault() {
    let root = tempfile::tempdir().unwrap();
    let file = PartFile {
        kind: FileKind::Disk,
        form: FileForm::Whole,
        size: 4,
        stored: 4,
        packed: 0,
        digest: "not this".into(),
    };
    let store = FileStore::new(&root.path().join("damaged"));
    std::fs::write(root.path().join("damaged/part-1-0-disk"), "disk").unwrap();
    let (reason, fault) = said(store, Accelerator::Tcg, vec![file.clone()]).await;
    assert_eq!(fault, LoadFault::Part, "{reason}");
    let (reason, fault) = said(FileStore::new(&root.path().join("empty")), Accelerator::Tcg, vec![file]).await;
    assert_eq!(fault, LoadFault::Part, "{reason}");
}

#[tokio::test]
#[ignore = "asks QEMU for KVM: e2e/test --e2e"]
async fn b7_a_node_without_kvm_is_the_nodes_fault() {
    let root = tempfile::tempdir().unwrap();
    let (reason, fault) = said(FileStore::new(&root.path().join("whole")), Accelerator::Kvm, vec![]).await;
    // where there is KVM, it fails later: there are no files
    let lacks = probe::kvm().is_err();
    assert_eq!(reason.contains("KVM"), lacks, "{reason}");
    assert!(!lacks || fault == LoadFault::Node, "{reason}");
}

#[tokio::test]
async fn an_image_that_is_being_imported_again_is_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let store = Arc::new(FileStore::new(&root.path().join("store")));
    let mut config = config(root.path());
    config.image.disk = store.add_image(b"an image");
    std::fs::remove_file(root.path().join("store").join(&config.image.disk)).unwrap();
    let supervisor = Making::below(root.path()).config(config).vm_in(root.path()).store(store.clone()).make();
    let progress = Progress::default();
    let fetching = supervisor.fetch(None, &progress);
    tokio::pin!(fetching);
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut fetching).await.is_err());
    store.add_image(b"an image");
    let fetched = tokio::time::timeout(Duration::from_secs(60), fetching).await.unwrap().unwrap();
    assert_eq!(std::fs::read(fetched.disk).unwrap(), b"an image");
}

#[tokio::test]
async fn what_the_node_lacks_is_known_before_anything_is_fetched() {
    let root = tempfile::tempdir().unwrap();
    let store = FileStore::new(&root.path().join("store"));
    let mut made = manifest(1);
    made.members[0].machine.accelerator = Accelerator::Kvm;
    store.publish(&made);
    let mut config = config(root.path());
    // an image that never comes, and files that are not there
    config.image.disk = format!("sha256:{}", "0".repeat(64));
    (config.accelerator, config.restore) = (Accelerator::Tcg, Some(1));
    let supervisor = Making::below(root.path()).config(config).store(Arc::new(store)).make();
    tokio::time::timeout(Duration::from_secs(60), supervisor.clone().live()).await.unwrap();
    let state = supervisor.view.render();
    assert!(state.lacks.contains(&Lack::Kvm), "{state:?}");
    assert!(matches!(state.vm, VmState::Gone { fault: LoadFault::Node, .. }), "{state:?}");
}

#[tokio::test]
async fn a_repository_is_waited_for_as_long_as_the_agent_may_start_anything_and_that_is_said() {
    let root = tempfile::tempdir().unwrap();
    let store = Arc::new(FileStore::new(&root.path().join("store")));
    let mut config = config(root.path());
    config.image.disk = format!("sha256:{}", "0".repeat(64));
    config.not_after = jiff::Timestamp::now() + Duration::from_secs(10);
    let supervisor = Making::below(root.path()).config(config).vm_in(root.path()).store(store).make();
    let watched = supervisor.clone();
    let said = tokio::spawn(async move { watched.view.until(|facts| facts.waiting.is_some()).await });
    let fetched =
        tokio::time::timeout(Duration::from_secs(60), supervisor.fetch(None, &Progress::default())).await.unwrap();
    assert!(matches!(fetched, Err(LoadError::Node(why)) if why.contains("imported again")));
    tokio::time::timeout(Duration::from_secs(30), said).await.expect("it was never said").unwrap();
    assert_eq!(supervisor.view.render().waiting, None);
}
