//! The machine's states and what may follow each. The decisions are held to it by their tests, and the
//! crate's page shows it.

use crate::api::JobPhase::{
    self, Completing, Deploying, Evacuating, Failed, ImagePreparing, Pending, Queued, Restoring, Running, Snapshotting,
    Starting, Succeeded, Suspended, Terminating,
};

/// All phases, in the order of a life.
pub const ALL: [JobPhase; 14] = [
    Pending,
    ImagePreparing,
    Queued,
    Deploying,
    Starting,
    Restoring,
    Running,
    Snapshotting,
    Evacuating,
    Completing,
    Suspended,
    Succeeded,
    Failed,
    Terminating,
];

/// The phases one pass may lead to.
pub fn next(phase: JobPhase) -> &'static [JobPhase] {
    match phase {
        Pending => {
            &[ImagePreparing, Queued, Deploying, Starting, Restoring, Evacuating, Suspended, Failed, Terminating]
        }
        ImagePreparing => {
            &[Pending, Queued, Deploying, Starting, Restoring, Evacuating, Suspended, Failed, Terminating]
        }
        Queued => {
            &[Pending, ImagePreparing, Deploying, Starting, Restoring, Evacuating, Suspended, Failed, Terminating]
        }
        Deploying => &[Queued, Starting, Restoring, Running, Evacuating, Suspended, Failed, Terminating],
        Starting | Restoring => &[Queued, Deploying, Running, Evacuating, Suspended, Failed, Terminating],
        Running => {
            &[Snapshotting, Queued, Deploying, Evacuating, Completing, Suspended, Succeeded, Failed, Terminating]
        }
        Snapshotting => {
            &[Running, Queued, Deploying, Evacuating, Completing, Suspended, Succeeded, Failed, Terminating]
        }
        Evacuating => &[Queued, Deploying, Starting, Restoring, Completing, Suspended, Succeeded, Failed, Terminating],
        Completing => &[Queued, Deploying, Evacuating, Suspended, Succeeded, Failed, Terminating],
        Suspended => &[Pending, ImagePreparing, Queued, Deploying, Failed, Terminating],
        Succeeded | Failed => &[Terminating],
        Terminating => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = "//! <!-- states: begin -->\n";
    const END: &str = "//! <!-- states: end -->\n";

    /// The diagram, as the crate's page has it.
    fn diagram() -> String {
        let mut lines = vec!["//! ```text".to_owned()];
        for phase in ALL.into_iter().filter(|phase| !next(*phase).is_empty()) {
            let names: Vec<String> = next(phase).iter().map(|next| format!("{next:?}")).collect();
            let mut line = format!("//! {:14} ->", format!("{phase:?}"));
            for name in names {
                if line.len() + name.len() > 108 {
                    lines.push(std::mem::replace(&mut line, format!("//! {:17}", "")));
                }
                line = format!("{line} {name}");
            }
            lines.push(line);
        }
        lines.push("//! ```".to_owned());
        lines.join("\n") + "\n"
    }

    #[test]
    fn the_crate_page_shows_the_machine() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
        let page = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = page.split_once(BEGIN).unwrap();
        let (shown, after) = rest.split_once(END).unwrap();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, format!("{before}{BEGIN}{}{END}{after}", diagram())).unwrap();
            return;
        }
        assert_eq!(shown, diagram(), "run the test with UPDATE=1");
    }

    #[test]
    fn every_phase_can_be_reached_and_left() {
        for phase in ALL {
            let reached = phase == JobPhase::default() || ALL.iter().any(|from| next(*from).contains(&phase));
            assert!(reached, "{phase:?}");
            assert_eq!(next(phase).is_empty(), phase == Terminating);
            assert!(!next(phase).contains(&phase));
        }
    }
}
