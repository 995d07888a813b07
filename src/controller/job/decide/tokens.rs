//! The tokens by which deployed nodes join the cluster: each is of one node of one slot, is there while the node is on its way,
//! and is taken back once it has come, or its slot is over (safety A12). Its id is in the status before it is offered, for by
//! it alone is a request for a certificate known to be of that node.

use std::time::Duration;

use super::draft::Draft;
use crate::{
    api::job_status::{DeployedNode, DeploymentState, DeploymentStatus},
    controller::job::plan::{Effect, TokenOrder},
    driver::cluster::joins::certificate_life,
    names::NodeName,
};

/// A token is offered this often: whoever finds it missing has it again.
const OFFER_EVERY: Duration = Duration::from_secs(30);
/// It is taken back this often.
const WITHDRAW_EVERY: Duration = Duration::from_secs(10);

impl Draft<'_> {
    /// Offers tokens to those nodes of a slot that are to join, and takes those of the others back.
    pub(super) fn tend_tokens(&mut self, slot: &str, deployment: &mut DeploymentStatus, in_use: bool) {
        for node in &mut deployment.nodes {
            let comes = matches!(node.state, DeploymentState::Deploying | DeploymentState::Joining);
            if in_use && comes { self.offer_token(slot, node) } else { self.withdraw_token(slot, node) }
        }
    }

    fn offer_token(&mut self, slot: &str, node: &mut DeployedNode) {
        let name = NodeName(node.node.clone());
        let seen = self.seen.tokens.get(slot).and_then(|nodes| nodes.get(&name));
        let Some(id) = seen.and_then(|seen| seen.id.clone()) else { return };
        node.token = Some(id.clone());
        let life = certificate_life(self.job.spec.slots.walltime.into());
        self.repeat(Effect::OfferToken(TokenOrder { slot: slot.to_owned().into(), node: name, id, life }), OFFER_EVERY);
    }

    fn withdraw_token(&mut self, slot: &str, node: &mut DeployedNode) {
        let Some(id) = node.token.clone() else { return };
        let seen = self.seen.tokens.get(slot).and_then(|nodes| nodes.get(&NodeName(node.node.clone())));
        if seen.is_some_and(|seen| seen.withdrawn) {
            node.token = None;
        } else {
            self.repeat(Effect::WithdrawToken { id }, WITHDRAW_EVERY);
        }
    }
}
