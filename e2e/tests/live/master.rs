//! A person outside the cluster, who comes to a job's members by its way in alone, and again after a kill.

use std::{
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    Turn,
    job::{Counting, Job, nodes},
    testbed::until,
    world::{BOOT, LIFE, ends_right, taken},
};
use vmdeploy::api::{
    JobPhase,
    job::{AccessSpec, Master, NetworkSpec},
    job_status::WayIn,
};

use crate::{
    access::{LISTENER, User},
    parallel::key_pair,
};

/// Somebody with a key of the job, and what ssh is to know.
pub(crate) struct Person {
    directory: PathBuf,
}

impl Person {
    pub(crate) fn new(name: &str, private: &str) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("vmdeploy-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let mut options = std::fs::File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(directory.join("key"))?.write_all(private.as_bytes())?;
        Ok(Self { directory })
    }

    /// What ssh is told to come to a way in that is known by its key, and the way in as ssh names it.
    fn arguments(&self, way: &WayIn) -> Result<(Vec<String>, String)> {
        let (host, port) = way.address.rsplit_once(':').context("an address without a port")?;
        std::fs::write(self.directory.join("known"), format!("[{host}]:{port} {}\n", way.host_key))?;
        let mut words: Vec<String> = ["-F", "none", "-p", port, "-i"].map(str::to_owned).into();
        words.push(self.directory.join("key").display().to_string());
        let known = format!("UserKnownHostsFile={}", self.directory.join("known").display());
        for option in [known.as_str(), "StrictHostKeyChecking=yes", "BatchMode=yes", "ConnectTimeout=5"] {
            words.extend(["-o".to_owned(), option.to_owned()]);
        }
        Ok((words, format!("anybody@{host}")))
    }

    /// ssh to a way in, with further arguments.
    fn ssh(&self, way: &WayIn, arguments: &[&str]) -> Result<Output> {
        let (words, place) = self.arguments(way)?;
        Ok(Command::new("ssh").args(words).args(arguments).arg(place).stdin(Stdio::null()).output()?)
    }

    /// What a command prints on a member that has an ssh server, reached through the way in.
    pub(crate) fn on_member(&self, way: &WayIn, member: &str, command: &str) -> Result<Output> {
        let (words, place) = self.arguments(way)?;
        let through = format!("ProxyCommand=ssh {} -W %h:%p {place}", words.join(" "));
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new", "-o", &through]);
        let own = format!("UserKnownHostsFile={}", self.directory.join("members").display());
        ssh.args(["-o", &own, "-i"]).arg(self.directory.join("key"));
        Ok(ssh.arg(format!("root@{member}")).arg(command).stdin(Stdio::null()).output()?)
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

pub(crate) async fn way_in(job: &Job) -> Result<WayIn> {
    job.wait("a way in", LIFE, |job| job.status.as_ref()?.network.as_ref()?.way_in.clone()).await
}

/// A job of one member with this kind of way in; its nodes are taken away once.
async fn comes_in_again(master: Master, needed: u32) -> Result<()> {
    let Some(bed) = Turn::with(needed).await? else { return Ok(()) };
    let name = format!("master-{master:?}").to_lowercase();
    let namespace = bed.namespace(&name).await?;
    let (public, private) = key_pair()?;
    let person = Person::new(&name, &private)?;
    let counting = Counting { ticks: 450, ..Counting::default() };
    let mut object = counting.object("count")?;
    object.spec.network = Some(NetworkSpec { master, ..NetworkSpec::default() });
    object.spec.access = Some(AccessSpec { ssh_keys: vec![public] });
    let job = Job::create(&bed, &namespace, &object).await?;
    job.wait_tick(3, 1, BOOT).await?;
    ensure!(nodes(&job.get().await?).len() == needed as usize, "{:?}", nodes(&job.get().await?));
    let user = User { namespace };
    let started = user.exec(LISTENER)?;
    ensure!(started.status.success(), "{started:?}");
    let says_goodbye = async |way: &WayIn| {
        until("a member's port through the way in", Duration::from_secs(90), async || {
            let came = person.ssh(way, &["-W", "count-0:7100"])?;
            Ok((came.status.success() && came.stdout == b"bye\n").then_some(()))
        })
        .await
    };
    let first = way_in(&job).await?;
    says_goodbye(&first).await?;
    let shell = person.ssh(&first, &["-tt"])?;
    let said = [shell.stdout, shell.stderr].concat();
    ensure!(String::from_utf8_lossy(&said).contains("only the way in to the members"), "{said:?}");
    let next = job.get().await?.status.map_or(0, |status| status.snapshots.next_generation);
    job.wait_stored(next.saturating_sub(1), BOOT).await?;
    let before = job.get().await?;
    taken(&bed, &nodes(&before)).await?;
    job.wait("another incarnation that runs", LIFE, |job| {
        let (status, old) = (job.status.as_ref()?, before.status.as_ref()?);
        (status.incarnation > old.incarnation && status.phase == JobPhase::Running).then_some(())
    })
    .await?;
    let second = way_in(&job).await?;
    ensure!(second.host_key == first.host_key && second.address != first.address, "{first:?} {second:?}");
    says_goodbye(&second).await?;
    ends_right(&bed, &job, &counting).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_outside_comes_in_again_at_the_first_members_node() -> Result<()> {
    comes_in_again(Master::Shared, 1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn a_person_outside_comes_in_again_at_a_node_of_the_masters_own() -> Result<()> {
    comes_in_again(Master::Dedicated, 2).await
}
