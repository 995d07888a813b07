//! What `vmdeploy kget gather` is told.

use std::{
    num::{ParseFloatError, ParseIntError},
    path::PathBuf,
};

use anyhow::Context as _;

use super::set;
use crate::{
    api::quantity::{Bytes, ParseBytesError},
    transfer::plan::Policy,
};

/// Copies a file from each of many hosts into one directory here, so that most hosts hold nothing any more that is not
/// safe elsewhere long before the last byte is here.
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub struct Args {
    /// The hosts, for example node-[1-32],web[01-03]; what follows a ! is left out.
    #[arg(short = 'm', long = "machines", value_name = "SET", group = "which")]
    machines: Option<String>,
    /// A file that lists them, a set on each line.
    #[arg(short = 'f', long = "file", value_name = "FILE", group = "which")]
    file: Option<PathBuf>,
    /// The remote shell: a command to which the host and a shell command are appended.
    #[arg(short = 'e', long, default_value = "ssh -o BatchMode=yes -o ConnectTimeout=10", value_name = "COMMAND")]
    pub(super) rsh: String,
    /// Reaches the hosts through TakTuk, which uses the remote shell for its own connections.
    #[arg(long)]
    pub(super) taktuk: bool,
    #[command(flatten)]
    wanted: Wanted,
    /// Most bytes a second that a node sends.
    #[arg(long, value_name = "BYTES", value_parser = rate)]
    pub(super) rate: Option<Bytes>,
    /// So many send here at a time; otherwise as many as fill the link.
    #[arg(long, value_name = "N", value_parser = senders)]
    pub(super) senders: Option<usize>,
    /// Bytes that are sent, and acknowledged, at a time.
    #[arg(long, default_value = "256Ki", value_name = "BYTES")]
    pub(super) chunk: Bytes,
    /// Most bytes of other hosts that one takes; otherwise most of what its disk has free.
    #[arg(long, value_name = "BYTES")]
    pub(super) room: Option<Bytes>,
    /// Writes what happens to this file, a line of JSON each.
    #[arg(long, value_name = "FILE")]
    pub(super) events: Option<PathBuf>,
    /// Reports as JSON on standard output.
    #[arg(long)]
    pub(super) json: bool,
    /// Draws the hosts that are free over time, with what no plan can beat, as an SVG; with --plan those of the plan.
    #[arg(long, value_name = "FILE")]
    pub(super) plot: Option<PathBuf>,
    /// Says what would be done, and what no plan can beat; moves nothing.
    #[arg(long)]
    pub(super) plan: bool,
    /// The file on each host, in which {host} stands for its name; or several by a pattern with * and ?.
    pub(super) source: String,
    /// A directory here: it gets `DEST/HOST`, or `DEST/HOST/FILE` with a pattern.
    pub(super) dest: PathBuf,
}

/// What is wanted first.
#[derive(clap::Args, Debug)]
#[group(multiple = false)]
struct Wanted {
    /// This share of the hosts free as soon as possible, then the others.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    target: Option<f64>,
    /// The sum of the times that hosts are held as small as possible.
    #[arg(long)]
    node_seconds: bool,
    /// As many hosts as possible free within this time, for example 60s.
    #[arg(long, value_parser = duration, value_name = "TIME")]
    deadline: Option<f64>,
    /// As Kget+ was published: in pairs and rounds, with one sender.
    #[arg(long)]
    paper: bool,
}

/// The share that is wanted unless anything else is.
const SHARE: f64 = 0.8;

impl Args {
    /// The hosts, each once.
    pub(super) fn hosts(&self) -> anyhow::Result<Vec<String>> {
        if let Some(path) = &self.file {
            let text = std::fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
            return Ok(set::listed(&text)?);
        }
        Ok(set::hosts(self.machines.as_deref().unwrap_or_default())?)
    }

    pub(super) fn policy(&self) -> Policy {
        match &self.wanted {
            Wanted { node_seconds: true, .. } => Policy::NodeSeconds,
            Wanted { paper: true, .. } => Policy::Rounds,
            Wanted { deadline: Some(within), .. } => Policy::Deadline { within: *within },
            Wanted { target, .. } => Policy::Target { share: target.unwrap_or(SHARE) },
        }
    }

    /// How many may send here at a time, if that is not to be found out.
    pub(super) fn fixed(&self) -> Option<usize> {
        self.senders.or(self.wanted.paper.then_some(1))
    }
}

fn rate(text: &str) -> Result<Bytes, String> {
    let rate: Bytes = text.parse().map_err(|error: ParseBytesError| error.to_string())?;
    if rate.0 == 0 {
        Err("with none nothing would ever move: write 1 or more, for example 50Mi".into())
    } else {
        Ok(rate)
    }
}

fn senders(text: &str) -> Result<usize, String> {
    let senders: usize = text.parse().map_err(|error: ParseIntError| error.to_string())?;
    if senders == 0 { Err("with none nothing would come here: write 1 or more".into()) } else { Ok(senders) }
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|error: ParseFloatError| error.to_string())?;
    if share > 0.0 && share <= 1.0 { Ok(share) } else { Err("a share is more than 0 and at most 1".into()) }
}

fn duration(text: &str) -> Result<f64, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return if seconds > 0.0 { Ok(seconds) } else { Err("no time".into()) };
    }
    let span: jiff::SignedDuration = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    if span.is_positive() { Ok(span.as_secs_f64()) } else { Err("no time".into()) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(line: &str) -> Result<Args, clap::Error> {
        Cli::try_parse_from(std::iter::once("gather").chain(line.split(' '))).map(|cli| cli.args)
    }

    #[test]
    fn policies_are_one_at_a_time() {
        for (line, expected) in [
            ("-m a s d", Policy::Target { share: 0.8 }),
            ("-m a --target 0.5 s d", Policy::Target { share: 0.5 }),
            ("-m a --node-seconds s d", Policy::NodeSeconds),
            ("-m a --deadline 60s s d", Policy::Deadline { within: 60.0 }),
            ("-m a --deadline 2m s d", Policy::Deadline { within: 120.0 }),
            ("-m a --paper s d", Policy::Rounds),
        ] {
            assert_eq!(parsed(line).unwrap().policy(), expected, "{line}");
        }
        for line in ["s d", "-m a -f b s d", "-m a --paper --target 0.5 s d", "-m a --deadline 0s s d", "-m a s"] {
            assert!(parsed(line).is_err(), "{line}");
        }
        for line in ["--rate 0", "--rate x", "--senders 0", "--target 0", "--target 2", "--target=-0.5", "--target NaN"]
        {
            assert!(parsed(&format!("-m a {line} s d")).is_err(), "{line}");
        }
        for line in ["--rate 1", "--senders 1", "--target 1"] {
            assert!(parsed(&format!("-m a {line} s d")).is_ok(), "{line}");
        }
        assert_eq!(parsed("-m a --paper s d").unwrap().fixed(), Some(1));
        assert_eq!(parsed("-m n[1-3]!n2 s d").unwrap().hosts().unwrap(), ["n1", "n3"]);
    }
}
