//! The subcommands that people run by hand, one file each: arguments, calls into the library, output.

pub mod agent;
pub mod connect;
pub mod console;
pub mod convert;
pub mod crds;
pub mod exec;
pub mod explain;
pub mod get;
pub mod logs;
pub mod member;
pub mod ssh;

use std::process::ExitCode;

use crate::shutdown::by_hand;

/// What people run by hand; each module has arguments and what they start.
#[derive(Debug, clap::Subcommand)]
pub enum ByHand {
    /// Joins a TCP port of a guest with standard input and output.
    Connect(connect::Args),
    /// Opens the serial console of a guest.
    Console(console::Args),
    /// Makes a disk, a kernel and an initial ram disk of an archive of a root file system.
    Convert(convert::Args),
    /// Copies files to a guest, or from it, by scp.
    Cp(ssh::CopyArgs),
    /// Runs a command in a guest, also in one without an ssh server.
    Exec(exec::Args),
    /// Says why a job is where it is.
    Explain(explain::Args),
    /// Fetches a file that a job has kept.
    Get(get::Args),
    /// Prints what a job has printed.
    Logs(logs::Args),
    /// Opens a shell in a guest by ssh.
    Ssh(ssh::Args),
}

/// Runs one; the exit code of this program.
pub fn run(command: ByHand) -> anyhow::Result<ExitCode> {
    match command {
        ByHand::Connect(args) => by_hand(connect::run(args)),
        ByHand::Console(args) => by_hand(console::run(args)),
        ByHand::Convert(args) => convert::run(&args),
        ByHand::Cp(args) => by_hand(ssh::copy(args)),
        ByHand::Exec(args) => return by_hand(exec::run(args)),
        ByHand::Explain(args) => by_hand(explain::run(args)),
        ByHand::Get(args) => by_hand(get::run(args)),
        ByHand::Logs(args) => by_hand(logs::run(args)),
        ByHand::Ssh(args) => by_hand(ssh::run(args)),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// By which words this program was called: kubectl knows it by a name of its own.
pub fn called() -> &'static str {
    named(std::env::args_os().next().unwrap_or_default().as_ref())
}

fn named(program: &std::path::Path) -> &'static str {
    if program.file_name().is_some_and(|name| name == "kubectl-vmdeploy") { "kubectl vmdeploy" } else { "vmdeploy" }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(subcommand)]
        _command: ByHand,
    }

    #[test]
    fn a_plugin_of_kubectl_speaks_of_itself_as_such() {
        assert_eq!(named("/usr/bin/kubectl-vmdeploy".as_ref()), "kubectl vmdeploy");
        assert_eq!(named("./vmdeploy".as_ref()), "vmdeploy");
        let mut command = Cli::command().bin_name("kubectl vmdeploy");
        command.build();
        let help = command.find_subcommand_mut("ssh").unwrap().render_help().to_string();
        assert!(help.contains("Usage: kubectl vmdeploy ssh"), "{help}");
    }
}
