//! What a plan is made of. Pure.

/// A node that may hold bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Node {
    /// Bytes on it that are nowhere else; those on their way out are among them until they have come.
    pub load: u64,
    /// Bytes of others that it has room for, besides those on their way in.
    pub room: u64,
    /// Whether it may take bytes of others: it answers, and is not among those that are taken away first.
    pub receives: bool,
    /// Whether it answers. What is on one that does not cannot be moved.
    pub answers: bool,
    /// Bytes a second that its link takes out.
    pub up: f64,
    /// Bytes a second that its link takes in.
    pub down: f64,
}

/// Where everything goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repository {
    /// Bytes a second that it takes in.
    pub rate: f64,
    /// So many may send to it at a time, and at least one.
    pub senders: usize,
    /// So many more may for a moment, to see whether that brings more.
    pub tried: usize,
}

/// Where bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// To the repository.
    Repository,
    /// To the node of this number.
    Node(usize),
}

/// Bytes on their way, or to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The node that sends.
    pub from: usize,
    /// Who receives.
    pub to: Place,
    /// How many bytes are left of it.
    pub bytes: u64,
}

/// What is there now.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// All nodes, those that are free among them.
    pub nodes: &'a [Node],
    /// The repository.
    pub repository: Repository,
    /// What is under way.
    pub moves: &'a [Move],
    /// Bytes are moved in multiples of this, but for the last of a node.
    pub chunk: u64,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// This share of the nodes free as soon as possible, then the others.
    Target {
        /// From 0 to 1.
        share: f64,
    },
    /// The sum of the times that nodes are held as small as possible.
    NodeSeconds,
    /// As many nodes as possible free in this time.
    Deadline {
        /// Seconds from the beginning.
        within: f64,
    },
    /// As Kget+ was published.
    Rounds,
}

/// Bytes of so many seconds.
const TRIED: f64 = 0.5;

/// So many nodes are a share of all.
pub(super) fn share_of(nodes: usize, share: f64) -> usize {
    let whole = (nodes as f64 * share.clamp(0.0, 1.0) - 1e-9).ceil();
    // at most the number of nodes, which is one
    whole as usize
}

/// What moves at each node.
pub(super) struct Busy {
    /// Bytes that each node is sending.
    pub(super) out: Vec<u64>,
    /// Bytes that each node is receiving.
    pub(super) into: Vec<u64>,
    /// Senders to the repository.
    pub(super) feeding: usize,
}

impl View<'_> {
    pub(super) fn busy(&self) -> Busy {
        let mut busy = Busy { out: vec![0; self.nodes.len()], into: vec![0; self.nodes.len()], feeding: 0 };
        for going in self.moves {
            busy.out[going.from] += going.bytes.max(1);
            match going.to {
                Place::Repository => busy.feeding += 1,
                Place::Node(node) => busy.into[node] += going.bytes.max(1),
            }
        }
        busy
    }

    /// Nodes that answer.
    pub(super) fn alive(&self) -> usize {
        self.nodes.iter().filter(|node| node.answers).count()
    }

    /// Nodes that answer, hold nothing and are given nothing.
    pub fn free(&self) -> usize {
        let mut receiving = vec![false; self.nodes.len()];
        for going in self.moves {
            if let Place::Node(node) = going.to {
                receiving[node] = true;
            }
        }
        self.nodes
            .iter()
            .zip(receiving)
            .filter(|(node, receiving)| node.answers && node.load == 0 && !receiving)
            .count()
    }

    /// Places for senders to the repository that are not taken.
    pub(super) fn open(&self, busy: &Busy) -> usize {
        (self.repository.senders.max(1) + self.repository.tried).saturating_sub(busy.feeding)
    }

    /// What one sends that is only tried: little, so that it soon is in nobody's way.
    pub(super) fn tried(&self, most: u64) -> u64 {
        self.whole(self.repository.rate * TRIED, most)
    }

    /// Whole chunks, at least one, or all there is: what is nearest.
    pub(super) fn whole(&self, bytes: f64, most: u64) -> u64 {
        let chunk = self.chunk.max(1);
        let chunks = (bytes / chunk as f64).round().max(1.0);
        // a count of chunks that `most` bounds
        let rounded = (chunks as u64).saturating_mul(chunk);
        let nearer = (most as f64 - bytes).abs() <= (rounded as f64 - bytes).abs() + 0.5;
        if nearer { most } else { rounded.min(most) }
    }
}
