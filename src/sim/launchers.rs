//! Nodes without a kubelet: a launcher comes and goes with the slot, and what it has started goes with it.

use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::{ByteString, api::core::v1::Secret};

use super::{Health, LAUNCH_KEY, LAUNCH_KEYS, World, nodes::Body};
use crate::{
    driver::{agent::AgentConfig, site::SlotPhase},
    names::NodeName,
};

fn address(index: usize) -> IpAddr {
    let last = u8::try_from(index + 1).expect("a small world");
    Ipv4Addr::new(10, 0, 0, last).into()
}

impl World {
    /// A world of nodes that are none of the cluster's, whose operator dies after this many writes.
    pub(super) fn launched(nodes: usize, writes: usize) -> Self {
        let world = Self::with_limit(nodes, writes);
        for (index, name) in world.health.keys().enumerate() {
            world.cluster.take_node(name);
            world.launchers.name(name, address(index));
        }
        world.give_launch_key();
        world
    }

    /// The operator gets the launch key of the account.
    pub(super) fn give_launch_key(&self) {
        let mut secret = Secret::default();
        (secret.metadata.name, secret.metadata.namespace) = (Some(LAUNCH_KEYS.into()), Some("vmdeploy".into()));
        secret.data = Some([("alice".to_owned(), ByteString(LAUNCH_KEY.into()))].into());
        self.cluster.put_secret(secret);
    }

    fn addresses(&self) -> Vec<(String, IpAddr)> {
        self.health.keys().cloned().enumerate().map(|(index, name)| (name, address(index))).collect()
    }

    pub(super) fn address_of(&self, node: &str) -> Option<IpAddr> {
        self.addresses().into_iter().find(|(name, _)| name == node).map(|(_, address)| address)
    }

    /// Launchers come with slots, begin what they were told to, and end with all of it.
    pub(super) fn start_launched(&mut self) {
        let slots = self.site.slots();
        for (name, address) in self.addresses() {
            let of = NodeName(name.clone());
            let is_held = |phase: &SlotPhase| matches!(phase, SlotPhase::Running | SlotPhase::Ending);
            let held = slots.iter().any(|slot| is_held(&slot.phase) && slot.nodes.contains(&of));
            // whoever is cut off sees the end of the hold late
            if matches!(self.health.get(&name), Some(Health::Up | Health::Deaf)) {
                self.launchers.set_up(address, held);
            }
            let started = self.launchers.with(address, |node| node.agents.clone()).unwrap_or_default();
            for (pod, started) in started {
                let known = self.bodies.iter().any(|body| body.uid == launched(&pod));
                if !known && started.agent.ended.is_none() {
                    let config: AgentConfig = serde_json::from_str(&started.order.files["config.json"])
                        .expect("an agent cannot read its configuration");
                    self.begin(launched(&pod), pod, name.clone(), config);
                }
            }
        }
    }

    /// Whether the launcher that has started an agent still wants it; none of a pod.
    pub(super) fn is_wanted_by_launcher(&self, body: &Body) -> Option<bool> {
        if body.uid != launched(&body.pod) {
            return None;
        }
        let known = self.launchers.with(self.address_of(&body.node)?, |node| node.agents.get(&body.pod).cloned());
        Some(known.flatten().is_some_and(|started| !started.agent.ending))
    }

    /// A launcher sees how an agent has ended.
    pub(super) fn tell_launcher(&self, body: &Body, exit_code: i32) {
        let Some(address) = self.address_of(&body.node) else { return };
        self.launchers.with(address, |node| {
            let Some(started) = node.agents.get_mut(&body.pod) else { return };
            if started.agent.ending {
                node.agents.remove(&body.pod);
            } else {
                started.agent.ended = Some(format!("exit code {exit_code}"));
            }
        });
    }
}

/// By which a process that a launcher has started is told from one of a pod.
fn launched(pod: &str) -> String {
    format!("launched {pod}")
}
