//! What is wrong with a guest: one thing of each kind, so that the end of one is not the end of another.

use std::collections::BTreeMap;

use super::Supervisor;

/// Longest text of one problem, in characters.
const LONGEST: usize = 500;
/// Longest text of all, in characters.
const LONGEST_ALL: usize = 2000;

/// The kinds, in the order in which they are told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Problem {
    /// The node's disk takes no data of the guest's.
    Disk,
    /// The node's disk takes no output of the command's.
    Output,
    /// There is more output than is kept.
    OutputFull,
    /// Its randomness is as old as the snapshot it was restored from.
    Randomness,
    /// So is its clock.
    Clock,
    /// Members that were waited for were not reached.
    Members,
    /// The command is gone, or could not be started.
    Command,
    /// A file is not kept: which.
    NotKept(String),
    /// The way in is not served.
    WayIn,
}

/// What is wrong at present.
#[derive(Debug, Default)]
pub(super) struct Problems(BTreeMap<Problem, String>);

impl Problems {
    /// All of it in one text, the worst first. None: nothing is wrong.
    pub(super) fn text(&self) -> Option<String> {
        let all: Vec<&str> = self.0.values().map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; ").chars().take(LONGEST_ALL).collect())
    }
}

impl Supervisor {
    /// Tells of a problem; it takes the place of an earlier one of its kind.
    pub(super) fn problem(&self, kind: Problem, text: &str) {
        tracing::warn!(text, "the guest has a problem");
        self.view.change(|facts| facts.problems.0.insert(kind, text.chars().take(LONGEST).collect()));
    }

    /// A problem is over.
    pub(super) fn problem_ends(&self, kind: &Problem) {
        self.view.change(|facts| facts.problems.0.remove(kind));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_one_problem_is_not_the_end_of_another() {
        let directory = tempfile::tempdir().unwrap();
        let supervisor = super::super::testing::Making::below(directory.path()).make();
        let told = || supervisor.view.render().guest.problem;
        assert_eq!(told(), None);
        supervisor.problem(Problem::WayIn, "no way in");
        supervisor.problem(Problem::Disk, "no room");
        supervisor.problem(Problem::NotKept("/a".into()), "/a is not kept");
        supervisor.problem(Problem::NotKept("/b".into()), "/b is not kept");
        assert_eq!(told().as_deref(), Some("no room; /a is not kept; /b is not kept; no way in"));
        supervisor.problem(Problem::Disk, "no room at all");
        supervisor.problem_ends(&Problem::WayIn);
        assert_eq!(told().as_deref(), Some("no room at all; /a is not kept; /b is not kept"));
        supervisor.problem_ends(&Problem::Disk);
        supervisor.problem(Problem::NotKept("/a".into()), &"x".repeat(9000));
        assert_eq!(told().map(|text| text.len()), Some(LONGEST + "; /b is not kept".len()));
    }
}
