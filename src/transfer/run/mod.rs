//! The executor of Kget+, without Kubernetes: `vmdeploy kget gather` copies a file from each of many hosts into one
//! directory, in the order that the [`plan`](super::plan) says.
//!
//! ```text
//!   gather --- remote shell: orders, reports --- node ... node    (this binary, started there)
//!     ^                                           |  ^     |
//!     +------------ TCP: moves to here -----------+  +-----+ TCP: moves among nodes
//! ```
//!
//! - Whoever receives acknowledges a range once its digest is right, it is synced, and has its name. Until then whoever
//!   has sent it answers for it. A node is free when it answers for nothing; its file stays in any case, and what a
//!   lost node held of others is sent again from there.
//! - Here a file lies beside its final name with a journal of the ranges that are synced. A gather that is started
//!   again asks only for the others. It is whole once all ranges are there and its node has said, after the last was
//!   read, that size and time of the file are what they were at the beginning.
//! - A node that takes bytes of others has room for them, by its own count too; they go with its process.
//! - A connection shows the token of the run, which nodes are told through the remote shell. The bytes are not
//!   encrypted.
//! - What goes wrong with one file or host is in the report; the others go on.
//!
//! [`events`] are what happened, and [`trace`] says whether that was right.

mod args;
mod begin;
mod binary;
mod data;
pub mod events;
mod forecast;
mod gather;
mod here;
mod journal;
mod ledger;
mod node;
pub mod outcome;
mod part;
mod pattern;
mod progress;
mod rates;
mod receive;
mod send;
mod set;
mod shelf;
mod shell;
pub mod simulate;
mod spans;
mod spread;
mod start;
mod taktuk;
pub mod trace;
mod view;
mod wire;

use std::process::ExitCode;

pub use args::Args;

/// What a person, or this program itself, starts.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Copies a file from each of many hosts into one directory here.
    Gather(Box<Args>),
    /// Says what plans for many nodes are worth on ideal links, as JSON.
    #[command(hide = true)]
    Simulate(simulate::Args),
    /// Runs on each host, started by gather.
    #[command(hide = true)]
    Node,
}

/// Runs one; the exit code of this program.
pub async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Gather(args) => start::run(&args).await,
        Command::Simulate(args) => simulate::print(&args).map(|()| ExitCode::SUCCESS),
        Command::Node => node::run().await.map(|()| ExitCode::SUCCESS),
    }
}
