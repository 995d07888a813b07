//! Finding the running test bed, and acting on it. All acts go through the script `testbed`.

use std::{
    collections::BTreeMap,
    env, fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::{core::v1::Namespace, rbac::v1::RoleBinding};
use kube::{Api, Client, api::PostParams};
use serde_json::json;
use tempfile::TempDir;
use vmdeploy::{
    api::VmImage,
    tls::{Authority, Credentials},
};

/// Namespace of the operator and the agents.
pub const SYSTEM: &str = "vmdeploy-system";
/// Name of the guest image.
pub const IMAGE: &str = "debian";
/// Name of the image that [`TestBed::parallel_namespace`] makes.
pub const PARALLEL: &str = "parallel";

/// Numbers of the nodes that OAR lends, as the script `testbed` takes them.
pub const OAR_NODES: [&str; 4] = ["1", "2", "3", "4"];
/// The same of the service node, where the operator and the repository are.
pub const SERVICE_NODE: &str = "5";

/// What the process of a VM is called; `pgrep` goes by this name, not by the program's.
pub const VM_PROCESS: &str = "qemu-vmdeploy";

/// How long a certificate of the test bed's authority is good: longer than any case.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The running test bed.
#[derive(Clone)]
pub struct TestBed {
    script: PathBuf,
    guest_url: String,
    guest_image: PathBuf,
    made: Arc<Mutex<Vec<String>>>,
    /// Client of its API server, as administrator.
    pub client: Client,
}

impl TestBed {
    /// The test bed that the environment names. Without one: an error where `VMDEPLOY_E2E` is set, else
    /// nothing, and the caller skips what it wanted to do.
    pub async fn find() -> Result<Option<Self>> {
        let Some(script) = env::var_os("TESTBED") else {
            ensure!(env::var_os("VMDEPLOY_E2E").is_none(), "no test bed: eval \"$(e2e/testbed/testbed env)\" first");
            eprintln!("skipped: no test bed in the environment");
            return Ok(None);
        };
        vmdeploy::tls::install_provider();
        let variable = |name: &str| env::var(name).with_context(|| format!("{name} is not set: use testbed env"));
        Ok(Some(Self {
            script: script.into(),
            guest_url: variable("GUEST_URL")?,
            guest_image: variable("GUEST_IMAGE")?.into(),
            made: Arc::default(),
            client: Client::try_default().await.context("no client for the API server")?,
        }))
    }

    /// Where the guest's files are on this machine.
    pub fn guest_image(&self) -> &Path {
        &self.guest_image
    }

    /// The address of this machine that pods of the test bed reach: the one where the guest is served.
    pub fn host(&self) -> Result<IpAddr> {
        let url: http::Uri = self.guest_url.parse()?;
        let host = url.host().with_context(|| format!("no host in {url}"))?;
        host.parse().with_context(|| format!("{host} is no address"))
    }

    /// A certificate for [`TestBed::host`] of the authority that importers are installed to trust.
    pub fn certificate(&self) -> Result<Credentials> {
        let directory = env::var_os("OAR_API_PKI").context("OAR_API_PKI is not set: use testbed env")?;
        let read = |file: &str| fs::read_to_string(Path::new(&directory).join(file)).with_context(|| file.to_owned());
        let authority = Authority { certificate: read("ca.crt")?, key: read("ca.key")? };
        Ok(authority.issue_name(&self.host()?.to_string(), jiff::Timestamp::now(), LIFETIME)?)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.script);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a command of the script `testbed` and returns what it prints.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let Output { status, stdout, stderr } = self.command(arguments).output()?;
        let text = String::from_utf8_lossy(&stdout).into_owned();
        if !status.success() {
            bail!("testbed {}: {status}: {text}{}", arguments.join(" "), String::from_utf8_lossy(&stderr));
        }
        Ok(text)
    }

    /// Runs a command on a node and keeps what it prints in a file.
    pub fn save(&self, node: &str, command: &[&str], to: &Path) -> Result<()> {
        let mut run = self.command(&[&["node", node], command].concat());
        let status = run.stdout(std::fs::File::create(to)?).status()?;
        if status.success() { Ok(()) } else { bail!("{} on node {node}: {status}", command.join(" ")) }
    }

    /// Runs a command of OAR as one of its users.
    pub fn oar(&self, user: &str, arguments: &[&str]) -> Result<String> {
        self.run(&[&["oar", user], arguments].concat())
    }

    /// Has so many operators run; returns when they do, or others have ended.
    pub fn operators(&self, replicas: u32) -> Result<()> {
        self.scale("operator", replicas)
    }

    /// The same of any of our processes that is a Deployment, by the component's name.
    pub fn scale(&self, component: &str, replicas: u32) -> Result<()> {
        let pods = format!("app.kubernetes.io/component={component}");
        let (deployment, count) = (format!("deployment/vmdeploy-{component}"), format!("--replicas={replicas}"));
        self.run(&["kubectl", "-n", SYSTEM, "scale", &deployment, &count])?;
        if replicas == 0 {
            self.run(&["kubectl", "-n", SYSTEM, "wait", "--for=delete", "pod", "-l", &pods, "--timeout=120s"])?;
        } else {
            self.run(&["kubectl", "-n", SYSTEM, "rollout", "status", &deployment, "--timeout=120s"])?;
        }
        Ok(())
    }

    /// Processes of QEMU on a node.
    pub fn qemu_on(&self, node: &str) -> Result<u32> {
        let text = self.run(&["node", number(node)?, "sh", "-c", &format!("pgrep -c {VM_PROCESS} || true")])?;
        text.trim().parse().with_context(|| format!("pgrep said {text:?}"))
    }

    /// Makes a namespace of its own for a test. The guest image is a standard one: imported once for all of them.
    pub async fn namespace(&self, name: &str) -> Result<String> {
        let name = format!("e2e-{name}-{:x}", jiff::Timestamp::now().as_millisecond() & 0xff_ffff);
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        create(&Api::all(self.client.clone()), &namespace).await?;
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
        let mut image = self.image()?;
        image.spec.standard = true;
        create(&Api::namespaced(self.client.clone(), SYSTEM), &image).await?;
        Ok(name)
    }

    /// Deletes what [`TestBed::namespace`] has made, without waiting.
    pub fn clean(&self) {
        for name in self.made.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let deleted = self.run(&["kubectl", "delete", "namespace", &name, "--wait=false"]);
            deleted.map_or_else(|error| eprintln!("namespace {name} is left: {error}"), drop);
        }
    }

    /// Makes sure that a namespace exists and has the guest image.
    pub async fn namespace_named(&self, name: &str) -> Result<()> {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        create(&Api::all(self.client.clone()), &namespace).await?;
        create(&Api::namespaced(self.client.clone(), name), &self.image()?).await
    }

    /// Lets the operator do in a namespace what one of the chart's roles allows.
    pub async fn allow(&self, namespace: &str, role: &str) -> Result<()> {
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": {"name": role, "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": "vmdeploy-operator", "namespace": SYSTEM}],
        }))?;
        create(&Api::namespaced(self.client.clone(), namespace), &binding).await
    }

    /// Runs a script beside `testbed` that builds what was never built.
    fn build(&self, script: &str, arguments: &[&str]) -> Result<()> {
        let built = Command::new(self.script.with_file_name(script)).args(arguments).stdin(Stdio::null()).output()?;
        ensure!(built.status.success(), "{script}: {}", String::from_utf8_lossy(&built.stderr));
        Ok(())
    }

    /// Where something else is served that is kept beside the guest.
    fn beside(&self, name: &str) -> (String, PathBuf) {
        (self.guest_url.trim_end_matches("current").to_owned() + name, self.guest_image.with_file_name(name))
    }

    /// A directory of its own, and the address under which the web server of the guest has it. Gone when it is dropped.
    pub fn serve(&self) -> Result<(String, TempDir)> {
        let parent = self.guest_image.parent().context("the guest is nowhere")?;
        let directory = tempfile::Builder::new().prefix("served-").tempdir_in(parent)?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let name = directory.path().file_name().unwrap_or_default().to_string_lossy();
        Ok((self.beside(&name).0, directory))
    }

    /// Address and digest of a file of the whole Debian that is packed as an environment.
    pub fn environment(&self, file: &str) -> Result<(String, String)> {
        self.build("debian-environment", &[])?;
        let (url, directory) = self.beside("debian");
        let digests = digests(&directory.join("SHA256SUMS"))?;
        let digest = digests.get(file).with_context(|| format!("no digest of {file}"))?;
        Ok((format!("{url}/{file}"), format!("sha256:{digest}")))
    }

    /// Makes a namespace whose image [`PARALLEL`] has what parallel programs need; builds it if that was never done.
    pub async fn parallel_namespace(&self, name: &str) -> Result<String> {
        let namespace = self.namespace(name).await?;
        self.build("guest-image", &["--parallel"])?;
        let (url, directory) = self.beside(PARALLEL);
        let image = image(PARALLEL, &url, &directory)?;
        create(&Api::namespaced(self.client.clone(), &namespace), &image).await?;
        Ok(namespace)
    }

    /// The test bed's guest as a VmImage.
    pub fn image(&self) -> Result<VmImage> {
        image(IMAGE, &self.guest_url, &self.guest_image)
    }
}

/// The number of a node, as the script `testbed` takes it.
pub fn number(node: &str) -> Result<&str> {
    node.strip_prefix("node-").with_context(|| format!("{node} is not a node of the test bed"))
}

/// The name of the node that the script `testbed` takes by this number.
pub fn node(number: &str) -> String {
    format!("node-{number}")
}

/// A guest image that is served under an address, as a VmImage.
fn image(name: &str, url: &str, directory: &Path) -> Result<VmImage> {
    let digests = digests(&directory.join("SHA256SUMS"))?;
    let source = |file: &str| -> Result<_> {
        let digest = digests.get(file).with_context(|| format!("no digest of {file}"))?;
        Ok(json!({"http": {"url": format!("{url}/{file}"), "digest": format!("sha256:{digest}")}}))
    };
    Ok(serde_json::from_value(json!({
        "apiVersion": "vmdeploy.io/v1alpha1", "kind": "VmImage", "metadata": {"name": name},
        "spec": {"source": source("disk.qcow2")?, "os": {
            "kernel": source("vmlinuz")?, "initrd": source("initrd")?, "params": "root=/dev/vda console=ttyS0 quiet"}}
    }))?)
}

/// Creates an object; one that exists is left as it is.
async fn create<K>(api: &Api<K>, object: &K) -> Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    match api.create(&PostParams::default(), object).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        other => other.map(drop).with_context(|| format!("failed to create {:?}", object.meta().name)),
    }
}

/// The digests in a file written by sha256sum, by name.
fn digests(file: &Path) -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
    let lines = text.lines().filter_map(|line| line.split_once("  "));
    Ok(lines.map(|(digest, name)| (name.to_owned(), digest.to_owned())).collect())
}

/// Reads something of the API server. One answer that did not come says nothing: it is asked again for a while.
pub async fn read<T, F: Future<Output = kube::Result<T>>>(mut ask: impl FnMut() -> F) -> Result<T> {
    let end = tokio::time::Instant::now() + Duration::from_secs(90);
    loop {
        match ask().await {
            Err(kube::Error::Api(status)) if status.code < 500 && status.code != 429 => {
                return Err(kube::Error::Api(status).into());
            }
            Err(error) if tokio::time::Instant::now() < end => eprintln!("asked again: {error}"),
            other => return Ok(other?),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Asks again and again, until the answer is something or the time is over.
pub async fn until<T, F: Future<Output = Result<Option<T>>>>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> F,
) -> Result<T> {
    let end = tokio::time::Instant::now() + limit;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        ensure!(tokio::time::Instant::now() < end, "not within {} s: {what}", limit.as_secs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
