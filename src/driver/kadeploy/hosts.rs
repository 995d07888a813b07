//! The names that a site and Kubernetes have for the same nodes. Pure.

use std::collections::BTreeMap;

use super::{KadeployError, judge::Hosts, names};
use crate::{config::SiteConfig, names::NodeName};

/// Names of nodes, both ways.
pub(super) struct HostNames {
    by_host: BTreeMap<String, String>,
    by_node: BTreeMap<String, String>,
}

impl HostNames {
    pub(super) fn new(site: &SiteConfig) -> Self {
        let by_node = site.nodes.iter().map(|(host, node)| (node.clone(), host.clone())).collect();
        Self { by_host: site.nodes.clone(), by_node }
    }

    /// What the site calls nodes.
    pub(super) fn of(&self, nodes: &[NodeName]) -> Result<Hosts, KadeployError> {
        let host = |node: &NodeName| {
            let host = self.by_node.get(&node.0).unwrap_or(&node.0).clone();
            names::host(&host).map(|()| (node.clone(), host))
        };
        nodes.iter().map(host).collect()
    }

    /// What Kubernetes calls a host.
    pub(super) fn node(&self, host: &str) -> NodeName {
        NodeName(self.by_host.get(host).map_or(host, String::as_str).to_owned())
    }
}
