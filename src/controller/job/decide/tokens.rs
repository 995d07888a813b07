//! The tokens by which deployed nodes join the cluster: each is of one node of one slot, is there while the node is to
//! join, and is taken back once it has, or its slot is over or wanted back (safety A12). Its id is in the status before
//! it is offered, for by it alone is a request for a certificate known to be of that node.

use std::time::Duration;

use super::draft::{Draft, since};
use crate::{
    api::job_status::{DeployedNode, DeploymentState, SlotStatus},
    controller::job::plan::{Effect, TokenOrder},
    names::NodeName,
};

/// A token is offered this often: whoever finds it missing has it again.
const OFFER_EVERY: Duration = Duration::from_secs(30);
/// It is taken back this often.
const WITHDRAW_EVERY: Duration = Duration::from_secs(10);

impl Draft<'_> {
    /// Offers tokens to those nodes that are to join, and takes those of all others back.
    pub(super) fn tend_tokens(&mut self) {
        for at in 0..self.status.slots.len() {
            let slot = self.status.slots[at].clone();
            let Some(mut deployment) = slot.deployment.clone() else { continue };
            for node in &mut deployment.nodes {
                if slot.lets_in() && node.state == DeploymentState::Joining {
                    self.offer_token(&slot, node);
                } else {
                    self.withdraw_token(&slot, node);
                }
            }
            self.status.slots[at].deployment = Some(deployment);
        }
    }

    fn offer_token(&mut self, slot: &SlotStatus, node: &mut DeployedNode) {
        let name = NodeName(node.node.clone());
        let seen = self.seen.tokens.get(&slot.id).and_then(|nodes| nodes.get(&name));
        // it says how long a certificate may live, and is never changed
        let Some(until) = &slot.until else { return };
        let Some((seen, id)) = seen.and_then(|seen| Some((seen, seen.id.clone()?))) else { return };
        node.token = Some(id.clone());
        if seen.trouble.is_some() {
            node.error.clone_from(&seen.trouble);
        }
        let life = since(self.now, until.0);
        self.repeat(Effect::OfferToken(TokenOrder { slot: slot.id.clone().into(), node: name, id, life }), OFFER_EVERY);
    }

    fn withdraw_token(&mut self, slot: &SlotStatus, node: &mut DeployedNode) {
        let Some(id) = node.token.clone() else { return };
        let seen = self.seen.tokens.get(&slot.id).and_then(|nodes| nodes.get(&NodeName(node.node.clone())));
        if seen.is_some_and(|seen| seen.withdrawn) {
            node.token = None;
        } else {
            self.repeat(Effect::WithdrawToken { id }, WITHDRAW_EVERY);
        }
    }
}
