//! The one binary: `vmdeploy <subcommand>`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vmdeploy::{commands, image, launcher, operator, repository, shutdown, telemetry, transfer};

/// Runs long jobs on capacity that can be taken away.
#[derive(Parser)]
#[command(name = "vmdeploy", bin_name = commands::called(), version)]
struct Cli {
    /// How log lines look.
    #[arg(long, global = true, env = "VMDEPLOY_LOG_FORMAT", default_value = "text")]
    log_format: telemetry::LogFormat,
    #[command(subcommand)]
    command: Command,
}

/// One line per subcommand; each module has `Args` and `run`.
#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    ByHand(commands::ByHand),
    /// Copies files from many hosts (`kget gather`); else moves captured generations, as the chart starts it.
    Kget(transfer::Args),
    /// Writes the CustomResourceDefinitions.
    Crds(commands::crds::Args),
    /// Started by the chart: reconciles jobs, images and snapshots.
    Operator(operator::Args),
    /// Started by the chart: keeps images and generations. `verify` and `usage` are for people, where its volume is.
    Repository(Box<repository::Args>),
    /// Started by the operator: supervises one virtual machine on a slot's node.
    Agent(commands::agent::Args),
    /// Started by TakTuk in an OAR job: starts agents on a node that has no kubelet.
    Launcher(launcher::Args),
    /// Started by the operator: imports one image.
    Importer(image::command::Args),
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    telemetry::start(cli.log_format);
    vmdeploy::tls::install_provider();
    match cli.command {
        Command::Agent(args) => return commands::agent::run(&args),
        Command::Launcher(args) => return launcher::run(&args),
        Command::ByHand(command) => return commands::run(command),
        Command::Kget(args) => return transfer::start(args),
        Command::Crds(args) => commands::crds::run(&args),
        Command::Importer(args) => shutdown::until_told(|stop| image::command::run(args, stop)),
        Command::Operator(args) => shutdown::until_told(|stop| operator::run(args, stop)),
        Command::Repository(args) => shutdown::until_told(|stop| repository::run(*args, stop)),
    }?;
    Ok(ExitCode::SUCCESS)
}
