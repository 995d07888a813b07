use std::sync::Arc;

use super::*;
use crate::{
    api::{
        ANNOTATION_IMPORT,
        image::{ClaimSource, HttpSource, ImageFormat, OsSpec, VmImageSpec},
        job::SecretReference,
    },
    clock::Clock,
    config::Config,
    driver::{
        cluster::{fake::FakeCluster, importers::KubeImporters},
        kadeploy::directory::KadeployDirectory,
        repository::fake::FakeRepository,
    },
    image::login::Login,
    tls::Authority,
};

const CONFIG: &str = r#"
sites: {}
namespace: vmdeploy-system
repository: repository.vmdeploy-system:7700
agents: {image: "registry.example/vmdeploy:1"}
"#;

fn claim(name: &str, path: &str) -> ImageSource {
    ImageSource {
        claim: Some(ClaimSource { name: name.into(), path: path.into(), digest: None }),
        ..ImageSource::default()
    }
}

fn image(source: ImageSource) -> VmImage {
    let spec = VmImageSpec {
        source,
        arch: Default::default(),
        format: Default::default(),
        disk_size: None,
        os: Some(OsSpec {
            kernel: Some(claim("boot", "vmlinuz")),
            initrd: Some(claim("boot", "initrd")),
            params: None,
        }),
        skip_boot_check: false,
        standard: false,
    };
    let mut image = VmImage::new("debian-12", spec);
    image.metadata.namespace = Some("team".into());
    image.metadata.uid = Some("3f2b8a10-9c1d".into());
    image
}

fn http() -> ImageSource {
    let http =
        HttpSource { url: "https://x/disk".into(), digest: "sha256:00".into(), credentials: None, plain_http: false };
    ImageSource { http: Some(http), ..ImageSource::default() }
}

fn context() -> Context {
    crate::tls::install_provider();
    let clock = Clock::manual("2026-11-25T12:00:00Z".parse().unwrap());
    let nowhere = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
    Context {
        config: Arc::new(serde_yaml::from_str::<Config>(CONFIG).unwrap()),
        authority: Arc::new(Authority::create(clock.now()).unwrap()),
        importers: Arc::new(KubeImporters::new(nowhere)),
        cluster: Arc::new(FakeCluster::new(clock.clone())),
        view: Arc::new(FakeCluster::new(clock.clone())),
        deployers: Arc::new(KadeployDirectory::new(Default::default(), Clock::system())),
        repository: Arc::new(FakeRepository::new()),
        clock,
    }
}

#[tokio::test]
async fn an_image_from_the_web_is_imported_in_the_operators_namespace() {
    let mut image = image(http());
    image.spec.os = None;
    let (job, secret) = build(&image, &Logins::new(), &context()).unwrap();
    assert!(secret.is_none(), "the operator's own Secret is used");
    assert_eq!(job.namespace().as_deref(), Some("vmdeploy-system"));
    assert_eq!(job.metadata.owner_references, None, "owners cannot be in another namespace");
    insta::assert_yaml_snapshot!(job);
}

#[tokio::test]
async fn an_image_from_a_claim_is_imported_beside_it_with_a_certificate_of_its_own() {
    let image = image(claim("disks", "debian.qcow2"));
    let (job, secret) = build(&image, &Logins::new(), &context()).unwrap();
    let secret = secret.unwrap();
    assert_eq!((job.namespace(), secret.namespace()), (image.namespace(), image.namespace()));
    assert_eq!(job.metadata.owner_references.as_ref().map(Vec::len), Some(1));
    assert_eq!(job.name_any(), secret.name_any());
    let pod = job.spec.unwrap().template.spec.unwrap();
    let claims: Vec<_> =
        pod.volumes.unwrap().into_iter().filter_map(|v| Some(v.persistent_volume_claim?.claim_name)).collect();
    assert_eq!(claims, ["boot", "disks"], "each claim once");
    let data = secret.string_data.unwrap();
    assert!(data["tls.crt"].starts_with("-----BEGIN CERTIFICATE"));
}

#[tokio::test]
async fn logins_lie_in_a_secret_of_the_importers_own_and_nowhere_else() {
    let mut image = image(http());
    image.spec.os = None;
    image.spec.source.http.as_mut().unwrap().credentials = Some(SecretReference { name: "mirror".into() });
    let logins = Logins::from([(SOURCE, Login::Bearer("s3cret".into()))]);
    let (job, secret) = build(&image, &logins, &context()).unwrap();
    let secret = secret.unwrap();
    assert_eq!((secret.namespace(), secret.name_any()), (job.namespace(), job.name_any()));
    let text = serde_json::to_string(&job).unwrap();
    assert!(text.contains("/etc/vmdeploy/tls/login-spec.source") && !text.contains("s3cret"), "{text}");
    let data = secret.string_data.unwrap();
    assert_eq!(data["login-spec.source"], r#"{"bearer":"s3cret"}"#);
    assert!(data["tls.crt"].starts_with("-----BEGIN CERTIFICATE"));
}

#[tokio::test]
async fn authorities_lie_in_a_secret_of_the_importers_own_and_are_for_servers() {
    let mut config = serde_yaml::from_str::<Config>(CONFIG).unwrap();
    config.importers.ca = Some("one\nanother".into());
    let trusting = Context { config: Arc::new(config), ..context() };
    let with_claims = image(http());
    let mut of_the_web = with_claims.clone();
    of_the_web.spec.os = None;
    for (image, namespace) in [(of_the_web, "vmdeploy-system"), (with_claims, "team")] {
        let (job, secret) = build(&image, &Logins::new(), &trusting).unwrap();
        let secret = secret.unwrap();
        assert_eq!((job.namespace().as_deref(), secret.namespace().as_deref()), (Some(namespace), Some(namespace)));
        let data = secret.string_data.unwrap();
        assert_eq!(data["trusted.crt"], "one\nanother");
        assert!(data["tls.crt"].starts_with("-----BEGIN CERTIFICATE"));
        let pod = job.spec.unwrap().template.spec.unwrap();
        let args = pod.containers[0].args.clone().unwrap();
        assert!(!args.concat().contains("another"), "{args:?}");
        let told: ImportOrder = serde_json::from_str(args.last().unwrap()).unwrap();
        assert_eq!(told.disk.trusted, Some("/etc/vmdeploy/tls/trusted.crt".into()));
        assert!(told.kernel.is_none_or(|kernel| kernel.trusted.is_none()), "a claim has no certificate");
    }
}

#[tokio::test]
async fn an_importers_image_is_fetched_with_the_logins_of_the_configuration() {
    let mut config = serde_yaml::from_str::<Config>(CONFIG).unwrap();
    config.agents.image_pull_secrets = serde_yaml::from_str("[{name: registry}]").unwrap();
    let with_login = Context { config: Arc::new(config), ..context() };
    let logins = |image: &VmImage, context: &Context| {
        let (job, _) = build(image, &Logins::new(), context).unwrap();
        job.spec.unwrap().template.spec.unwrap().image_pull_secrets
    };
    for image in [image(http()), image(claim("disks", "debian.qcow2"))] {
        assert_eq!(logins(&image, &context()), None);
        let named = logins(&image, &with_login).unwrap();
        assert_eq!(named.iter().map(|secret| secret.name.as_str()).collect::<Vec<_>>(), ["registry"]);
    }
}

#[test]
fn what_may_have_its_own_kernel_is_started_once_with_it() {
    let mut image = image(http());
    image.spec.format = ImageFormat::Dd;
    assert_eq!(order(&image).check, None, "a kernel from outside is not looked for in it");
    image.spec.os = None;
    let params = order(&image).check;
    assert!(params == image.spec.params() && params.is_some_and(|params| params.contains("root=/dev/vda")));
    image.spec.skip_boot_check = true;
    assert_eq!(order(&image).check, None);
    image.spec.format = ImageFormat::Raw;
    assert_eq!(image.spec.params(), None);
}

#[test]
fn another_try_and_other_content_have_another_name() {
    let first = image(http());
    let mut names = vec![place(&first, "vmdeploy-system").1];
    let mut other = first.clone();
    other.spec.source.http.as_mut().unwrap().digest = "sha256:11".into();
    names.push(place(&other, "vmdeploy-system").1);
    let mut again = first.clone();
    again.status = Some(crate::api::VmImageStatus { failures: 3, ..Default::default() });
    names.push(place(&again, "vmdeploy-system").1);
    let mut asked = first.clone();
    asked.metadata.annotations = Some([(ANNOTATION_IMPORT.to_owned(), "x".repeat(1000))].into());
    asked.status = Some(crate::api::VmImageStatus { failures: u32::MAX, ..Default::default() });
    names.push(place(&asked, "vmdeploy-system").1);
    assert!(names.iter().all(|name| name.starts_with("import-3f2b8a10-") && name.len() < 63), "{names:?}");
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 4);
}
