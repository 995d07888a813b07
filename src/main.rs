//! The one binary: `vmdeploy <subcommand>`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;
use vmdeploy::{
    commands, image, operator, repository, shutdown,
    telemetry::{self, LogFormat},
    transfer,
};

/// Runs long jobs on capacity that can be taken away.
#[derive(Parser)]
#[command(name = "vmdeploy", version)]
struct Cli {
    /// How log lines look.
    #[arg(long, global = true, env = "VMDEPLOY_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

/// One line per subcommand; each module has `Args` and `run`.
#[derive(Subcommand)]
enum Command {
    /// Supervises one virtual machine on a slot's node.
    Agent(commands::agent::Args),
    /// Writes the CustomResourceDefinitions.
    Crds(commands::crds::Args),
    /// Says why a job is where it is.
    Explain(commands::explain::Args),
    /// Fetches a file that a job has kept.
    Get(commands::get::Args),
    /// Imports one image; started by the operator.
    Importer(image::command::Args),
    /// Prints what a job has printed.
    Logs(commands::logs::Args),
    /// Reconciles jobs, images and snapshots.
    Operator(operator::Args),
    /// Moves captured generations to the repository.
    Kget(transfer::Args),
    /// Keeps images and generations on a directory.
    Repository(repository::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    telemetry::start(cli.log_format);
    vmdeploy::tls::install_provider();
    match cli.command {
        Command::Agent(args) => return commands::agent::run(&args),
        Command::Crds(args) => commands::crds::run(&args),
        Command::Explain(args) => until_told(|_| commands::explain::run(args)),
        Command::Get(args) => until_told(|_| commands::get::run(args)),
        Command::Importer(args) => until_told(|stop| image::command::run(args, stop)),
        Command::Logs(args) => until_told(|_| commands::logs::run(args)),
        Command::Operator(args) => until_told(|stop| operator::run(args, stop)),
        Command::Kget(args) => until_told(|stop| transfer::run(args, stop)),
        Command::Repository(args) => until_told(|stop| repository::run(args, stop)),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Runs what goes on until a signal ends it.
fn until_told<W: Future<Output = anyhow::Result<()>>>(work: impl FnOnce(CancellationToken) -> W) -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async { work(shutdown::on_signal()?).await })
}
