//! Bare nodes: rights to them come and go with slots, a deployment puts a system on them, and that joins the cluster.
//!
//! What ran on a node when its slot ends runs on for as long as it may: nobody ends it there.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{Health, LAUNCH_KEY, World, node};
use crate::{
    driver::{
        cluster::{ClusterView as _, joins::BootstrapToken},
        kadeploy::Environment,
        launcher::LaunchKey,
        site::{SlotFacts, SlotPhase},
    },
    names::{NodeName, lease_directory},
};

/// Steps after which pods of a node that is not known are removed.
const QUARANTINE: u32 = 40;

/// The bare nodes of a world, with the time at which the system on them was deployed, if one is.
#[derive(Default)]
pub(super) struct BareNodes {
    /// Rights as they are, by node.
    rights: BTreeMap<String, bool>,
    systems: BTreeMap<String, Option<Timestamp>>,
    /// Nodes that have not joined the cluster yet.
    starting: BTreeSet<String>,
    /// Rights come this many steps after the slot.
    pub(super) late: u32,
    waited: BTreeMap<String, u32>,
    orphans: BTreeMap<String, u32>,
    joined: u32,
}

impl World {
    /// A world of bare nodes, whose operator dies after this many writes.
    pub(super) fn bare(nodes: usize, writes: usize) -> Self {
        let mut world = Self::with_limit(nodes, writes);
        let description = "name: hypervisor\nversion: 1\nuser: root\nimage: {file: 'http://x/y.tgz', kind: tar}\n";
        world.kadeploy.add_environment(Environment::from_yaml(description).expect("an environment"));
        for name in world.health.keys().cloned().collect::<Vec<_>>() {
            world.cluster.take_node(&name);
            world.health.insert(name, Health::Down);
        }
        world.give_launch_key();
        world.bare_nodes = Some(BareNodes::default());
        world
    }

    /// Whatever is due on bare nodes.
    pub(super) fn boot(&mut self) {
        let Some(mut bare_nodes) = self.bare_nodes.take() else { return };
        let slots = self.site.slots();
        let names: Vec<String> = self.health.keys().cloned().collect();
        for (index, name) in names.iter().enumerate() {
            let of = NodeName(name.clone());
            let held = slots
                .iter()
                .any(|slot| matches!(slot.phase, SlotPhase::Running | SlotPhase::Ending) && slot.nodes.contains(&of));
            let waited = bare_nodes.waited.entry(name.clone()).or_default();
            *waited = if held { waited.saturating_add(1) } else { 0 };
            let rights = held && *waited > bare_nodes.late;
            if bare_nodes.rights.insert(name.clone(), rights) != Some(rights) {
                self.kadeploy.set_rights(&of, rights);
            }
            let system = self.kadeploy.system(&of);
            let before = bare_nodes.systems.insert(name.clone(), system).flatten();
            match system {
                // a deployment begins with a reboot
                None if before.is_some() => {
                    bare_nodes.starting.remove(name);
                    self.set_health(name, Health::Down);
                }
                Some(at) if before != Some(at) => {
                    self.set_health(name, Health::Down);
                    bare_nodes.starting.insert(name.clone());
                }
                // the hold of its slot has put a token there
                Some(_) if bare_nodes.starting.contains(name) && self.lets_in(&of) => {
                    bare_nodes.starting.remove(name);
                    bare_nodes.joined += 1;
                    self.set_health(name, Health::Up);
                    let mut node = node(name, index);
                    node.metadata.uid = Some(format!("{name}, system {}", bare_nodes.joined));
                    self.cluster.put_node(node);
                }
                // its slot is over, and nobody has taken it yet
                Some(_) if !held && self.health.get(name) == Some(&Health::Up) => self.set_health(name, Health::Stray),
                Some(_) | None => {}
            }
        }
        self.collect_pods(&mut bare_nodes);
        self.bare_nodes = Some(bare_nodes);
    }

    /// Whether a node may join with the token that a hold has for it.
    fn lets_in(&self, node: &NodeName) -> bool {
        let key = LaunchKey::read(LAUNCH_KEY).expect("a key");
        let Some(uid) = self.uid() else { return false };
        let of_slot = |slot: &SlotFacts| {
            BootstrapToken::of_node(&lease_directory(&uid, &slot.id), &key.of_slot(&slot.id), &node.0)
        };
        let slots = self.site.slots();
        let mut here = slots.iter().filter(|slot| slot.phase == SlotPhase::Running && slot.nodes.contains(node));
        here.any(|slot| self.cluster.tokens().iter().any(|offer| offer.token == of_slot(slot)))
    }

    /// Kubernetes itself removes pods of nodes that it has not known for a while.
    fn collect_pods(&self, bare_nodes: &mut BareNodes) {
        let known = self.joined();
        for pod in self.cluster.pods() {
            let node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
            let name = pod.metadata.name.unwrap_or_default();
            let missing = bare_nodes.orphans.entry(name.clone()).or_default();
            *missing = if known.contains(&node) { 0 } else { *missing + 1 };
            if *missing > QUARANTINE {
                self.cluster.remove_pod(&name);
            }
        }
    }

    /// Nodes of the cluster.
    pub(super) fn joined(&self) -> Vec<String> {
        self.cluster.nodes().iter().filter_map(|node| node.metadata.name.clone()).collect()
    }
}
