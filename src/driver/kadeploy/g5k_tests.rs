//! The client of the Grid'5000 API on bodies written from its public descriptions and source: nobody recorded any.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{
    DeployRequest, EnvironmentName, EnvironmentToDeploy, Kadeploy, KadeployError, NodeState, Remains, WorkflowId,
    connect,
    contract::{self, Power, World},
    replay_tests::{Recorded, Replay, Seen, alice},
};
use crate::names::NodeName;

const MORE: &str = ", flavour: g5k, partition: '3'";
/// The nodes of the double.
const NODES: [&str; 2] = ["dummy-2.test", "dummy-3.test"];

fn id() -> WorkflowId {
    WorkflowId("D-1".into())
}

fn request() -> DeployRequest {
    let name = EnvironmentName { name: "debian12-min".into(), user: Some("deploy".into()), version: None };
    let nodes = vec!["worker-1".into(), "dummy-2.test".into()];
    DeployRequest { nodes, environment: EnvironmentToDeploy::Recorded(name), key_url: None, takes_over: None }
}

fn deployment(status: &str) -> Recorded {
    let step = |state: &str| json!({"macro": "BootNewEnvClassical", "micro": "wait_reboot", "state": state});
    let body = json!({
        "uid": "D-1", "user_uid": "alice", "site_uid": "rennes", "status": status,
        "environment": "debian12-min@deploy", "nodes": ["dummy-1.test", "dummy-2.test"], "created_at": 1_795_325_920,
        "result": {"dummy-1.test": step("OK"), "dummy-2.test": step("KO")}, "output": "no image",
    });
    Recorded::made(200, "", &body.to_string())
}

#[tokio::test]
async fn a_deployment_is_asked_for_and_its_id_is_where_it_is_found() {
    let made = "Location: /3.0/sites/rennes/deployments/D-1\n";
    let server = Replay::start(move |line| match line {
        "POST /deployments" => Recorded::made(201, made, ""),
        _ => Recorded::made(404, "", "not there"),
    })
    .await;
    let client = connect(&server.site(MORE), &alice()).unwrap();
    assert_eq!(client.deploy(&request()).await.unwrap(), id());
    let wanted = json!({
        "nodes": ["dummy-2.test", "dummy-1.test"], "environment": "debian12-min@deploy", "partition_label": "3",
    });
    assert_eq!(server.last().body, wanted);
    client.deploy(&DeployRequest { takes_over: Some(id()), ..request() }).await.unwrap();
    assert_eq!(server.last().body["ignore_nodes_deploying"], true);
    let error = client.describe(&EnvironmentName::newest("x")).await.unwrap_err();
    assert!(matches!(error, KadeployError::Refused(_)), "{error}");
}

#[tokio::test]
async fn what_it_says_is_fresh_and_terminated_is_no_success() {
    for (status, first, second, done) in [
        ("processing", working(), working(), false),
        ("terminated", NodeState::Deployed, failed("BootNewEnvClassical: wait_reboot"), true),
        ("canceled", NodeState::Lost(Remains::Aborted), NodeState::Lost(Remains::Aborted), true),
        ("error", failed("no image"), failed("no image"), true),
    ] {
        let server = Replay::start(move |_| deployment(status)).await;
        let client = connect(&server.site(MORE), &alice()).unwrap();
        let DeployRequest { nodes, environment, .. } = request();
        let seen = client.observe(&id(), &nodes, &environment).await.unwrap();
        assert_eq!((&seen.nodes[&nodes[0]], &seen.nodes[&nodes[1]], seen.done), (&first, &second, done), "{status}");
        assert_eq!(server.lines().contains(&"PUT /deployments/D-1".to_owned()), !done);
    }
}

fn working() -> NodeState {
    NodeState::Working { step: "BootNewEnvClassical: wait_reboot".into() }
}

fn failed(reason: &str) -> NodeState {
    NodeState::Failed { reason: reason.into() }
}

#[tokio::test]
async fn only_what_is_at_work_is_cancelled() {
    for (status, cancelled) in [("processing", true), ("terminated", false)] {
        let server = Replay::start(move |line| match line {
            "DELETE /deployments/D-1" => Recorded::made(202, "", ""),
            _ => deployment(status),
        })
        .await;
        connect(&server.site(MORE), &alice()).unwrap().forget(&id()).await.unwrap();
        assert_eq!(server.lines().contains(&"DELETE /deployments/D-1".to_owned()), cancelled);
    }
    let server = Replay::start(|_| {
        let one = String::from_utf8(deployment("waiting").body).unwrap();
        Recorded::made(200, "", &format!("{{\"total\":1,\"offset\":0,\"items\":[{one}]}}"))
    })
    .await;
    let list = connect(&server.site(MORE), &alice()).unwrap().workflows().await.unwrap();
    assert_eq!(
        (&list[0].id, list[0].done, list[0].environment.to_string().as_str()),
        (&id(), false, "debian12-min@deploy")
    );
    assert_eq!(list[0].nodes, request().nodes);
}

#[tokio::test]
async fn who_may_not_deploy_yet_waits_and_a_wrong_account_does_not() {
    let refused = async |status: u16, text: &'static str| {
        let server = Replay::start(move |_| Recorded::made(status, "", text)).await;
        connect(&server.site(MORE), &alice()).unwrap().deploy(&request()).await.unwrap_err()
    };
    let lacks = "Cannot launch deployment: You do not have sufficient rights to perform the operation on all the nodes";
    for (status, text) in [(403, "You are not authorized to access this resource"), (400, lacks), (500, lacks)] {
        let error = refused(status, text).await;
        assert!(matches!(error, KadeployError::RightsMissing(_)), "{status}: {error:?}");
    }
    let error = refused(401, "Authorization Required").await;
    assert!(matches!(error, KadeployError::Credentials(_)), "{error:?}");
    let error = refused(400, "Cannot launch deployment: Invalid environment specification").await;
    assert!(matches!(error, KadeployError::Refused(_)), "{error:?}");
    let error = refused(400, "<html>a proxy").await;
    assert!(matches!(error, KadeployError::Configuration(_)), "{error:?}");
    let error = refused(500, "Cannot launch deployment: Unable to contact Kadeploy").await;
    assert!(matches!(error, KadeployError::Unreachable(_)), "{error:?}");
}

/// A deployment as its database has it.
struct Made {
    nodes: Vec<String>,
    status: &'static str,
    result: Value,
    output: Option<&'static str>,
    /// How often Kadeploy was asked.
    looks: u32,
    /// Whether Kadeploy knows it no more.
    forgotten: bool,
}

/// The API, with a Kadeploy behind it that has done all steps when it is asked for the second time.
#[derive(Default)]
struct Site {
    rights: BTreeSet<String>,
    broken: BTreeSet<String>,
    made: Vec<Made>,
}

impl Site {
    fn answer(&mut self, seen: &Seen) -> Recorded {
        let (method, path) = seen.line.split_once(' ').unwrap();
        let Some(id) = path.strip_prefix("/deployments/") else {
            return if method == "POST" { self.begin(&seen.body) } else { self.list() };
        };
        let place = id.strip_prefix("D-").and_then(|number| number.parse::<usize>().ok());
        let Some(made) = place.and_then(|place| self.made.get_mut(place)) else {
            return Recorded::made(404, "", &format!("Couldn't find Grid5000::Deployment with ID={id}"));
        };
        match method {
            "GET" => return Recorded::made(200, "", &made.view(id).to_string()),
            "PUT" if made.status == "processing" => made.look(&self.broken),
            "DELETE" if made.status == "processing" => made.status = "canceled",
            _ => {}
        }
        Recorded::made(204, "", "")
    }

    fn begin(&mut self, body: &Value) -> Recorded {
        let refused = |why: &str| Recorded::made(400, "", &format!("Cannot launch deployment: {why}"));
        let nodes: Vec<String> = serde_json::from_value(body["nodes"].clone()).unwrap();
        if nodes.iter().any(|node| !NODES.contains(&node.as_str())) {
            return refused("Invalid node list -- Parameter 'nodes': The node does not exist");
        }
        if body["environment"] != "debian12-min@deploy" {
            return refused("Invalid environment specification -- the environment does not exist");
        }
        if !nodes.iter().all(|node| self.rights.contains(node)) {
            return refused("You do not have sufficient rights to perform the operation on all the nodes");
        }
        let location = format!("Location: /3.0/sites/rennes/deployments/D-{}\n", self.made.len());
        self.made.push(Made {
            nodes,
            status: "processing",
            result: Value::Null,
            output: None,
            looks: 0,
            forgotten: false,
        });
        Recorded::made(201, &location, "")
    }

    fn list(&self) -> Recorded {
        let items: Vec<Value> =
            self.made.iter().enumerate().rev().map(|(place, made)| made.view(&format!("D-{place}"))).collect();
        Recorded::made(200, "", &json!({"total": items.len(), "offset": 0, "items": items}).to_string())
    }
}

impl Made {
    fn look(&mut self, broken: &BTreeSet<String>) {
        if self.forgotten {
            (self.status, self.output) = ("error", Some("The deployment no longer exists on the Kadeploy server"));
            return;
        }
        self.looks += 1;
        let over = self.looks > 1;
        let step = |node: &String| {
            if over && broken.contains(node) {
                json!({
                    "macro": "BootNewEnvClassical", "micro": "wait_reboot", "state": "KO",
                    "error": "BootNewEnvClassical-wait_reboot: Unreachable after the reboot",
                })
            } else if over {
                json!({"macro": null, "micro": null, "state": "OK"})
            } else {
                json!({"macro": "SetDeploymentEnvUntrusted", "micro": "reboot", "state": "OK"})
            }
        };
        self.result = self.nodes.iter().map(|node| (node.clone(), step(node))).collect();
        if over {
            self.status = "terminated";
        }
    }

    fn view(&self, id: &str) -> Value {
        json!({
            "uid": id, "user_uid": "alice", "status": self.status, "environment": "debian12-min@deploy", "version": "1",
            "nodes": self.nodes, "created_at": 1_795_325_920, "result": self.result, "output": self.output,
        })
    }
}

struct Rennes {
    site: Arc<Mutex<Site>>,
    client: Arc<dyn Kadeploy>,
}

impl Rennes {
    async fn start() -> Self {
        let site = Arc::new(Mutex::new(Site::default()));
        let answering = site.clone();
        let server = Replay::reading(move |seen: &Seen| answering.lock().unwrap().answer(seen)).await;
        Self { site, client: connect(&server.site(MORE), &alice()).unwrap() }
    }

    fn request(&self) -> DeployRequest {
        DeployRequest { nodes: self.nodes(), ..request() }
    }

    async fn grant_both(&self) {
        for node in self.nodes() {
            self.use_power(Power::Grant(&node)).await;
        }
    }
}

#[async_trait]
impl World for Rennes {
    fn server(&self) -> &dyn Kadeploy {
        self.client.as_ref()
    }
    fn nodes(&self) -> Vec<NodeName> {
        NODES.map(NodeName::from).into()
    }
    fn environment(&self) -> EnvironmentName {
        EnvironmentName { user: Some("deploy".into()), ..EnvironmentName::newest("debian12-min") }
    }
    async fn pass(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    async fn use_power(&self, power: Power<'_>) -> bool {
        let mut site = self.site.lock().unwrap();
        match power {
            Power::Grant(node) => {
                site.rights.insert(node.0.clone());
            }
            Power::Revoke(node) => {
                site.rights.remove(&node.0);
                for made in site.made.iter_mut().filter(|made| made.nodes.contains(&node.0)) {
                    made.forgotten = true;
                }
            }
            Power::Break(node, true) => {
                site.broken.insert(node.0.clone());
            }
            Power::Break(node, false) => {
                site.broken.remove(&node.0);
            }
            Power::Spoil(_) | Power::Restart => return false,
        }
        true
    }
}

/// The others need descriptions of environments, or a server that forgets.
#[tokio::test]
async fn the_parts_of_the_contract_that_it_can_keep_hold() {
    let world = Rennes::start().await;
    contract::wrong_requests_are_refused(&world).await;
    contract::a_deployment_waits_for_its_rights(&world).await;
    world.grant_both().await;
    contract::a_cancelled_deployment_leaves_its_nodes_aborted(&world).await;
    contract::a_node_fails_and_the_other_does_not(&world).await;
}

#[tokio::test]
async fn rights_that_come_late_or_go_in_the_middle_are_nobodys_failure() {
    let world = Rennes::start().await;
    let DeployRequest { nodes, environment, .. } = world.request();
    let error = world.client.deploy(&world.request()).await.unwrap_err();
    assert!(matches!(error, KadeployError::RightsMissing(_)), "{error:?}");
    world.grant_both().await;
    let id = world.client.deploy(&world.request()).await.unwrap();
    let seen = world.client.observe(&id, &nodes, &environment).await.unwrap();
    assert!(!seen.done && seen.nodes.values().all(|state| matches!(state, NodeState::Working { .. })), "{seen:?}");
    // found again by who does not know its id, the newest first
    let list = world.client.workflows().await.unwrap();
    let newest = &list[0];
    assert_eq!((&newest.id, &newest.nodes, newest.environment.version, newest.done), (&id, &nodes, Some(1), false));
    world.use_power(Power::Revoke(&nodes[0])).await;
    let seen = world.client.observe(&id, &nodes, &environment).await.unwrap();
    let lost = |state: &NodeState| matches!(state, NodeState::Lost(Remains::Other(_)));
    assert!(seen.done && seen.nodes.values().all(lost), "{seen:?}");
    let error = world.client.deploy(&world.request()).await.unwrap_err();
    assert!(matches!(error, KadeployError::RightsMissing(_)), "{error:?}");
}

#[tokio::test]
async fn why_a_node_failed_is_told_and_the_other_one_is_deployed() {
    let world = Rennes::start().await;
    world.grant_both().await;
    let DeployRequest { nodes, environment, .. } = world.request();
    world.use_power(Power::Break(&nodes[1], true)).await;
    let id = world.client.deploy(&world.request()).await.unwrap();
    world.client.observe(&id, &nodes, &environment).await.unwrap();
    let seen = world.client.observe(&id, &nodes, &environment).await.unwrap();
    let failed = failed("BootNewEnvClassical-wait_reboot: Unreachable after the reboot");
    assert_eq!((&seen.nodes[&nodes[0]], &seen.nodes[&nodes[1]], seen.done), (&NodeState::Deployed, &failed, true));
}

#[tokio::test]
async fn a_deployment_that_the_api_does_not_know_is_lost() {
    let world = Rennes::start().await;
    world.grant_both().await;
    let DeployRequest { nodes, environment, .. } = world.request();
    let unknown = WorkflowId("D-36de396c".into());
    let seen = world.client.observe(&unknown, &nodes, &environment).await.unwrap();
    let lost = |state: &NodeState| matches!(state, NodeState::Lost(Remains::Other(_)));
    assert!(seen.done && seen.nodes.values().all(lost), "{seen:?}");
    world.client.forget(&unknown).await.unwrap();
    // and nothing stands against taking its nodes over
    world.client.deploy(&DeployRequest { takes_over: Some(unknown), ..world.request() }).await.unwrap();
}
