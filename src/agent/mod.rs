//! The agent on a node: a fence and, as its child, a supervisor of one VM.
//!
//! The fence is process 1 of the container. It takes part in the lease, kills everything when the
//! lease is lost, and depends on nothing else: not on the network, the supervisor or a runtime. The
//! supervisor does the rest: fetches, loads, serves, captures, sends. See [`crate::driver::agent`]
//! for the protocol and `driver::oar::hold` for the contract of the lease.

pub mod fence;
mod jump;
pub mod supervisor;

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::driver::agent::{AgentConfig, CONFIG_DIR, NODE_DIR, PROTOCOL, VM_DIR};

/// `vmdeploy agent`.
#[derive(Clone, Debug, clap::Args)]
pub struct AgentArgs {
    /// Directory with config.json, ca.crt, tls.crt and tls.key.
    #[arg(long, default_value = CONFIG_DIR)]
    pub config: PathBuf,
    /// Directory of the node that outlives the agent: cached images.
    #[arg(long, default_value = NODE_DIR)]
    pub node_dir: PathBuf,
    /// Directory for the VM's memory and disks, on a disk of the node.
    #[arg(long, default_value = VM_DIR)]
    pub vm_dir: PathBuf,
    /// Run as the supervisor that the fence starts.
    #[arg(long, hide = true)]
    pub supervise: bool,
    /// Only bring the images, say so on standard output, and serve them to the job's other agents.
    #[arg(long, hide = true, conflicts_with = "supervise")]
    pub images: bool,
}

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AgentFailure {
    /// A file or directory.
    #[error("failed to {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// The configuration.
    #[error("the configuration cannot be used: {0}")]
    Config(String),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// The lease.
    #[error(transparent)]
    Lease(#[from] fence::lease::LeaseError),
}

impl AgentFailure {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// The allocator of the supervisor keeps nothing that was large: a node's memory is the guest's.
const FRUGAL: [(&str, &str); 2] = [("MALLOC_ARENA_MAX", "2"), ("MALLOC_MMAP_THRESHOLD_", "1048576")];

/// Runs the agent to its end; `connect` makes its client of the repository.
pub fn run(args: &AgentArgs, connect: &supervisor::Connect) -> Result<ExitCode, AgentFailure> {
    let config = read_config(&args.config)?;
    if args.images {
        return supervisor::only_images::run(args, config, connect);
    }
    if args.supervise {
        return supervisor::run(args, config, connect);
    }
    let own = std::env::current_exe().map_err(AgentFailure::io("find the own program"))?;
    let mut supervisor = std::process::Command::new(own);
    supervisor.args(["agent", "--supervise", "--config"]).arg(&args.config);
    supervisor.arg("--node-dir").arg(&args.node_dir).arg("--vm-dir").arg(&args.vm_dir);
    supervisor.envs(FRUGAL);
    fence::run(&config, &args.vm_dir, supervisor)
}

fn read_config(directory: &Path) -> Result<AgentConfig, AgentFailure> {
    let path = directory.join("config.json");
    let text = std::fs::read(&path).map_err(AgentFailure::io(format!("read {}", path.display())))?;
    let config: AgentConfig = serde_json::from_slice(&text).map_err(|e| AgentFailure::Config(e.to_string()))?;
    // a newer operator may speak with this agent, but not by what this agent cannot know
    if config.protocol > PROTOCOL {
        return Err(AgentFailure::Config(format!("protocol {} is newer than {PROTOCOL}", config.protocol)));
    }
    // an order that was late must start nothing (safety A8)
    if jiff::Timestamp::now() > config.not_after {
        return Err(AgentFailure::Config(format!("it was to be used before {}", config.not_after)));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a8_an_agent_that_starts_too_late_refuses() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = supervisor::testing::config(Path::new("/nowhere"));
        let write = |config: &AgentConfig| {
            std::fs::write(dir.path().join("config.json"), serde_json::to_vec(config).unwrap()).unwrap();
            read_config(dir.path())
        };
        assert_eq!(write(&config).unwrap(), config);
        config.not_after = jiff::Timestamp::now() - Duration::from_secs(1);
        assert!(matches!(write(&config), Err(AgentFailure::Config(_))));
        config.not_after = jiff::Timestamp::now() + Duration::from_secs(60);
        config.protocol = PROTOCOL + 1;
        assert!(matches!(write(&config), Err(AgentFailure::Config(_))));
    }
}
