//! `vmdeploy kget`: the process that moves captured generations from the nodes to the repository.
//!
//! Only puts the parts together and runs them while this process leads; what is decided is in
//! `controller::transfer`. Without Kubernetes, [`run`] empties hosts into a directory.

pub mod plan;
pub mod plot;
pub mod run;
mod watch;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use kube::Client;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::quantity::{Bytes, ParseBytesError},
    clock::Clock,
    controller::{
        served,
        transfer::{self, Context, decide::Limit},
    },
    driver::{
        agent::http::AgentsHttp,
        cluster::{client, transfers::KubeBoard},
        repository::http::HttpRepository,
    },
    health::{self, Readiness},
    leadership::Candidate,
    metrics::Metrics,
    shutdown,
    store::ticket::TicketKey,
    tls::{self, Credentials},
};

/// Moves captured generations to the repository.
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    by_hand: Option<run::Command>,
    #[command(flatten)]
    controller: Option<Controller>,
}

/// How the controller runs.
#[derive(clap::Args, Debug)]
pub struct Controller {
    /// `host:port` of the repository.
    #[arg(long)]
    repository: String,
    /// Directory with ca.crt, tls.crt and tls.key.
    #[arg(long)]
    tls: PathBuf,
    /// File with the secret that tickets are signed with.
    #[arg(long)]
    ticket_key: PathBuf,
    /// Namespace of the Lease by which one of several processes leads.
    #[arg(long, env = "POD_NAMESPACE", default_value = "vmdeploy")]
    namespace: String,
    /// Plain address of /healthz, /readyz and /metrics.
    #[arg(long)]
    health: Option<SocketAddr>,
    /// Most bytes a second that all agents together send, for example 50Mi; as many as go without it. Members that
    /// leave their nodes are not held to it.
    #[arg(long, value_name = "BYTES", value_parser = rate_limit)]
    rate_limit: Option<u64>,
    /// Members that leave their nodes are held to it, too.
    #[arg(long, requires = "rate_limit")]
    limit_evacuations: bool,
    /// Members that wait for their turn at the repository do not give their bytes to others meanwhile.
    #[arg(long)]
    no_collectors: bool,
}

/// With less, what goes on would look like what stands still.
const LEAST_RATE: Bytes = Bytes(64 << 10);

fn rate_limit(text: &str) -> Result<u64, String> {
    let rate: Bytes = text.parse().map_err(|error: ParseBytesError| error.to_string())?;
    if rate < LEAST_RATE { Err(format!("{rate} a second are too few: at least {LEAST_RATE}")) } else { Ok(rate.0) }
}

/// The kinds this process reads and writes.
const KINDS: &[&str] = &["BestEffortJob", "Snapshot"];
/// Name of the Lease.
const LEASE: &str = "vmdeploy-kget";
/// Checks of the health page.
const LEADER: &str = "leader";
const CACHES: &str = "caches";

/// Runs what was asked for; the exit code of this program.
pub fn start(args: Args) -> anyhow::Result<ExitCode> {
    let Args { by_hand, controller } = args;
    if let Some(command) = by_hand {
        return shutdown::by_hand(run::run(command));
    }
    let controller = controller.context(
        "people run `vmdeploy kget gather`, which copies files from many hosts; to move snapshots, as the chart has it \
             do, give --repository, --tls and --ticket-key",
    )?;
    shutdown::until_told(|stop| control(controller, stop))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs until `stop` is cancelled.
async fn control(args: Controller, stop: CancellationToken) -> anyhow::Result<()> {
    let metrics = Metrics::new();
    let readiness = Readiness::expecting([served::CHECK, LEADER, CACHES]);
    // the page is there until the leadership has been given up
    let always = CancellationToken::new();
    let page = args.health.map(|address| health::serve(address, readiness.clone(), metrics.clone(), always));
    let page = async {
        match page {
            Some(page) => page.await.context("failed to serve the health page"),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = work(&args, &readiness, &metrics, stop.clone()) => result,
        result = page => result,
    }
}

async fn work(
    args: &Controller,
    readiness: &Readiness,
    metrics: &Metrics,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let credentials = Credentials::read(&args.tls)?;
    tokio::spawn(tls::stop_when_renewed(args.tls.clone(), credentials.clone(), stop.clone()));
    let secret = std::fs::read(&args.ticket_key).with_context(|| format!("read {}", args.ticket_key.display()))?;
    let key = TicketKey::new(&secret)?;
    let client = Client::try_from(client::config().await?)?;
    if !served::wait(&client, KINDS, readiness, &stop).await {
        return Ok(());
    }
    readiness.not_ready(LEADER, "another process leads");
    let candidate = Candidate::new(client.clone(), &args.namespace, LEASE);
    let lead = |epoch, stop: CancellationToken| async move {
        readiness.ready(LEADER);
        metrics.leader.set(1);
        tracing::info!(epoch, "moves snapshots");
        let repository = Arc::new(HttpRepository::new(&credentials, &args.repository)?);
        let (changed, tasks) = (Arc::new(Notify::new()), TaskTracker::new());
        let snapshots = watch::store(&client, changed.clone(), &tasks, &stop);
        let jobs = watch::store(&client, changed.clone(), &tasks, &stop);
        let board = KubeBoard::new(client.clone(), snapshots, jobs);
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = watch::filled(&board) => readiness.ready(CACHES),
        }
        let agents = Arc::new(AgentsHttp::new(credentials, None));
        let board = Arc::new(board);
        let ledger = repository.clone();
        let limit = Limit { rate: args.rate_limit, evacuations: args.limit_evacuations };
        let context = Context::new(epoch, Clock::system(), board, agents, repository, ledger, key, changed);
        let context = context.limited(limit);
        let context = if args.no_collectors { context.without_collectors() } else { context };
        let result = tokio::select! {
            () = transfer::run(Arc::new(context), stop) => Ok(()),
            older = served::until_other(&client, KINDS, readiness) => Err(older.into()),
        };
        tasks.close();
        result
    };
    Ok(candidate.lead(stop, lead).await?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(rest: &str) -> Result<Controller, String> {
        let line = format!("kget --repository r:1 --tls t --ticket-key k {rest}");
        let cli = Cli::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())?;
        cli.args.controller.ok_or_else(|| "no controller".into())
    }

    #[test]
    fn a_limit_is_a_quantity_that_can_be_seen_to_move() {
        assert_eq!(parsed("").unwrap().rate_limit, None);
        assert_eq!(parsed("--rate-limit 50Mi").unwrap().rate_limit, Some(50 << 20));
        assert!(parsed("--rate-limit 64Ki --limit-evacuations").unwrap().limit_evacuations);
        for (rest, why) in [
            ("--rate-limit 10k", "10000 a second are too few: at least 64Ki"),
            ("--rate-limit fast", "is not a size"),
            ("--limit-evacuations", "--rate-limit"),
        ] {
            let refused = parsed(rest).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
