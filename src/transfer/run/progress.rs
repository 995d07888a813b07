//! How far a gather is, for people: a bar on a terminal, a line a second elsewhere.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// Where it is shown.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    said: Instant,
    begun: Instant,
    /// What was here before: its bytes took no time.
    before: u64,
}

/// How often without a terminal.
const OFTEN: Duration = Duration::from_secs(1);

impl Progress {
    pub(super) fn new(before: u64, all: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(all);
            let template = "{bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}  {msg}";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_position(before);
            bar.reset_eta();
            bar
        });
        Self { bar, said: Instant::now(), begun: Instant::now(), before }
    }

    /// So many of the nodes are free, and so many bytes here.
    pub(super) fn show(&mut self, free: usize, nodes: usize, stored: u64, all: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(stored);
            bar.set_message(format!("free {free}/{nodes}"));
        } else if self.said.elapsed() >= OFTEN {
            self.said = Instant::now();
            let rate = (stored - self.before) as f64 / self.begun.elapsed().as_secs_f64();
            let (here, all, rate) = (HumanBytes(stored), HumanBytes(all), HumanBytes(rate as u64));
            eprintln!("free {free}/{nodes}, {here} of {all} here, {rate}/s");
        }
    }

    /// A line that stays.
    pub(super) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
