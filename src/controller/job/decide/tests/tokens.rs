//! The tokens by which deployed nodes join the cluster.

use std::collections::BTreeMap;

use super::life::*;
use crate::{
    api::{JobPhase, Reason, hypervisor::Deploy},
    controller::job::plan::{Effect, NodeSeen, TokenOrder, TokenSeen},
    driver::{Fact, site::End},
    names::NodeName,
};

/// A job whose node is deployed and has not joined yet; its token may be made.
fn joining() -> (Life, String) {
    let mut life = super::hypervisor::deployed(1, Deploy::Always);
    life.server.alone = true;
    life.run(3);
    let slot = life.status().slots[0].id.clone();
    let seen = TokenSeen { id: Some("abc123".into()), ..TokenSeen::default() };
    life.seen.tokens.insert(slot.clone(), BTreeMap::from([(NodeName("node-1".into()), seen)]));
    life.run(3);
    (life, slot)
}

fn token(life: &Life) -> Option<String> {
    life.status().slots.first()?.deployment.as_ref()?.nodes[0].token.clone()
}

#[test]
fn a12_a_token_is_offered_until_its_node_has_joined() {
    let (mut life, slot) = joining();
    let offered = life.effects("OfferToken");
    let Some(Effect::OfferToken(TokenOrder { slot: of, node, id, life: length })) = offered.first() else {
        panic!("no token: {:?}", life.whys);
    };
    assert_eq!((of.0.as_str(), node.0.as_str(), id.as_str()), (slot.as_str(), "node-1", "abc123"));
    assert!((6000..=7200).contains(&length.as_secs()), "it is not what is left of the slot: {length:?}");
    assert_eq!(token(&life).as_deref(), Some("abc123"), "by this it is known whose request it is");
    assert!(life.effects("WithdrawToken").is_empty());

    life.seen.nodes.insert(NodeName("node-1".into()), NodeSeen { system: system("new"), ..super::life::node(1) });
    life.run(3);
    assert_eq!(life.effects("WithdrawToken").len(), 1, "{:?}", life.whys);
    assert_eq!(token(&life), None);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
}

#[test]
fn a12_a_token_is_taken_back_when_its_slot_is_over() {
    let (mut life, slot) = joining();
    life.end_slot(&slot, End::Preempted);
    life.run(3);
    assert_eq!(life.effects("WithdrawToken").len(), 1, "{:?}", life.whys);
    let status = life.status();
    let known = status.slots.iter().find(|known| known.id == slot);
    assert!(known.is_none_or(|known| known.deployment.iter().all(|it| it.nodes[0].token.is_none())), "{known:?}");
}

#[test]
fn why_a_node_does_not_join_is_in_the_status_and_in_what_it_costs() {
    let (mut life, slot) = joining();
    let node = NodeName("node-1".into());
    life.seen.tokens.get_mut(&slot).unwrap().get_mut(&node).unwrap().trouble = Some("it was denied".into());
    life.run(3);
    let error = life.status().slots[0].deployment.as_ref().unwrap().nodes[0].error.clone();
    assert_eq!(error.as_deref(), Some("it was denied"));
    life.run(600);
    let told = life.told(Reason::DeploymentFailed);
    assert!(
        told.iter().any(|text| text.contains("did not become a ready node") && text.contains("it was denied")),
        "{told:?}"
    );
}

#[test]
fn a_job_that_has_run_asks_for_no_slots_that_its_nodes_could_not_join_in() {
    let mut life = Life::running(1);
    life.seen.launch_key = Fact::Known(Err("there is no launchKey".into()));
    let slot = life.status().slots[0].id.clone();
    life.end_slot(&slot, End::Preempted);
    life.run(30);
    assert_eq!(life.effects("SubmitSlots").len(), 1, "{:?}", life.whys);
    let retry = life.status().retry.expect("it is not said why");
    assert!(retry.message.contains("launchKey"), "{retry:?}");
    assert!(life.message("Stalled").contains("launchKey"), "a person must act");
    life.seen.launch_key = Fact::Known(Ok(()));
    life.run(300);
    assert_eq!((life.effects("SubmitSlots").len(), life.message("Stalled")), (2, String::new()), "{:?}", life.whys);
}

#[test]
fn nodes_that_join_otherwise_get_none() {
    let mut life = super::hypervisor::deployed(1, Deploy::Always);
    life.run(20);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
    assert!(life.effects("OfferToken").is_empty() && token(&life).is_none());
}
