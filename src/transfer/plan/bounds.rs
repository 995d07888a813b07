//! What no plan can beat. Pure.
//!
//! With sizes s, rate b of a node's link and rate B of the repository's:
//! - a node has to send what it holds: it is not free before s / b;
//! - all are free no earlier than B has taken the sum of all sizes;
//! - the bytes of the k nodes that are free at t are in the repository (at most B t) or on the n - k others (each has
//!   taken in at most b t, and no more than it has room for); the k smallest are the best case;
//! - of equal sizes, a node that is still held at t has taken in at most b t and has to send all it holds before it is
//!   free: summed up over the nodes that is n - β (2^i - 1) nodes held over the i-th doubling of time.

/// What is to be emptied.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Bytes on each node.
    pub sizes: Vec<u64>,
    /// Bytes a second of a node's link, each way.
    pub node: f64,
    /// Bytes a second that the repository takes in.
    pub repository: f64,
    /// Bytes of others that a node has room for.
    pub room: u64,
}

impl Input {
    fn total(&self) -> f64 {
        self.sizes.iter().map(|size| *size as f64).sum()
    }

    /// Seconds until all are free.
    pub fn all(&self) -> f64 {
        let largest = self.sizes.iter().max().copied().unwrap_or_default() as f64;
        (self.total() / self.repository).max(largest / self.node)
    }

    /// Seconds until this many are free.
    pub fn free(&self, count: usize) -> f64 {
        let mut sizes = self.sizes.clone();
        sizes.sort_unstable();
        let count = count.min(sizes.len());
        let Some(largest) = count.checked_sub(1).map(|last| sizes[last] as f64) else { return 0.0 };
        let sum: f64 = sizes[..count].iter().map(|size| *size as f64).sum();
        let others = (sizes.len() - count) as f64;
        let room = self.room as f64;
        // while the others still take in, and once they are full
        let open = sum / (self.repository + others * self.node);
        let taken = if open * self.node <= room { open } else { (sum - others * room) / self.repository };
        taken.max(largest / self.node)
    }

    /// Node-seconds: the sum of the times at which nodes are free, of equal sizes; with others a plan may be better.
    pub fn node_seconds(&self) -> f64 {
        let (nodes, ratio) = (self.sizes.len() as f64, self.repository / self.node);
        let unit = self.total() / nodes.max(1.0) / self.node;
        let mut sum = 0.0;
        let mut doubled = 1.0;
        loop {
            let held = nodes - ratio * (doubled - 1.0);
            if held <= 0.0 {
                return sum * unit;
            }
            sum += held;
            doubled *= 2.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn equal(nodes: usize) -> Input {
        Input { sizes: vec![1000; nodes], node: 1000.0, repository: 1000.0, room: u64::MAX }
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 0.05 * expected.max(0.1), "{found} is not {expected}");
    }

    #[test]
    fn the_known_figures_of_64_nodes_come_out() {
        let input = equal(64);
        near(input.all(), 64.0);
        near(input.node_seconds(), 328.0);
        for (count, expected) in [(32, 1.0), (52, 4.0), (56, 6.2), (58, 8.3), (61, 15.3), (0, 0.0)] {
            near(input.free(count), expected);
        }
        near(equal(1000).node_seconds(), 8987.0);
        near(equal(10_000).node_seconds(), 123_631.0);
    }

    #[test]
    fn full_nodes_leave_the_rest_to_the_repository() {
        for (room, expected) in [(1000, 40.0), (2000, 28.0), (4000, 4.0), (8000, 4.0)] {
            near(Input { room, ..equal(64) }.free(52), expected);
        }
    }

    #[test]
    fn no_node_is_free_before_it_has_sent_its_own() {
        let input = Input { sizes: vec![100, 100, 5000], ..equal(1) };
        near(input.free(2), 0.1);
        near(input.free(3), 5.2);
        near(Input { repository: 1e9, ..input }.all(), 5.0);
    }
}
