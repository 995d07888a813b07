//! Nodes that are deployed before agents are placed there.

use std::collections::BTreeMap;

use rstest::rstest;

use super::life::*;
use crate::{
    api::{
        JobPhase, Reason,
        hypervisor::{Deploy, EnvironmentReference, HypervisorSpec},
        job::{Allocation, Distribution},
        job_status::{DeploymentState, MemberPhase, ReleaseReason},
    },
    controller::job::plan::{DeployOrder, DeploymentSeen, Effect, NodeSeen},
    driver::{
        Fact,
        kadeploy::{EnvironmentName, KadeployError, NodeState, Observation, Remains, Workflow, WorkflowId},
        site::{End, SlotPhase},
    },
    names::NodeName,
};

/// A deployment server: what is asked for works at once, unless a test says otherwise.
#[derive(Clone, Debug, Default)]
pub(super) struct Server {
    /// What the next requests are answered with.
    refuses: Vec<KadeployError>,
    /// What becomes of nodes in the next workflows.
    outcomes: BTreeMap<String, Vec<NodeState>>,
    /// Deployed nodes do not join the cluster.
    pub(super) alone: bool,
    /// Nothing is cancelled.
    pub(super) stubborn: bool,
    begun: u32,
    /// The number that was asked for last, by slot.
    numbers: BTreeMap<String, u32>,
}

impl Life {
    /// What a request for a workflow brings about.
    pub(super) fn deploy(&mut self, order: &DeployOrder) {
        let server = &mut self.server;
        let mut seen = DeploymentSeen::default();
        if server.refuses.is_empty() {
            server.begun += 1;
            let id = WorkflowId(format!("D-{}", server.begun));
            let mut nodes = BTreeMap::new();
            for node in &order.nodes {
                let outcomes = server.outcomes.entry(node.0.clone()).or_default();
                let state = if outcomes.is_empty() { NodeState::Deployed } else { outcomes.remove(0) };
                if state == NodeState::Deployed && !server.alone {
                    let joined = NodeSeen { system: system(&format!("{node} of {id}")), ..super::life::node(9) };
                    self.seen.nodes.insert(node.clone(), joined);
                }
                nodes.insert(node.clone(), state);
            }
            let done = nodes.values().all(|state| !matches!(state, NodeState::Working { .. }));
            seen.observation = Some(Observation { done, nodes });
            seen.reply = Some((self.now, Ok(id)));
        } else {
            seen.reply = Some((self.now, Err(server.refuses.remove(0))));
        }
        self.server.numbers.insert(order.slot.0.clone(), order.number);
        self.seen.deployments.insert(order.slot.0.clone(), seen);
    }

    /// What is known is known of a number: nothing of another one.
    pub(super) fn forget_other_workflows(&mut self) {
        for slot in self.status().slots {
            let number = slot.deployment.and_then(|deployment| deployment.workflow).map(|workflow| workflow.number);
            if number.is_some() && self.server.numbers.get(&slot.id).is_some_and(|known| Some(*known) != number) {
                self.server.numbers.remove(&slot.id);
                self.seen.deployments.remove(&slot.id);
            }
        }
    }
}

pub(super) fn deployed(members: u32, how: Deploy) -> Life {
    let mut life = life(members);
    let environment = EnvironmentReference { name: "hypervisor".into(), user: Some("root".into()), version: None };
    life.job.spec.hypervisor = Some(HypervisorSpec { deploy: how, environment: Some(environment) });
    life.seen.environment = Fact::Known(Ok(()));
    life.seen.nodes.clear();
    life
}

fn orders(life: &Life) -> Vec<(u32, Vec<String>)> {
    let order = |effect: &&Effect| match effect {
        Effect::Deploy(order) => Some((order.number, order.nodes.iter().map(ToString::to_string).collect())),
        _ => None,
    };
    life.effects("Deploy").iter().filter_map(order).collect()
}

fn states(life: &Life) -> Vec<DeploymentState> {
    let slots = life.status().slots;
    slots.iter().filter_map(|slot| slot.deployment.clone()).flat_map(|it| it.nodes).map(|node| node.state).collect()
}

fn fails(reason: &str) -> NodeState {
    NodeState::Failed { reason: reason.into() }
}

fn position(life: &Life, name: &str) -> usize {
    life.done.iter().position(|effect| effect.name() == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn nodes_are_deployed_before_agents_are_placed() {
    let mut life = deployed(2, Deploy::IfMissing);
    life.server.alone = true;
    life.run(10);
    let Some(Effect::SubmitSlots { request, .. }) = life.effects("SubmitSlots").first().copied().cloned() else {
        panic!("{:?}", life.whys)
    };
    assert!(request.deploy);
    assert_eq!(orders(&life), [(1, vec!["node-1".into(), "node-2".into()])]);
    assert_eq!(states(&life), [DeploymentState::Joining; 2]);
    assert_eq!(life.phase(), JobPhase::Deploying);
    let said = life.message("Provisioned");
    assert!(said.contains("DeployingHypervisor") && said.contains("node-2 deployed, to join the cluster"), "{said}");
    assert!(life.effects("CreateAgent").is_empty());
    assert_eq!(life.effects("ForgetWorkflow").len(), 1, "a workflow that is over is forgotten");
    for n in 1..=2 {
        life.seen.nodes.insert(NodeName(format!("node-{n}")), node(n));
    }
    life.run(5);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
    assert_eq!((orders(&life).len(), states(&life)), (1, vec![DeploymentState::Ready; 2]));
    assert_eq!(life.told(Reason::HypervisorReady).len(), 1);
}

#[rstest]
#[case::what_is_there_is_used(Deploy::IfMissing, 0)]
#[case::it_is_put_there_whatever_is(Deploy::Always, 1)]
#[case::the_sites_own_is_used(Deploy::Never, 0)]
fn a_ready_node_is_deployed_if_the_job_says_so(#[case] how: Deploy, #[case] times: usize) {
    let mut life = deployed(2, how);
    if how == Deploy::Never {
        life.seen.environment = Fact::Absent;
    }
    for n in 1..=2 {
        life.seen.nodes.insert(NodeName(format!("node-{n}")), node(n));
    }
    life.run(8);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
    assert_eq!(orders(&life).len(), times);
    // and not again for another incarnation on the same slot
    let pod = life.pod_of(0);
    life.end_pod(&pod);
    life.run(60);
    assert_eq!((life.phase(), life.status().incarnation), (JobPhase::Running, 2), "{:?}", life.whys);
    assert_eq!(orders(&life).len(), times);
}

#[test]
fn a12_a_system_that_was_on_a_node_before_is_no_node_of_the_cluster_any_more() {
    let mut life = deployed(1, Deploy::Always);
    life.server.alone = true;
    life.seen.nodes.insert(NodeName("node-1".into()), node(1));
    life.server.outcomes.insert("node-1".into(), vec![NodeState::Deployed]);
    life.run(20);
    assert!(life.effects("CreateAgent").is_empty());
    assert!(life.seen.nodes.is_empty(), "its object was removed");
    // an object with the old uid is that of the old system, whatever it says
    life.seen.nodes.insert(NodeName("node-1".into()), node(1));
    life.settle();
    assert!(life.effects("CreateAgent").is_empty());
    life.seen.nodes.insert(NodeName("node-1".into()), NodeSeen { system: system("new"), ready: false, ..node(1) });
    life.run(3);
    assert!(life.effects("CreateAgent").is_empty(), "it is not ready");
    life.seen.nodes.insert(NodeName("node-1".into()), NodeSeen { system: system("new"), ..node(1) });
    life.run(3);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
}

#[test]
fn only_nodes_that_failed_are_asked_for_again() {
    let mut life = deployed(3, Deploy::IfMissing);
    life.server.outcomes.insert("node-2".into(), vec![fails("Unreachable after the reboot")]);
    life.run(15);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
    let all: Vec<String> = (1..=3).map(|n| format!("node-{n}")).collect();
    assert_eq!(orders(&life), [(1, all), (2, vec!["node-2".into()])]);
}

#[test]
fn a_node_that_fails_again_and_again_costs_its_slot_and_is_left_out_of_the_next_request() {
    let mut life = deployed(2, Deploy::IfMissing);
    life.server.outcomes.insert("node-2".into(), vec![fails("no room"); 3]);
    life.run(20);
    assert_eq!(orders(&life).iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3]);
    let retry = life.status().retry.unwrap();
    assert_eq!(retry.reason, Reason::DeploymentFailed);
    assert!(retry.message.contains("hypervisor@root") && retry.message.contains("node-2: no room"), "{retry:?}");
    assert_eq!(life.effects("ReleaseSlot").len(), 1);
    life.run(30);
    let requests = life.effects("SubmitSlots");
    let Some(Effect::SubmitSlots { request, .. }) = requests.get(1) else { panic!("{:?}", life.whys) };
    assert_eq!(request.avoid, [NodeName("node-2".into())]);
    assert_eq!(life.status().kills.failed, 0, "it is no failure of the job's own");
}

#[test]
fn rights_that_come_late_are_waited_for_and_asked_under_the_same_number() {
    let mut life = deployed(1, Deploy::IfMissing);
    life.server.refuses = vec![KadeployError::RightsMissing("no rights on node-1".into()); 4];
    life.run(12);
    let writes = life.writes;
    assert!(life.message("Provisioned").contains("no rights on node-1"), "{}", life.message("Provisioned"));
    life.run(6);
    assert_eq!(life.writes, writes, "waiting is no news");
    life.run(10);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
    let numbers: Vec<u32> = orders(&life).iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [1; 5]);
}

#[test]
fn rights_that_never_come_cost_the_slot() {
    let mut life = deployed(1, Deploy::IfMissing);
    life.server.refuses = vec![KadeployError::RightsMissing("no rights on node-1".into()); 100];
    life.run(310);
    let retry = life.status().retry.unwrap();
    assert_eq!(retry.reason, Reason::RightsMissing, "{retry:?}");
    assert_eq!(life.effects("ReleaseSlot").len(), 1);
    assert!(life.status().slots.is_empty(), "a workflow that was refused is not waited for");
}

/// The pass that wrote a workflow's number dies before it asks for it, or before it hears the answer.
#[rstest]
#[case::it_has_begun(true, 0)]
#[case::it_has_not(false, 1)]
fn a10_a_workflow_whose_answer_was_lost_is_looked_for_before_there_is_another(
    #[case] began: bool,
    #[case] more: usize,
) {
    let mut life = deployed(1, Deploy::IfMissing);
    while life.plan().effects.iter().all(|effect| effect.name() != "Deploy") {
        life.pass();
        life.advance(1);
    }
    let plan = life.plan();
    life.write_only(&plan);
    life.run(4);
    assert!(orders(&life).is_empty(), "nothing is asked for as long as the server's list is not known");
    let workflow = |id: &str, nodes: &[&str], done| Workflow {
        id: WorkflowId(id.into()),
        nodes: nodes.iter().map(|node| NodeName((*node).into())).collect(),
        environment: EnvironmentName::newest("hypervisor"),
        done,
        started: Some(at(START - 3600)),
    };
    let mut listed = vec![workflow("D-old", &["node-1"], true), workflow("D-other", &["node-7"], false)];
    listed.extend(began.then(|| workflow("D-ours", &["node-1"], false)));
    let slot = life.status().slots[0].id.clone();
    for _ in 0..12 {
        if life.seen.deployments.get(&slot).is_none_or(|seen| seen.reply.is_none()) {
            let seen = DeploymentSeen { workflows: Some((life.now, listed.clone())), ..DeploymentSeen::default() };
            life.seen.deployments.insert(slot.clone(), seen);
        }
        life.run(1);
    }
    assert_eq!(orders(&life).len(), more);
    if began {
        let known = life.status().slots[0].deployment.clone().unwrap().workflow.unwrap();
        assert_eq!((known.number, known.id.as_deref()), (1, Some("D-ours")));
    } else {
        assert_eq!(orders(&life)[0].0, 1);
        assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
    }
}

#[test]
fn what_a_server_that_was_restarted_has_forgotten_is_taken_over() {
    let mut life = deployed(2, Deploy::IfMissing);
    life.server.outcomes.insert("node-1".into(), vec![NodeState::Lost(Remains::Stale)]);
    life.server.outcomes.insert("node-2".into(), vec![NodeState::Lost(Remains::Deployed)]);
    life.seen.nodes.insert(NodeName("node-2".into()), node(2));
    life.server.alone = true;
    life.run(2);
    life.server.alone = false;
    life.run(10);
    let Some(Effect::Deploy(order)) = life.effects("Deploy").last().copied().cloned() else {
        panic!("{:?}", life.whys)
    };
    assert_eq!((order.takes_over, order.nodes), (Some(WorkflowId("D-1".into())), vec![NodeName("node-1".into())]));
}

#[test]
fn rights_taken_away_in_the_middle_are_the_sites_to_explain() {
    let mut life = deployed(1, Deploy::IfMissing);
    life.server.outcomes.insert("node-1".into(), vec![NodeState::Lost(Remains::Aborted)]);
    life.run(3);
    let first = life.status().slots[0].id.clone();
    life.server.refuses = vec![KadeployError::RightsMissing("none".into()); 3];
    life.run(3);
    assert_eq!((life.phase(), life.status().attempt), (JobPhase::Deploying, 1));
    life.end_slot(&first, End::Preempted);
    life.server.refuses.clear();
    life.run(10);
    assert_eq!((life.phase(), life.status().attempt), (JobPhase::Running, 2), "{:?}", life.whys);
    assert_eq!(life.status().kills.preempted, 1);
    let numbers: Vec<u32> = orders(&life).iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers.last(), Some(&1), "another slot begins anew");
}

#[test]
fn a12_the_end_of_a_slot_proves_no_death_on_deployed_nodes_which_leave_the_cluster_after_it() {
    let mut life = deployed(1, Deploy::IfMissing);
    life.run(8);
    assert_eq!(life.phase(), JobPhase::Running);
    let slot = life.status().slots[0].id.clone();
    life.prompt = false;
    life.slot(&slot).phase = SlotPhase::Ended(End::Preempted);
    life.silence(0);
    life.run(100);
    assert_ne!(life.status().members[0].phase, MemberPhase::Dead, "only its silence tells, and not yet");
    assert!(life.effects("RemoveNode").is_empty());
    assert!(life.status().slots.iter().any(|held| held.id == slot));
    life.run(40);
    assert_eq!(life.status().members[0].phase, MemberPhase::Dead);
    assert!(life.status().members[0].agent.clone().unwrap().unproven);
    assert!(life.seen.nodes.is_empty(), "the node has left the cluster");
    assert!(life.status().slots.iter().all(|held| held.id != slot));
}

#[test]
fn a_node_that_another_has_deployed_meanwhile_stays() {
    let mut life = deployed(1, Deploy::IfMissing);
    life.run(8);
    life.seen.nodes.insert(NodeName("node-1".into()), NodeSeen { system: system("another's"), ..node(1) });
    life.finish(0);
    life.run(60);
    assert_eq!(life.phase(), JobPhase::Succeeded, "{:?}", life.whys);
    assert!(life.effects("RemoveNode").is_empty() && life.status().slots.is_empty());
    assert_eq!(life.seen.nodes.len(), 1);
}

#[test]
fn a_job_that_is_deleted_cancels_its_workflow() {
    let mut life = deployed(1, Deploy::IfMissing);
    life.server.outcomes.insert("node-1".into(), vec![NodeState::Working { step: "BroadcastEnv: tree".into() }]);
    life.run(1);
    life.run(5);
    assert_eq!(states(&life), [DeploymentState::Deploying]);
    assert!(life.message("Provisioned").contains("node-1 in BroadcastEnv"), "{}", life.message("Provisioned"));
    life.job.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(life.now));
    life.run(30);
    assert!(life.gone, "{:?}", life.whys);
    assert!(position(&life, "ForgetWorkflow") <= position(&life, "ReleaseSlot"));
}

#[test]
fn an_environment_that_does_not_join_is_given_up_in_words() {
    let mut life = deployed(1, Deploy::IfMissing);
    life.server.alone = true;
    life.run(320);
    let retry = life.status().retry.unwrap();
    assert!(retry.message.contains("kubelet that joins it"), "{retry:?}");
    let release = life.status().slots.first().and_then(|slot| slot.release.clone());
    assert!(release.is_none_or(|release| release.reason == ReleaseReason::BadNode));
}

#[test]
fn nodes_of_one_slot_are_deployed_while_others_are_waited_for() {
    let mut life = deployed(2, Deploy::Always);
    life.job.spec.slots.allocation = Allocation::PerMember;
    life.prompt = false;
    life.run(3);
    let ids: Vec<String> = life.status().slots.iter().map(|slot| slot.id.clone()).collect();
    life.start_slot(&ids[0]);
    life.run(5);
    assert_eq!((life.phase(), orders(&life).len()), (JobPhase::Queued, 1), "{:?}", life.whys);
    assert_eq!(states(&life), [DeploymentState::Ready]);
    life.start_slot(&ids[1]);
    life.run(5);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
    assert_eq!(orders(&life).iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 1]);
    // one of them is taken: only that one's successor is deployed
    life.end_slot(&ids[1], End::Preempted);
    life.prompt = true;
    life.run(30);
    assert_eq!((life.phase(), orders(&life).len()), (JobPhase::Running, 3), "{:?}", life.whys);
}

#[test]
fn a_slot_that_the_site_has_forgotten_takes_its_nodes_along() {
    let mut life = deployed(1, Deploy::Always);
    life.run(8);
    life.finish(0);
    let slot = life.status().slots[0].id.clone();
    while life.status().slots.iter().all(|held| held.release.is_none()) {
        life.pass();
    }
    life.slots().clear();
    life.run(70);
    assert!(life.status().slots.iter().all(|held| held.id != slot), "{:?}", life.status().slots);
    assert!(life.seen.nodes.is_empty(), "the node has left the cluster");
}

#[test]
fn c_shared_images_are_refused_where_there_is_no_claim_of_them() {
    let mut life = life(1);
    life.job.spec.distribution = Distribution::Shared;
    life.run(3);
    assert!(life.message("Ready").contains("agents.sharedImages.claim"), "{}", life.message("Ready"));
    assert!(life.effects("SubmitSlots").is_empty());
    life.seen.setup.shared_images = true;
    life.run(20);
    assert_eq!(life.phase(), JobPhase::Running);
}

#[test]
fn holds_are_asked_to_put_images_only_where_they_can() {
    let asked = |life: &mut Life, distribution: Distribution, allocation: Allocation| {
        life.job.spec.distribution = distribution;
        life.job.spec.slots.allocation = allocation;
        life.run(20);
        let Some(Effect::SubmitSlots { request, .. }) = life.effects("SubmitSlots").into_iter().next() else {
            panic!("nothing is asked for")
        };
        request.puts_images
    };
    assert!(asked(&mut life(2), Distribution::TakTuk, Allocation::Gang));
    assert!(!asked(&mut life(2), Distribution::Broadcast, Allocation::Gang));
    assert!(!asked(&mut life(2), Distribution::TakTuk, Allocation::PerMember), "each is of one node");
    assert!(!asked(&mut life(1), Distribution::TakTuk, Allocation::Gang));
    assert!(!asked(&mut deployed(2, Deploy::Always), Distribution::TakTuk, Allocation::Gang));
}

#[test]
fn c_mistakes_are_said_before_any_slot_is_asked_for() {
    let mut life = deployed(1, Deploy::Always);
    let missing = (Reason::EnvironmentNotFound, "site rennes: no such environment: hypervisor@root".to_owned());
    life.seen.environment = Fact::Known(Err(missing));
    life.run(5);
    assert_eq!(life.phase(), JobPhase::Pending);
    assert!(life.message("Ready").contains("no such environment"), "{}", life.message("Ready"));
    life.seen.site.as_mut().unwrap().deployment_wait = None;
    life.run(20);
    assert!(life.message("Ready").contains("sites.rennes.kadeploy"), "{}", life.message("Ready"));
    assert!(life.effects("SubmitSlots").is_empty());
}

/// The same, whether it is found out before or in the middle.
#[rstest]
#[case::of_the_request(false)]
#[case::of_the_workflow(true)]
fn what_a_server_refuses_for_good_costs_the_slot_and_is_said(#[case] begun: bool) {
    let mut life = deployed(1, Deploy::IfMissing);
    let error = KadeployError::Refused("Checksum of the file does not match".into());
    if begun {
        life.server.outcomes.insert("node-1".into(), vec![NodeState::Broke(error)]);
    } else {
        life.server.refuses = vec![error];
    }
    life.run(4);
    let said = "the deployment server refused the request: Checksum of the file does not match";
    assert_eq!(life.told(Reason::DeploymentRefused), [said]);
    assert_eq!(life.message("Stalled"), format!("True DeploymentRefused: {said}"), "a person must act");
    assert!(life.status().unfit.is_empty(), "that is no fault of the node");
    assert_eq!(life.effects("ForgetWorkflow").len(), usize::from(begun));
    let counted = life.status().slots.into_iter().filter_map(|slot| slot.deployment).flat_map(|it| it.nodes);
    assert_eq!(counted.map(|node| node.failures).sum::<u32>(), 0);
    life.run(60);
    let avoids = |effect: &&Effect| matches!(effect, Effect::SubmitSlots { request, .. } if !request.avoid.is_empty());
    assert!(!life.effects("SubmitSlots").iter().any(avoids));
    assert_eq!((life.phase(), life.message("Stalled").as_str()), (JobPhase::Running, ""), "{:?}", life.whys);
}

#[test]
fn a_ready_node_of_anothers_deployment_is_not_taken_for_the_clusters_own() {
    let mut life = deployed(1, Deploy::IfMissing);
    life.seen.nodes.insert(NodeName("node-1".into()), NodeSeen { of_another_slot: true, ..node(1) });
    life.run(8);
    assert_eq!(orders(&life).len(), 1, "{:?}", life.whys);
    assert_eq!(life.phase(), JobPhase::Running);
}

#[test]
fn a_ready_node_that_the_hold_does_not_reach_is_deployed_after_all() {
    let mut life = deployed(1, Deploy::IfMissing);
    life.seen.nodes.insert(NodeName("node-1".into()), node(1));
    while life.effects("CreateAgent").is_empty() {
        life.pass();
    }
    life.agent(0).lease = crate::driver::agent::LeaseState::Waiting;
    life.agent(0).vm = crate::driver::agent::VmState::None;
    life.run(320);
    assert_eq!(orders(&life).len(), 1, "{:?}", life.whys);
    assert_eq!(life.phase(), JobPhase::Running, "{:?}", life.whys);
    assert_eq!(life.status().slots.len(), 1, "the slot is kept");
    assert!(life.effects("ReleaseSlot").is_empty());
}

#[test]
fn one_users_broken_environment_says_nothing_of_nodes_to_others() {
    let mut life = deployed(1, Deploy::IfMissing);
    let since = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(life.now);
    let unfit = |node: &str| crate::api::job_status::UnfitNode {
        node: node.into(),
        since: since.clone(),
        undeployed: true,
        kvm: false,
        times: 3,
        flags: Vec::new(),
    };
    life.seen.unfit = vec![unfit("node-1"), unfit("node-2")];
    life.run(5);
    let requests = life.effects("SubmitSlots");
    let Some(Effect::SubmitSlots { request, .. }) = requests.first() else { panic!("{:?}", life.whys) };
    assert!(request.avoid.is_empty());
}

/// The slot is taken while the server has not answered yet.
#[test]
fn a_workflow_that_begins_after_its_slot_was_given_up_is_cancelled() {
    let mut life = deployed(1, Deploy::IfMissing);
    life.server.outcomes.insert("node-1".into(), vec![NodeState::Working { step: "begun".into() }]);
    while life.plan().effects.iter().all(|effect| effect.name() != "Deploy") {
        life.pass();
        life.advance(1);
    }
    let plan = life.plan();
    life.write_only(&plan);
    let slot = life.status().slots[0].id.clone();
    life.seen.deployments.insert(slot.clone(), DeploymentSeen { asking: true, ..DeploymentSeen::default() });
    life.run(3);
    life.job.spec.suspend = true;
    life.run(2);
    assert!(life.effects("ForgetWorkflow").is_empty());
    let reply = Some((life.now, Ok(WorkflowId("D-late".into()))));
    life.seen.deployments.insert(slot, DeploymentSeen { reply, ..DeploymentSeen::default() });
    life.run(10);
    let Some(Effect::ForgetWorkflow { id, .. }) = life.effects("ForgetWorkflow").first().copied().cloned() else {
        panic!("{:?}", life.whys)
    };
    assert_eq!(id, WorkflowId("D-late".into()));
    assert_eq!(life.phase(), JobPhase::Suspended);
    assert!(life.status().slots.is_empty());
}

#[test]
fn a_slot_whose_workflow_cannot_be_cancelled_goes_all_the_same() {
    let mut life = deployed(1, Deploy::IfMissing);
    life.server.outcomes.insert("node-1".into(), vec![NodeState::Working { step: "begun".into() }]);
    life.run(5);
    let slot = life.status().slots[0].id.clone();
    life.end_slot(&slot, End::Preempted);
    life.prompt = false;
    life.server.stubborn = true;
    life.run(115);
    assert!(life.status().slots.iter().any(|held| held.id == slot));
    assert!(life.effects("ForgetWorkflow").len() > 10);
    life.run(10);
    assert!(life.status().slots.iter().all(|held| held.id != slot));
}

#[test]
fn a_node_that_another_operation_has_is_asked_for_less_and_less_often() {
    let mut life = deployed(1, Deploy::IfMissing);
    life.server.outcomes.insert("node-1".into(), vec![NodeState::Discarded; 100]);
    run_with_an_empty_list(&mut life, 600);
    let begun = orders(&life).len();
    assert!((5..15).contains(&begun), "{begun} requests in ten minutes");
    assert_eq!(life.phase(), JobPhase::Deploying, "{:?}", life.whys);
}

/// No workflow is in the list of the server; nothing else is known of a number that was not asked for yet.
fn run_with_an_empty_list(life: &mut Life, seconds: u32) {
    for _ in 0..seconds {
        life.run(1);
        for slot in life.status().slots {
            if slot.deployment.and_then(|it| it.workflow).is_some_and(|workflow| workflow.id.is_none()) {
                let seen = DeploymentSeen { workflows: Some((life.now, Vec::new())), ..DeploymentSeen::default() };
                life.seen.deployments.insert(slot.id, seen);
            }
        }
    }
}

#[test]
fn a_server_in_trouble_is_asked_again_later_and_no_node_pays_for_it() {
    let mut life = deployed(1, Deploy::IfMissing);
    let trouble = NodeState::Broke(KadeployError::Unreachable("Database issue".into()));
    life.server.outcomes.insert("node-1".into(), vec![trouble; 4]);
    run_with_an_empty_list(&mut life, 60);
    let said = life.message("Provisioned");
    assert!(said.contains("waits: the deployment server is in trouble: Database issue"), "{said}");
    let deployment = life.status().slots[0].deployment.clone().unwrap();
    assert_eq!((deployment.nodes[0].failures, deployment.fruitless > 1), (0, true), "{deployment:?}");
    run_with_an_empty_list(&mut life, 140);
    assert_eq!((life.phase(), orders(&life).len()), (JobPhase::Running, 5), "{:?}", life.whys);
    assert!(life.effects("ReleaseSlot").is_empty() && life.status().unfit.is_empty());
}
