//! Jobs on bare OAR nodes: OAR gives slots, its prologue rights, a deployment server puts the hypervisor there, the
//! nodes join the cluster, and machines run on them; or TakTuk starts the agents in the slots. Skipped where there is
//! no test bed whose nodes can be deployed (`testbed kadeploy-start`, which says the address). `e2e/test --e2e` runs
//! some of them, and `--each` all.

mod bare;
mod failures;
mod images;
mod joins;
mod launched;
mod nodes;
