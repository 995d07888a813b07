//! A deployment server for tests: what a real Kadeploy 3.3.11 was measured to do, with its codes and its oddities.
//!
//! It deploys for real where it is given a deployer, a command that puts an environment on a machine of the test bed;
//! else its steps only take time. Environments, rights and the nodes' records survive it in a file, its workflows do
//! not, as with the original. Not there: reboots, power, consoles, users with certificates, several steps of one kind.
#![expect(clippy::print_stdout, reason = "says where it listens")]

mod auth;
mod deploy;
mod environments;
mod faults;
mod nodes;
mod reply;
mod rights;
mod server;
mod store;
mod tls;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use ipnet::IpNet;
use tokio::net::TcpListener;

/// What is simulated.
#[derive(Parser, Debug)]
#[command(group(clap::ArgGroup::new("how").required(true)))]
struct Args {
    /// Where it listens.
    #[arg(long, default_value = "127.0.0.1:25300")]
    listen: String,
    /// A cluster and its nodes: NAME=NODE,NODE.
    #[arg(long = "cluster", required = true)]
    clusters: Vec<String>,
    /// Where it keeps what survives it.
    #[arg(long)]
    state: PathBuf,
    /// A plan of faults, read again before each step; see `faults`.
    #[arg(long)]
    faults: Option<PathBuf>,
    /// Serves over TLS with a certificate and its key, files in PEM.
    #[arg(long, num_args = 2, value_names = ["CERT", "KEY"])]
    tls: Vec<PathBuf>,
    /// What the names of its own headers begin with.
    #[arg(long, default_value = "X-Kadeploy-")]
    prefix: String,
    /// A network from which the header with the user's name is believed.
    #[arg(long = "trust")]
    trusted: Vec<IpNet>,
    /// A user with a password: NAME:PASSWORD.
    #[arg(long = "user")]
    users: Vec<String>,
    /// An administrator.
    #[arg(long = "almighty", default_values = ["root", "oar"])]
    almighty: Vec<String>,
    /// Seconds after which the mark of a workflow that is lost is ignored.
    #[arg(long, default_value_t = 900)]
    purge: u64,
    /// Milliseconds that a step takes at least.
    #[arg(long, default_value_t = 300)]
    step: u64,
    /// Simulated steps.
    #[arg(long, group = "how")]
    dummy: bool,
    /// The command that does the steps: `prepare NODE`, `unpack NODE IMAGE [KEY]`, `boot NODE IMAGE`, KEY as the
    /// request says it.
    #[arg(long, group = "how")]
    deployer: Option<PathBuf>,
}

/// What does not change while it runs.
#[derive(Debug)]
struct Settings {
    /// Nodes of each cluster.
    clusters: BTreeMap<String, Vec<String>>,
    prefix: String,
    trusted: Vec<IpNet>,
    passwords: BTreeMap<String, String>,
    almighty: Vec<String>,
    purge: Duration,
    step: Duration,
    deployer: Option<PathBuf>,
    faults: Option<PathBuf>,
}

impl Settings {
    fn of(args: &Args) -> Result<Self> {
        let mut clusters = BTreeMap::new();
        for cluster in &args.clusters {
            let (name, nodes) = cluster.split_once('=').context("a cluster is NAME=NODE,NODE")?;
            clusters.insert(name.to_owned(), nodes.split(',').map(str::to_owned).collect::<Vec<_>>());
        }
        ensure!(clusters.values().all(|nodes| !nodes.is_empty()), "a cluster has no nodes");
        let password = |user: &String| user.split_once(':').map(|(name, word)| (name.to_owned(), word.to_owned()));
        Ok(Self {
            clusters,
            prefix: args.prefix.clone(),
            trusted: args.trusted.clone(),
            passwords: args
                .users
                .iter()
                .map(|u| password(u).context("a user is NAME:PASSWORD"))
                .collect::<Result<_>>()?,
            almighty: args.almighty.clone(),
            purge: Duration::from_secs(args.purge),
            step: Duration::from_millis(args.step),
            deployer: args.deployer.clone(),
            faults: args.faults.clone(),
        })
    }

    /// The cluster of a node.
    fn cluster(&self, node: &str) -> Option<&str> {
        let has = |(_, nodes): &(&String, &Vec<String>)| nodes.iter().any(|known| known == node);
        self.clusters.iter().find(has).map(|(name, _)| name.as_str())
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (scheme, tls) = match args.tls.as_slice() {
        [] => ("http", None),
        [certificate, key] => ("https", Some(tls::acceptor(certificate, key)?)),
        _ => bail!("--tls is given once"),
    };
    let store = store::Store::open(&args.state)?;
    let server = Arc::new(server::Server::new(Settings::of(&args)?, store));
    let listener = TcpListener::bind(&args.listen).await.with_context(|| format!("listening at {}", args.listen))?;
    println!("{scheme}://{}", listener.local_addr()?);
    server::run(server, listener, tls).await
}
