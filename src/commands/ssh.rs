//! `vmdeploy ssh` and `vmdeploy cp`: the system's ssh and scp, which reach the guest by this very
//! program's `connect`. Guests are told apart by their job's uid, and known in a file of their own.

use std::{
    ffi::OsString,
    os::unix::{fs::DirBuilderExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use kube::Api;

use super::member::{Member, cluster, of_objects};
use crate::api::BestEffortJob;

/// Port of ssh servers.
const PORT: u16 = 22;

/// Arguments of `vmdeploy ssh`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job, or JOB/INDEX for another member than 0.
    member: Member,
    /// What ssh is given after the host: options, or a command.
    #[arg(last = true)]
    rest: Vec<String>,
    /// Namespace; that of the kubeconfig if absent.
    #[arg(short, long)]
    namespace: Option<String>,
}

/// Arguments of `vmdeploy cp`.
#[derive(Debug, clap::Args)]
pub struct CopyArgs {
    /// A file here, or JOB:PATH or JOB/INDEX:PATH.
    from: Place,
    /// The same; exactly one of both is in a guest.
    to: Place,
    /// Copies directories with all that is in them.
    #[arg(short, long)]
    recursive: bool,
    /// Namespace; that of the kubeconfig if absent.
    #[arg(short, long)]
    namespace: Option<String>,
}

/// Becomes ssh.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let guest = Guest::find(args.member, args.namespace.as_deref()).await?;
    let mut ssh = guest.program("ssh");
    ssh.arg(guest.host()).args(args.rest);
    Err(ssh.exec()).context("failed to run ssh")
}

/// Becomes scp.
pub async fn copy(args: CopyArgs) -> anyhow::Result<()> {
    let member = match (&args.from, &args.to) {
        (Place::Guest(member, _), Place::Here(_)) | (Place::Here(_), Place::Guest(member, _)) => member.clone(),
        _ => anyhow::bail!("one of both places must be in a guest, as JOB/INDEX:PATH, and the other here"),
    };
    let guest = Guest::find(member, args.namespace.as_deref()).await?;
    let mut scp = guest.program("scp");
    scp.args(args.recursive.then_some("-r")).arg("--");
    scp.args([&args.from, &args.to].map(|place| place.for_scp(&guest)));
    Err(scp.exec()).context("failed to run scp")
}

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Here(String),
    Guest(Member, String),
}

impl std::str::FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some((member, path)) if !member.starts_with(['/', '.']) => Ok(Self::Guest(member.parse()?, path.into())),
            _ => Ok(Self::Here(text.into())),
        }
    }
}

impl Place {
    fn for_scp(&self, guest: &Guest) -> String {
        match self {
            Self::Guest(_, path) => format!("{}:{path}", guest.host()),
            // scp would take a colon for a host
            Self::Here(path) if path.starts_with('/') => path.clone(),
            Self::Here(path) => format!("./{path}"),
        }
    }
}

/// A guest, as ssh is told of it.
struct Guest {
    member: Member,
    namespace: String,
    /// Uid of its job: another job of this name is another host.
    uid: String,
    /// This program.
    program: PathBuf,
    /// Which guests are known.
    known: PathBuf,
}

impl Guest {
    async fn find(member: Member, namespace: Option<&str>) -> anyhow::Result<Self> {
        let (client, namespace) = cluster(namespace).await?;
        let jobs: Api<BestEffortJob> = Api::namespaced(client, &namespace);
        let job = jobs.get(&member.job).await.map_err(of_objects)?;
        let uid = job.metadata.uid.context("the job has no uid")?;
        let cache = cache(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))?;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&cache);
        made.with_context(|| format!("failed to make {}", cache.display()))?;
        let program = std::env::current_exe().context("failed to find this program")?;
        Ok(Self { member, namespace, uid, program, known: cache.join("known_hosts") })
    }

    fn host(&self) -> String {
        format!("root@{}-{}", self.member.job, self.member.index)
    }

    fn program(&self, name: &str) -> Command {
        let Member { job, index } = &self.member;
        let own = quoted(&self.program);
        let proxy = format!("{own} connect --namespace {} {job}/{index} {PORT}", self.namespace);
        let options = [
            format!("ProxyCommand={proxy}"),
            format!("HostKeyAlias=vmdeploy-{}-{index}", self.uid),
            format!("UserKnownHostsFile={}", option(&self.known)),
            "StrictHostKeyChecking=accept-new".into(),
            // a guest of this name may have had another address
            "CheckHostIP=no".into(),
        ];
        let mut command = Command::new(name);
        command.args(options.iter().flat_map(|option| ["-o", option]));
        command
    }
}

/// For the shell that runs a ProxyCommand, where ssh replaces what follows a percent sign.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('%', "%%").replace('\'', r"'\''"))
}

/// For an option of ssh.
fn option(path: &Path) -> String {
    format!("\"{}\"", path.to_string_lossy().replace('%', "%%"))
}

/// The directory for what may be lost.
fn cache(own: Option<OsString>, home: Option<OsString>) -> anyhow::Result<PathBuf> {
    let own = own.map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || home.map(|home| Path::new(&home).join(".cache"));
    Ok(own.or_else(home).context("neither XDG_CACHE_HOME nor HOME is set")?.join("vmdeploy"))
}

#[cfg(test)]
#[path = "ssh_tests.rs"]
mod tests;
