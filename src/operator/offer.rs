//! What the agents offer wherever they run: their QEMU comes with their image, which mostly is the operator's
//! own.

use crate::{
    config::Config,
    driver::{agent::Accelerator, qemu::probe},
    store::machine::Offer,
};

/// What is known of the agents before any runs. `image` is the one that this process runs from: only if agents
/// run from the same one is its QEMU theirs.
pub(super) async fn offer(config: &Config, image: Option<&str>) -> Offer {
    let accelerator = match config.agents.accelerator {
        Accelerator::Tcg => Accelerator::Tcg,
        Accelerator::Kvm | Accelerator::Probe => Accelerator::Kvm,
    };
    let unknown = Offer::unknown(accelerator);
    if image != Some(config.agents.image.as_str()) {
        tracing::info!(agents = config.agents.image, "the agents have an image of their own: their QEMU is not known");
        return unknown;
    }
    match tokio::try_join!(probe::version(), probe::machines()) {
        Ok((version, machines)) => {
            tracing::info!(qemu = version.text, "the agents' QEMU");
            Offer { qemu: version.text, machines: machines.names, ..unknown }
        }
        Err(error) => {
            tracing::warn!(%error, "the agents' QEMU is not known");
            unknown
        }
    }
}
