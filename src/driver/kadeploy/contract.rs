//! What every deployment server must do for us: the same suite runs against the double, and by the client against the
//! simulator and against a real server. A part that needs a power which the world does not have is left out.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test suite that tests of other crates run too")]

use async_trait::async_trait;

use super::{
    DeployRequest, EnvironmentName, EnvironmentToDeploy, Kadeploy, KadeployError, NodeState, Observation, Remains,
    WorkflowId,
};
use crate::names::NodeName;

/// What a test may be able to do to the server.
#[derive(Clone, Copy, Debug)]
pub enum Power<'a> {
    /// Gives the account rights to a node.
    Grant(&'a NodeName),
    /// Takes them away.
    Revoke(&'a NodeName),
    /// Makes deployments of a node fail, or no longer.
    Break(&'a NodeName, bool),
    /// Makes the environment's image another one than was recorded, or the same again.
    Spoil(bool),
    /// Kills the server and starts it again.
    Restart,
}

/// A server under test, with two nodes for the suite alone.
#[async_trait]
pub trait World: Sync {
    /// The server, for the account under test.
    fn server(&self) -> &dyn Kadeploy;
    /// The two nodes.
    fn nodes(&self) -> Vec<NodeName>;
    /// An environment that the server has recorded and that can be put on both.
    fn environment(&self) -> EnvironmentName;
    /// Lets a little time pass.
    async fn pass(&self);
    /// Uses a power; false if the world does not have it.
    async fn use_power(&self, power: Power<'_>) -> bool;
}

/// Runs the whole suite.
pub async fn holds(world: &dyn World) {
    environments_are_described(world).await;
    wrong_requests_are_refused(world).await;
    a_deployment_waits_for_its_rights(world).await;
    a_deployment_goes_through(world).await;
    a_cancelled_deployment_leaves_its_nodes_aborted(world).await;
    nodes_of_another_workflow_are_left_out(world).await;
    a_node_fails_and_the_other_does_not(world).await;
    a_workflow_breaks_on_its_environment(world).await;
    rights_are_taken_away_in_the_middle(world).await;
    a_server_forgets_its_workflows(world).await;
}

/// A request for both nodes.
fn request(world: &dyn World) -> DeployRequest {
    let environment = EnvironmentToDeploy::Recorded(world.environment());
    DeployRequest { nodes: world.nodes(), environment, key_url: None, takes_over: None }
}

async fn look(world: &dyn World, id: &WorkflowId) -> Observation {
    let DeployRequest { nodes, environment, .. } = request(world);
    let seen = world.server().observe(id, &nodes, &environment).await.unwrap();
    assert!(seen.nodes.keys().eq(nodes.iter()), "not as asked: {seen:?}");
    seen
}

async fn until_done(world: &dyn World, id: &WorkflowId) -> Observation {
    for _ in 0..1000 {
        let seen = look(world, id).await;
        if seen.done {
            return seen;
        }
        world.pass().await;
    }
    panic!("{id} does not end: {:?}", look(world, id).await);
}

fn all(seen: &Observation, state: &NodeState) -> bool {
    seen.nodes.values().all(|found| found == state)
}

async fn give_rights(world: &dyn World) {
    for node in world.nodes() {
        world.use_power(Power::Grant(&node)).await;
    }
}

async fn environments_are_described(world: &dyn World) {
    let name = world.environment();
    let environment = world.server().describe(&name).await.unwrap();
    assert_eq!(environment.name, name.name);
    assert!(environment.version.is_some() && !environment.image.file.is_empty(), "{environment:?}");
    let this = EnvironmentName { version: environment.version, user: environment.user.clone(), ..name.clone() };
    assert_eq!(world.server().describe(&this).await.unwrap(), environment);
    for nobodys in [EnvironmentName::newest("there-is-none"), EnvironmentName { version: Some(987_654), ..name }] {
        let error = world.server().describe(&nobodys).await.unwrap_err();
        assert!(matches!(error, KadeployError::NoEnvironment(_)), "{error:?}");
    }
}

pub(super) async fn wrong_requests_are_refused(world: &dyn World) {
    let good = request(world);
    let range = DeployRequest { nodes: vec!["node-[1-2]".into()], ..good.clone() };
    let nobody = DeployRequest { nodes: Vec::new(), ..good.clone() };
    let stranger = DeployRequest { nodes: vec!["there-is-none".into()], ..good.clone() };
    let none = EnvironmentToDeploy::Recorded(EnvironmentName::newest("there-is-none"));
    let none = DeployRequest { environment: none, ..good.clone() };
    let path = DeployRequest { key_url: Some("/root/.ssh/id".into()), ..good };
    for wrong in [range, nobody, stranger, none, path] {
        let error = world.server().deploy(&wrong).await.unwrap_err();
        assert!(matches!(error, KadeployError::Refused(_)), "{wrong:?}: {error:?}");
    }
}

pub(super) async fn a_deployment_waits_for_its_rights(world: &dyn World) {
    let nodes = world.nodes();
    if !world.use_power(Power::Revoke(&nodes[1])).await {
        return;
    }
    world.use_power(Power::Grant(&nodes[0])).await;
    // rights to one of two are none
    let error = world.server().deploy(&request(world)).await.unwrap_err();
    assert!(matches!(error, KadeployError::RightsMissing(_)), "{error:?}");
}

async fn a_deployment_goes_through(world: &dyn World) {
    give_rights(world).await;
    let id = world.server().deploy(&request(world)).await.unwrap();
    // found again by who does not know its id
    let list = world.server().workflows().await.unwrap();
    let found = list.iter().find(|workflow| workflow.id == id).unwrap();
    let mut nodes = found.nodes.clone();
    nodes.sort();
    assert_eq!((nodes, found.done, &found.environment.name), (world.nodes(), false, &world.environment().name));
    let seen = look(world, &id).await;
    assert!(!seen.done && seen.nodes.values().all(|state| matches!(state, NodeState::Working { .. })), "{seen:?}");

    let seen = until_done(world, &id).await;
    assert!(all(&seen, &NodeState::Deployed), "{seen:?}");
    assert_eq!(look(world, &id).await, seen);
    let list = world.server().workflows().await.unwrap();
    assert!(list.iter().any(|workflow| workflow.id == id && workflow.done), "{list:?}");
    world.server().forget(&id).await.unwrap();
    world.server().forget(&id).await.unwrap();
    let list = world.server().workflows().await.unwrap();
    assert!(list.iter().all(|workflow| workflow.id != id), "{list:?}");
    // what was done is still known by the nodes' records
    let seen = look(world, &id).await;
    assert!(seen.done && all(&seen, &NodeState::Lost(Remains::Deployed)), "{seen:?}");
}

pub(super) async fn a_cancelled_deployment_leaves_its_nodes_aborted(world: &dyn World) {
    let id = world.server().deploy(&request(world)).await.unwrap();
    world.server().forget(&id).await.unwrap();
    let seen = look(world, &id).await;
    assert!(seen.done && all(&seen, &NodeState::Lost(Remains::Aborted)), "{seen:?}");
}

async fn nodes_of_another_workflow_are_left_out(world: &dyn World) {
    let first = world.server().deploy(&request(world)).await.unwrap();
    // as after a reply that was lost
    let second = world.server().deploy(&request(world)).await.unwrap();
    assert_ne!(first, second);
    let seen = until_done(world, &second).await;
    assert!(all(&seen, &NodeState::Discarded), "{seen:?}");
    world.server().forget(&second).await.unwrap();
    // nor are they taken from a workflow that is known
    let taking = DeployRequest { takes_over: Some(first.clone()), ..request(world) };
    let error = world.server().deploy(&taking).await.unwrap_err();
    assert!(matches!(error, KadeployError::Refused(_)), "{error:?}");
    let seen = until_done(world, &first).await;
    assert!(all(&seen, &NodeState::Deployed), "{seen:?}");
    world.server().forget(&first).await.unwrap();
}

pub(super) async fn a_node_fails_and_the_other_does_not(world: &dyn World) {
    let nodes = world.nodes();
    if !world.use_power(Power::Break(&nodes[1], true)).await {
        return;
    }
    let id = world.server().deploy(&request(world)).await.unwrap();
    let seen = until_done(world, &id).await;
    assert_eq!(seen.nodes[&nodes[0]], NodeState::Deployed);
    let NodeState::Failed { reason } = &seen.nodes[&nodes[1]] else { panic!("{seen:?}") };
    assert!(!reason.is_empty());
    world.server().forget(&id).await.unwrap();
    world.use_power(Power::Break(&nodes[1], false)).await;
}

async fn a_workflow_breaks_on_its_environment(world: &dyn World) {
    if !world.use_power(Power::Spoil(true)).await {
        return;
    }
    let id = world.server().deploy(&request(world)).await.unwrap();
    let seen = until_done(world, &id).await;
    let refused = |state: &NodeState| matches!(state, NodeState::Broke(KadeployError::Refused(_)));
    assert!(seen.nodes.values().all(refused), "{seen:?}");
    let list = world.server().workflows().await.unwrap();
    assert!(list.iter().any(|workflow| workflow.id == id && workflow.done && workflow.nodes.is_empty()), "{list:?}");
    world.server().forget(&id).await.unwrap();
    world.use_power(Power::Spoil(false)).await;
    let id = world.server().deploy(&request(world)).await.unwrap();
    let seen = until_done(world, &id).await;
    assert!(all(&seen, &NodeState::Deployed), "{seen:?}");
    world.server().forget(&id).await.unwrap();
}

async fn rights_are_taken_away_in_the_middle(world: &dyn World) {
    let id = world.server().deploy(&request(world)).await.unwrap();
    let nodes = world.nodes();
    if world.use_power(Power::Revoke(&nodes[0])).await {
        let seen = until_done(world, &id).await;
        assert_eq!(seen.nodes[&nodes[0]], NodeState::Lost(Remains::Aborted), "{seen:?}");
        let error = world.server().deploy(&request(world)).await.unwrap_err();
        assert!(matches!(error, KadeployError::RightsMissing(_)), "{error:?}");
        give_rights(world).await;
    }
    world.server().forget(&id).await.unwrap();
}

async fn a_server_forgets_its_workflows(world: &dyn World) {
    let first = world.server().deploy(&request(world)).await.unwrap();
    if !world.use_power(Power::Restart).await {
        world.server().forget(&first).await.unwrap();
        return;
    }
    // connections to the one that was killed are of no use any more
    while matches!(world.server().workflows().await, Err(KadeployError::Unreachable(_))) {
        world.pass().await;
    }
    let seen = look(world, &first).await;
    assert!(seen.done && all(&seen, &NodeState::Lost(Remains::Stale)), "{seen:?}");
    assert!(world.server().workflows().await.unwrap().is_empty());
    world.server().forget(&first).await.unwrap();
    // the marks of the dead workflow are still on the nodes
    let second = world.server().deploy(&request(world)).await.unwrap();
    let seen = until_done(world, &second).await;
    assert!(all(&seen, &NodeState::Discarded), "{seen:?}");
    world.server().forget(&second).await.unwrap();
    let taking = DeployRequest { takes_over: Some(first), ..request(world) };
    let third = world.server().deploy(&taking).await.unwrap();
    let seen = until_done(world, &third).await;
    assert!(all(&seen, &NodeState::Deployed), "{seen:?}");
    world.server().forget(&third).await.unwrap();
}
