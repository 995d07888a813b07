//! How results are shown.

use std::{io::Write as _, process::Command};

use anyhow::ensure;
use serde::Serialize;

/// One figure.
#[derive(Serialize)]
pub(crate) struct Figure {
    /// What.
    pub(crate) metric: &'static str,
    /// How much.
    pub(crate) value: f64,
    /// Of what.
    pub(crate) unit: &'static str,
    /// How much it may be; absent: only printed.
    pub(crate) goal: Option<f64>,
    /// Whether it may not be less, instead of more.
    #[serde(skip)]
    pub(crate) at_least: bool,
    /// Number of samples.
    pub(crate) n: u32,
    /// How exact it is, for people.
    #[serde(skip)]
    pub(crate) note: Option<&'static str>,
}

impl Figure {
    fn bound(&self) -> &'static str {
        if self.at_least { ">=" } else { "<=" }
    }
}

/// The sample below which a part of all lies.
pub(crate) fn figure(
    metric: &'static str,
    of: &[f64],
    part: f64,
    unit: &'static str,
    goal: Option<f64>,
    note: Option<&'static str>,
) -> Option<Figure> {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 * part).ceil() as usize).saturating_sub(1);
    let value = *sorted.get(at)?;
    Some(Figure { metric, value, unit, goal, n: u32::try_from(of.len()).unwrap_or(u32::MAX), note, at_least: false })
}

/// The same, of which more is better.
pub(crate) fn at_least(figure: Figure) -> Figure {
    Figure { at_least: true, ..figure }
}

/// What came of a benchmark.
pub(crate) struct Measured {
    /// The figures.
    pub(crate) figures: Vec<Figure>,
    /// Which samples failed, and why.
    pub(crate) failed: Vec<String>,
}

/// Prints the figures.
pub(crate) fn print(figures: &[Figure], json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if !json {
        writeln!(out, "{:<28} {:>10} {:<10} {:>8} {:>4}  note", "metric", "value", "unit", "goal", "n")?;
    }
    for figure in figures {
        if json {
            writeln!(out, "{}", serde_json::to_string(figure)?)?;
        } else {
            let goal = figure.goal.map_or_else(|| "-".to_owned(), |goal| format!("{} {goal}", figure.bound()));
            let line = format!(
                "{:<28} {:>10.2} {:<10} {:>8} {:>4}  {}",
                figure.metric,
                figure.value,
                figure.unit,
                goal,
                figure.n,
                figure.note.unwrap_or_default()
            );
            writeln!(out, "{}", line.trim_end())?;
        }
    }
    Ok(())
}

/// Installs the Debian packages of which a program is not there.
pub(crate) fn install_packages(programs: &[(&str, &str)]) -> anyhow::Result<()> {
    let there = |program: &str| Command::new(program).arg("--help").output().is_ok();
    let missing: Vec<&str> =
        programs.iter().filter(|(program, _)| !there(program)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "-y", "--no-install-recommends"]).args(missing);
    let installed = command.output()?;
    ensure!(installed.status.success(), "{}", String::from_utf8_lossy(&installed.stderr));
    Ok(())
}
