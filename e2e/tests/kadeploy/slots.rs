//! On the test bed only: rights come with a deploy job of OAR and go with it, and what is deployed is a machine of its
//! own, which is in no cluster yet: a job's hold gives it what it needs for that.

use std::{env, process::Command, time::Duration};

use e2e::testbed::number;
use vmdeploy::driver::kadeploy::{
    DeployRequest, EnvironmentToDeploy, KadeployError, NodeState, Observation, Remains, WorkflowId,
    contract::World as _,
};

use crate::world::Server;

/// What a command of the test bed says.
fn testbed(words: &[&str]) -> String {
    let output = Command::new(env::var("TESTBED").unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A job of OAR. It ends with this, and what was deployed in it goes: whatever comes after finds the nodes bare.
struct Slot<'a> {
    id: String,
    user: &'a str,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        // best effort: the test has its verdict, or fails for another reason
        for words in [&["oar", self.user, "oardel", &self.id][..], &["kadeploy-free"]] {
            let _ = Command::new(env::var("TESTBED").unwrap_or_default()).args(words).output();
        }
    }
}

async fn until(server: &Server, what: &str, wanted: impl Fn() -> bool) {
    for _ in 0..240 {
        if wanted() {
            return;
        }
        server.pass().await;
    }
    panic!("not in time: {what}");
}

fn request(server: &Server) -> DeployRequest {
    let environment = EnvironmentToDeploy::Recorded(server.environment());
    DeployRequest { nodes: server.nodes(), environment, key_url: None, takes_over: None }
}

async fn over(server: &Server, id: &WorkflowId) -> Observation {
    let DeployRequest { nodes, environment, .. } = request(server);
    for _ in 0..240 {
        let seen = server.server().observe(id, &nodes, &environment).await.unwrap();
        if seen.done {
            return seen;
        }
        server.pass().await;
    }
    panic!("{id} does not end");
}

#[tokio::test]
async fn a_deploy_job_gives_rights_and_takes_them_with_the_machines() {
    let server = Server::find().await;
    if server.simulator.is_some() || env::var_os("TESTBED").is_none() {
        return;
    }
    // what earlier tests have deployed answers OAR no more
    testbed(&["kadeploy-free"]);
    for node in &server.nodes {
        server.revoke(&server.user, node).await;
    }
    let error = server.server().deploy(&request(&server)).await.unwrap_err();
    assert!(matches!(error, KadeployError::RightsMissing(_)), "{error}");

    let property = format!("network_address in ('{}')", server.nodes.join("','"));
    let command = ["oarsub", "-t", "besteffort", "-t", "deploy", "-l", "nodes=2,walltime=1", "-p", &property];
    let said = testbed(&[&["oar", &server.user], &command[..], &["sleep infinity"]].concat());
    let id = said.lines().find_map(|line| line.strip_prefix("OAR_JOB_ID=")).unwrap().to_owned();
    let slot = Slot { id, user: &server.user };
    let state = || testbed(&["sql", &format!("SELECT state FROM jobs WHERE job_id = {}", slot.id)]);
    until(&server, "the job runs", || state() == "Running").await;

    let id = server.server().deploy(&request(&server)).await.unwrap();
    let seen = over(&server, &id).await;
    assert!(seen.nodes.values().all(|state| *state == NodeState::Deployed), "{seen:?}");
    server.server().forget(&id).await.unwrap();
    for node in &server.nodes {
        let first = testbed(&["node", number(node).unwrap(), "cat", "/proc/1/cmdline"]);
        assert!(first.contains("/sbin/init"), "{first}");
    }
    // no kubelet starts without a token; it would soon
    tokio::time::sleep(Duration::from_secs(5)).await;
    for node in &server.nodes {
        let kubelet = testbed(&["node", number(node).unwrap(), "sh", "-c", "pgrep -c kube || true"]);
        assert_eq!(kubelet, "0", "it joins without a token");
    }

    // preempted in the middle of another deployment
    let id = server.server().deploy(&request(&server)).await.unwrap();
    testbed(&["oar", &server.user, "oardel", &slot.id]);
    let seen = over(&server, &id).await;
    assert!(seen.nodes.values().all(|state| *state == NodeState::Lost(Remains::Aborted)), "{seen:?}");
    let error = server.server().deploy(&request(&server)).await.unwrap_err();
    assert!(matches!(error, KadeployError::RightsMissing(_)), "{error}");
    // what was deployed is gone, and OAR has its nodes again
    until(&server, "OAR's own system is back", || {
        let sql = "SELECT count(*) FROM resources WHERE state <> 'Alive'";
        let first = |node: &String| testbed(&["node", number(node).unwrap(), "cat", "/proc/1/cmdline"]);
        state() == "Error" && testbed(&["sql", sql]) == "0" && server.nodes.iter().all(|n| first(n).contains("sshd"))
    })
    .await;
}
