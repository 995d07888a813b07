//! One image to many nodes: who fetches it from whom. Pure.
//!
//! The nodes are a chain, in which each fetches from the one before it while that one still receives, and the first
//! from the repository, so that every link carries the image once and all have it little later than one alone would.
//! Nodes of one switch stand together: what joins two switches carries the image once as well, and since only the end
//! of a chain has a link to spare, the chain of the next switch is fed from there.
//!
//! Nobody leads: each looks at the one that it fetches from ([`fault`], [`next`]), and passes one over that is dead or
//! holds the others up. It goes on with the one before that, and with the repository when nobody is left.

mod order;
mod pace;
mod relink;
#[cfg(test)]
mod spread_tests;

pub use order::{Place, before};
pub use pace::Pace;
pub use relink::{Fault, View, fault, next};
