//! What the end-to-end tests, the demonstration and the benchmarks share.
//!
//! The real parts are started by `e2e/testbed/testbed up`; `testbed env` prints the variables by which
//! [`TestBed::find`] finds them; [`agents`] on [`nodes`] do without. Nothing here is part of vmdeploy itself: it looks
//! at vmdeploy from outside, as a user and as the site's other users do.

pub mod agents;
pub mod bucket;
pub mod chain;
pub mod chance;
pub mod environment;
pub mod goodput;
mod hold;
pub mod hosts;
pub mod job;
pub mod left;
pub mod limit;
pub mod nodes;
pub mod output;
pub mod rival;
pub mod site;
pub mod skipped;
pub mod ssh;
pub mod talk;
pub mod testbed;
pub mod ticks;
pub mod turn;
pub mod watched;
pub mod world;

pub use nodes::Nodes;
pub use testbed::TestBed;
pub use turn::Turn;
