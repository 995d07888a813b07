//! How results are shown.

use std::io::Write as _;

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
    /// Number of samples.
    pub(crate) n: u32,
    /// How exact it is, for people.
    #[serde(skip)]
    pub(crate) note: Option<&'static str>,
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
        writeln!(out, "{:<24} {:>10} {:<10} {:>8} {:>4}  note", "metric", "value", "unit", "goal", "n")?;
    }
    for figure in figures {
        if json {
            writeln!(out, "{}", serde_json::to_string(figure)?)?;
        } else {
            let goal = figure.goal.map_or_else(|| "-".to_owned(), |goal| format!("<= {goal}"));
            let line = format!(
                "{:<24} {:>10.2} {:<10} {:>8} {:>4}  {}",
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
