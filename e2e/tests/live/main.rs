//! What vmdeploy promises, on a real OAR and a real Kubernetes. Each case is a story of one job or a few; skipped
//! where there is no test bed. `e2e/test --e2e` runs them.

mod access;
mod clone;
mod collectors;
mod cut;
mod deleted;
mod ends;
mod environments;
mod faults;
mod hours;
mod images;
mod isolation;
mod kills;
mod master;
mod mistakes;
mod operator;
mod parallel;
mod per_member;
mod registry;
mod sources;
mod suspend;
mod testbed;
