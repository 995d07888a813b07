//! Images out of a real registry, put there as users do it: docker-registry keeps them, shows a certificate of the test
//! bed's own authority and asks for a password, oras logs in and pushes.

use std::{
    fs::{self, File},
    io::Write as _,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    TestBed, Turn,
    agents::{LIMIT, Process, digest, prepared},
    nodes::free_address,
    testbed::{read, until},
    world::LIFE,
};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use vmdeploy::api::{ANNOTATION_IMPORT, ConditionType, VmImage, VmImageStatus, conditions::is_true};

use crate::sources::said;

const USER: &str = "alice";
const PASSWORD: &str = "s3cret";
/// The two as the registry knows them: by bcrypt, it takes nothing else.
const USERS: &str = "alice:$2b$04$abcdefghijklmnopqrstuuLZYjhNQAOdpbzt4WxWlUHjv1wsyH5DG\n";
/// Where it keeps the artifacts.
const REPOSITORY: &str = "team/debian";
/// The files of an artifact.
const FILES: [&str; 3] = ["disk.qcow2", "vmlinuz", "initrd"];
/// The Secret with the login, and of what type it is.
const SECRET: &str = "registry";
const OF_REGISTRIES: &str = "kubernetes.io/dockerconfigjson";
/// The image by a tag.
const TAGGED: &str = "tagged";
/// The certificate of who signed the registry's.
const AUTHORITY: &str = "ca.crt";

/// A registry on an address that pods reach, and its content on another one, where everybody may read it unencrypted.
/// All is gone when it is dropped.
struct Registry {
    // end before the directory goes
    _processes: [Process; 2],
    directory: TempDir,
    address: SocketAddr,
    open: SocketAddr,
}

impl Registry {
    /// Starts it, and logs in. The guest's files are what will be pushed.
    async fn start(bed: &TestBed) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("vmdeploy-e2e-").tempdir_in("/var/tmp")?;
        let root = directory.path();
        for file in FILES {
            fs::copy(bed.guest_image().join(file), root.join(file)).with_context(|| file.to_owned())?;
        }
        let own = bed.certificate()?;
        let (users, certificate, key) = (root.join("users"), root.join("tls.crt"), root.join("tls.key"));
        fs::write(&users, USERS)?;
        fs::write(root.join(AUTHORITY), own.ca)?;
        fs::write(&certificate, own.certificate)?;
        fs::write(&key, own.key)?;
        let (address, open) = (free_address(bed.host()?)?, free_address(bed.host()?)?);
        let closed = json!({
            "http": {"tls": {"certificate": certificate, "key": key}},
            "auth": {"htpasswd": {"realm": "images", "path": users}},
        });
        let processes = [serve(root, address, closed).await?, serve(root, open, json!({})).await?];
        let registry = Self { _processes: processes, directory, address, open };
        registry.oras(&["login"], &["--username", USER, "--password", PASSWORD, &address.to_string()])?;
        Ok(registry)
    }

    /// Runs a command of oras where the files are, which keeps its login there as well; what it prints.
    fn oras(&self, command: &[&str], arguments: &[&str]) -> Result<String> {
        let root = self.directory.path();
        let mut oras = Command::new(prepared("oras")?);
        oras.args(command).args(["--ca-file", AUTHORITY]).args(arguments).current_dir(root).env("DOCKER_CONFIG", root);
        let output = oras.stdin(Stdio::null()).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "oras {}: {errors}", command.join(" "));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// An artifact by what follows the repository's name.
    fn reference(&self, name: &str) -> String {
        format!("{}/{REPOSITORY}{name}", self.address)
    }

    /// The same where everybody may read it.
    fn open_reference(&self, name: &str) -> String {
        format!("{}/{REPOSITORY}{name}", self.open)
    }

    /// Pushes files as they are now, and has the tag stand for them; the digest of the manifest.
    fn push(&self, tag: &str, files: &[&str]) -> Result<String> {
        let reference = self.reference(tag);
        let kind = "application/vnd.example.guest";
        let options = ["--artifact-type", kind, "--format", "go-template={{.digest}}", reference.as_str()];
        self.oras(&["push"], &[&options[..], files].concat())
    }

    /// Makes the next artifact another one. The kernel does not mind.
    fn change(&self) -> Result<()> {
        let mut initrd = File::options().append(true).open(self.directory.path().join("initrd"))?;
        Ok(initrd.write_all(&[0; 4])?)
    }

    /// The digests of the files as they are now.
    fn digests(&self) -> Result<Vec<Option<String>>> {
        let read = |file: &str| -> Result<_> { Ok(Some(digest(&fs::read(self.directory.path().join(file))?))) };
        FILES.into_iter().map(read).collect()
    }

    /// A login that it does not accept, as `kubectl create secret docker-registry` writes one.
    fn wrong_login(&self) -> String {
        json!({"auths": {self.address.to_string(): {"username": USER, "password": "wrong"}}}).to_string()
    }

    /// The login that oras has written.
    fn login(&self) -> Result<String> {
        fs::read_to_string(self.directory.path().join("config.json")).context("oras has kept no login")
    }
}

/// Starts a process of a registry whose files are below `root`, with settings that only its address has.
async fn serve(root: &Path, address: SocketAddr, mut told: Value) -> Result<Process> {
    told["version"] = "0.1".into();
    told["log"] = json!({"level": "warn"});
    told["http"]["addr"] = json!(address);
    told["storage"] = json!({"filesystem": {"rootdirectory": root.join("content")}});
    let settings = root.join(address.port().to_string());
    let log = settings.with_extension("log");
    // what is JSON is YAML
    fs::write(&settings, told.to_string())?;
    let out = File::create(&log)?;
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&settings).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let mut process = Process(command.spawn().context("no docker-registry: e2e/testbed/prepare")?);
    let begun = Instant::now();
    while TcpStream::connect(address).is_err() {
        let starts = process.0.try_wait()?.is_none() && begun.elapsed() < LIMIT;
        ensure!(starts, "the registry does not start: {}", fs::read_to_string(&log).unwrap_or_default());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(process)
}

/// A file of an artifact; the only one, if it is not said which.
fn oci(reference: &str, file: Option<&str>) -> Value {
    json!({"oci": {"reference": reference, "file": file, "credentials": {"name": SECRET}}})
}

/// The same where everybody may read it, or encrypted where nothing is.
fn open(reference: &str, file: &str, plain_http: bool) -> Value {
    json!({"oci": {"reference": reference, "file": file, "plainHttp": plain_http}})
}

/// All files of an artifact.
fn whole(source: impl Fn(&str) -> Value) -> Value {
    let [disk, kernel, initrd] = FILES.map(source);
    json!({"source": disk, "os": {"kernel": kernel, "initrd": initrd, "params": "root=/dev/vda console=ttyS0"}})
}

async fn create(images: &Api<VmImage>, name: &str, spec: &Value) -> Result<()> {
    let image: VmImage = serde_json::from_value(json!({
        "apiVersion": "vmdeploy.io/v1alpha1", "kind": "VmImage", "metadata": {"name": name}, "spec": spec,
    }))?;
    images.create(&PostParams::default(), &image).await.with_context(|| name.to_owned())?;
    Ok(())
}

/// The digests of what was imported.
fn imported(status: &VmImageStatus) -> Vec<Option<String>> {
    vec![status.digest.clone(), status.kernel.clone(), status.initrd.clone()]
}

/// The manifest that a reference stood for.
fn pinned<'a>(status: &'a VmImageStatus, reference: &str) -> Option<&'a String> {
    status.pinned.as_ref()?.manifests.get(reference)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_of_a_registry_is_an_image_and_stays_it_when_its_tag_moves() -> Result<()> {
    let Some(bed) = Turn::with(1).await? else { return Ok(()) };
    let namespace = bed.namespace("registry").await?;
    bed.allow(&namespace, "vmdeploy-credentials-reader").await?;
    let images: Api<VmImage> = Api::namespaced(bed.client.clone(), &namespace);
    let secrets: Api<Secret> = Api::namespaced(bed.client.clone(), &namespace);
    let registry = Registry::start(&bed).await?;
    let (tag, first, files) = (registry.reference(":12"), registry.push(":12", &FILES)?, registry.digests()?);

    let login = |file: String| json!({"type": OF_REGISTRIES, "stringData": {".dockerconfigjson": file}});
    let mut secret: Secret = serde_json::from_value(login(registry.wrong_login()))?;
    secret.metadata.name = Some(SECRET.into());
    secrets.create(&PostParams::default(), &secret).await?;
    create(&images, TAGGED, &whole(|file| oci(&tag, Some(file)))).await?;
    let words = format!("401 Unauthorized: correct Secret {SECRET}, which spec.source.oci.credentials names");
    said(&images, TAGGED, "CredentialsRefused", &words).await?;
    // it is read again at the next try, which is some seconds away
    secrets.patch(SECRET, &PatchParams::default(), &Patch::Merge(login(registry.login()?))).await?;
    let status = said(&images, TAGGED, "ImageImported", "").await?;
    ensure!(imported(&status) == files && pinned(&status, &tag) == Some(&first), "not {first}: {status:?}");

    registry.change()?;
    let second = registry.push(":12", &FILES)?;
    // the operator looks at what is changed of the image, and not at the tag
    let change = Patch::Merge(json!({"spec": {"os": {"params": "root=/dev/vda console=ttyS0 quiet"}}}));
    let changed = images.patch(TAGGED, &PatchParams::default(), &change).await?;
    let seen = until("the change to be seen", LIFE, async || {
        let status = read(|| images.get(TAGGED)).await?.status.unwrap_or_default();
        Ok((Some(status.observed_generation) == changed.metadata.generation).then_some(status))
    })
    .await?;
    ensure!((&seen.import, &seen.pinned) == (&status.import, &status.pinned), "it was imported again: {seen:?}");
    ensure!(imported(&seen) == files, "it is another one: {seen:?}");

    // by its digest the first one is to be had, though no tag stands for it any more; here without a password
    let named = registry.open_reference(&format!("@{first}"));
    create(&images, "named", &whole(|file| open(&named, file, true))).await?;
    registry.oras(&["manifest", "index", "create"], &[&registry.reference(":both"), &first, &second])?;
    registry.push(":none", &[])?;
    let encrypted = open(&registry.open_reference(":12"), "disk.qcow2", false);
    let one_of_them = format!("name one of them (@{first}, @{second})");
    let mistakes = [
        ("several", oci(&tag, None), "ImageUnusable", "say in file which one: disk.qcow2, vmlinuz, initrd"),
        ("another", oci(&tag, Some("disk")), "ImageUnusable", "no file \"disk\", but: disk.qcow2, vmlinuz, initrd"),
        ("both", oci(&registry.reference(":both"), None), "ImageUnusable", one_of_them.as_str()),
        ("none", oci(&registry.reference(":none"), None), "ImageUnusable", "it has no layer"),
        ("missing", oci(&registry.reference(":13"), None), "ImageFetchFailed", "404 Not Found: correct the reference"),
        ("encrypted", encrypted, "ImageFetchFailed", "answers unencrypted: correct the reference, or set plainHttp"),
    ];
    for (name, source, _, _) in &mistakes {
        create(&images, name, &json!({"source": source})).await?;
    }
    let status = said(&images, "named", "ImageImported", "").await?;
    ensure!(imported(&status) == files && status.pinned.is_none(), "not {first}: {status:?}");
    for (name, _, reason, words) in &mistakes {
        said(&images, name, reason, words).await?;
    }

    let again = Patch::Merge(json!({"metadata": {"annotations": {ANNOTATION_IMPORT: "again"}}}));
    images.patch(TAGGED, &PatchParams::default(), &again).await?;
    let status = until("the tag to be looked at again", LIFE, async || {
        let status = read(|| images.get(TAGGED)).await?.status.unwrap_or_default();
        ensure!(is_true(&status.conditions, ConditionType::Ready), "it was ready before: {status:?}");
        Ok((pinned(&status, &tag) == Some(&second)).then_some(status))
    })
    .await?;
    ensure!(imported(&status) == registry.digests()?, "not {second}: {status:?}");
    Ok(())
}
