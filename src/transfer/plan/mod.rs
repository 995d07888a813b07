//! Which bytes move next, and where to, when nodes are to be emptied into one repository. Pure.
//!
//! Every byte crosses the repository's link once, so that the last node is free no earlier than this link has taken
//! all. Most nodes can be free long before, if others of them take their bytes meanwhile. A [`View`] says what
//! is where and what moves; a [`Planner`] says what starts now. It is asked again whenever a move has ended, a node has
//! come or gone, or a link turned out to be faster or slower: there are no rounds, but in the policy that is called
//! after them.
//!
//! | policy | does |
//! |---|---|
//! | [`Policy::Target`] | the wanted share first, a star into repository and nodes that stay; then as `NodeSeconds` |
//! | [`Policy::NodeSeconds`] | holders merge in pairs, smaller into larger, while a receiver feeds the repository |
//! | [`Policy::Deadline`] | a star over as many nodes as are needed for the others to be free in time |
//! | [`Policy::Rounds`] | Kget+ as published: one node to the repository, others in pairs; all end before more start |
//!
//! Where bytes are only counted here, whoever executes chooses which of them. A node has at most one move out and one
//! in; the repository as many as fill its link ([`admission`]). No node is given more than it has room for; one that
//! may not receive is never asked to. [`bounds`] are what no plan can beat, and [`simulate`] runs a plan on ideal
//! links.

pub mod admission;
pub mod bounds;
pub mod chain;
mod doubling;
pub mod meter;
mod model;
pub mod simulate;
mod star;

pub use model::{Move, Node, Place, Policy, Repository, View};
use star::Star;

/// Decides for one run; it remembers the schedule that it follows until something differs from it.
#[derive(Debug)]
pub struct Planner {
    policy: Policy,
    star: Option<Star>,
    /// The last holders, on a repository that takes more than one of them.
    last: Option<Star>,
}

impl Planner {
    /// Decides by this policy.
    pub fn new(policy: Policy) -> Self {
        Self { policy, star: None, last: None }
    }

    /// Makes another plan, perhaps by another policy; what has been begun is made use of.
    pub fn anew(&mut self, policy: Policy) {
        self.policy = policy;
        (self.star, self.last) = (None, None);
    }

    /// What starts now, besides the moves that are under way, `now` seconds after the beginning.
    pub fn next(&mut self, view: &View<'_>, now: f64) -> Vec<Move> {
        match self.policy {
            Policy::NodeSeconds => self.double(view),
            Policy::Rounds => doubling::next(view, true),
            Policy::Target { share } => {
                let wanted = model::share_of(view.alive(), share);
                if view.free() >= wanted {
                    return self.double(view);
                }
                self.follow(view, |view| Some(view.alive() - wanted))
            }
            Policy::Deadline { within } => self.follow(view, |view| star::receivers_for(view, within - now)),
        }
    }

    /// So much of what was to start has not been started.
    pub fn again(&mut self, wanted: Move) {
        if let Some(star) = self.last.as_mut().or(self.star.as_mut()) {
            star.again(wanted);
        }
    }

    /// Follows the star there is, or another with as many nodes that stay; without either, holders merge.
    fn follow(&mut self, view: &View<'_>, receivers: impl Fn(&View<'_>) -> Option<usize>) -> Vec<Move> {
        if self.star.as_ref().is_none_or(|star| !star.holds(view)) {
            let receivers = receivers(view).filter(|receivers| view.free() + receivers < view.alive());
            self.star = receivers.map(|receivers| Star::new(view, receivers));
        }
        let moves = self.star.as_mut().map(|star| star.next(view)).unwrap_or_default();
        // a schedule that has run dry, for lack of room, must not be the end of it
        if moves.is_empty() && (self.star.is_none() || view.moves.is_empty()) {
            self.star = None;
            return self.double(view);
        }
        moves
    }

    /// Holders merge while they can. The last of them share the repository's places so that all end at once.
    fn double(&mut self, view: &View<'_>) -> Vec<Move> {
        if self.last.as_ref().is_some_and(|last| !last.holds(view)) {
            self.last = None;
        }
        if self.last.is_none() {
            let moves = doubling::next(view, false);
            let merging = view.moves.iter().chain(&moves).any(|going| going.to != Place::Repository);
            if merging || view.repository.senders <= 1 {
                return moves;
            }
        }
        self.last.get_or_insert_with(|| Star::new(view, 0)).next(view)
    }
}
