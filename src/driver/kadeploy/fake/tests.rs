//! The double: the contract, and what only it can do.

use super::*;
use crate::driver::kadeploy::{
    NodeState, Remains,
    contract::{self, Power, World},
};

struct Fake {
    server: FakeKadeploy,
    clock: Clock,
}

#[async_trait]
impl World for Fake {
    fn server(&self) -> &dyn Kadeploy {
        &self.server
    }
    fn nodes(&self) -> Vec<NodeName> {
        vec!["node-1".into(), "node-2".into()]
    }
    fn environment(&self) -> EnvironmentName {
        EnvironmentName::newest("hv")
    }
    async fn pass(&self) {
        self.clock.advance(SignedDuration::from_secs(1));
    }
    async fn use_power(&self, power: Power<'_>) -> bool {
        match power {
            Power::Grant(node) => self.server.set_rights(node, true),
            Power::Revoke(node) => self.server.set_rights(node, false),
            Power::Break(node, broken) => {
                self.server.set_fault(node, broken.then(|| Fault::Fails("no kernel".into())));
            }
            Power::Spoil(spoilt) => {
                self.server.set_breaking(spoilt.then(|| KadeployError::Refused("the checksum does not match".into())));
            }
            Power::Restart => self.server.restart(),
        }
        true
    }
}

fn fake() -> Fake {
    let clock = Clock::manual("2026-11-27T06:00:00Z".parse().unwrap());
    let server = FakeKadeploy::new(clock.clone(), &["node-1", "node-2"]);
    for version in [1, 2] {
        let text =
            format!("name: hv\nversion: {version}\nuser: alice\nimage: {{file: 'server:///hv.tgz', kind: tar}}\n");
        server.add_environment(Environment::from_yaml(&text).unwrap());
    }
    Fake { server, clock }
}

fn both() -> DeployRequest {
    let nodes = vec!["node-1".into(), "node-2".into()];
    let environment = EnvironmentToDeploy::Recorded(EnvironmentName::newest("hv"));
    DeployRequest { nodes, environment, key_url: None, takes_over: None }
}

#[tokio::test]
async fn the_double_keeps_the_contract() {
    contract::holds(&fake()).await;
}

#[tokio::test]
async fn a_lost_reply_is_found_in_the_list() {
    let Fake { server, .. } = fake();
    let request = both();
    request.nodes.iter().for_each(|node| server.set_rights(node, true));
    server.set_outage(Outage::RepliesLost);
    assert!(matches!(server.deploy(&request).await, Err(KadeployError::Unreachable(_))));
    server.set_outage(Outage::None);
    let found = server.workflows().await.unwrap();
    assert_eq!((found.len(), &found[0].nodes, found[0].done), (1, &request.nodes, false));
    assert_eq!(found[0].environment.version, Some(2));
}

#[tokio::test]
async fn one_node_that_hangs_holds_up_the_workflow_and_is_given_up() {
    let Fake { server, clock } = fake();
    let request = both();
    request.nodes.iter().for_each(|node| server.set_rights(node, true));
    server.set_fault(&request.nodes[1], Some(Fault::Hangs));
    let id = server.deploy(&request).await.unwrap();
    clock.advance(SignedDuration::from_secs(60));
    let seen = server.observe(&id, &request.nodes, &request.environment).await.unwrap();
    assert!(!seen.done && matches!(seen.nodes[&request.nodes[0]], NodeState::Working { .. }));
    clock.advance(SignedDuration::from_secs(600));
    let seen = server.observe(&id, &request.nodes, &request.environment).await.unwrap();
    assert_eq!((seen.done, &seen.nodes[&request.nodes[0]]), (true, &NodeState::Deployed));
    assert!(matches!(seen.nodes[&request.nodes[1]], NodeState::Failed { .. }));
}

#[tokio::test]
async fn a_busy_node_is_left_out_and_a_stale_mark_ends_by_itself() {
    let Fake { server, clock } = fake();
    let request = both();
    request.nodes.iter().for_each(|node| server.set_rights(node, true));
    server.set_busy(&request.nodes[0], true);
    let id = server.deploy(&request).await.unwrap();
    let seen = server.observe(&id, &request.nodes, &request.environment).await.unwrap();
    assert_eq!(seen.nodes[&request.nodes[0]], NodeState::Discarded);
    server.restart();
    let seen = server.observe(&id, &request.nodes, &request.environment).await.unwrap();
    assert_eq!(seen.nodes[&request.nodes[1]], NodeState::Lost(Remains::Stale));
    server.set_busy(&request.nodes[0], false);
    clock.advance(PURGE);
    let id = server.deploy(&request).await.unwrap();
    clock.advance(SignedDuration::from_secs(10));
    let seen = server.observe(&id, &request.nodes, &request.environment).await.unwrap();
    assert!(seen.nodes.values().all(|state| *state == NodeState::Deployed), "{seen:?}");
}

#[tokio::test]
async fn nothing_is_known_while_it_is_down() {
    let Fake { server, .. } = fake();
    server.set_outage(Outage::All);
    let down = |error| assert!(matches!(error, KadeployError::Unreachable(_)), "{error}");
    let request = both();
    down(server.deploy(&request).await.unwrap_err());
    down(server.workflows().await.unwrap_err());
    let id = WorkflowId("D-1".into());
    down(server.observe(&id, &request.nodes, &request.environment).await.unwrap_err());
    down(server.forget(&id).await.unwrap_err());
    assert_eq!(server.begun(), 0);
}
