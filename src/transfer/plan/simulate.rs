//! A plan on ideal links: what it would take, and how well it uses them. Pure.
//!
//! Each move has the full rate of the narrower of its links, and the repository's is shared evenly. So a run says what
//! the rules are worth, apart from whoever executes them.

use std::collections::VecDeque;

use super::{Move, Node, Place, Planner, Policy, Repository, View, bounds::Input};

/// Moves that end within this many seconds of each other end together.
const TOGETHER: f64 = 1e-9;

/// How the nodes are, besides their sizes and links.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// Senders that the repository admits.
    pub senders: usize,
    /// Bytes of a chunk.
    pub chunk: u64,
    /// Nodes that die, and when, in seconds. What they held of others is sent again from where it came from.
    pub deaths: Vec<(f64, usize)>,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// When each node was free for good, in seconds. None: it died, or what it held could not be moved.
    pub free: Vec<Option<f64>>,
    /// Seconds in which the repository's link was not full although bytes were left.
    pub idle: f64,
    /// Bytes that the repository has got, those that it got again after a death among them.
    pub stored: u64,
    /// Bytes that were moved, counted for each link they crossed.
    pub moved: u64,
    /// Bytes that died with their node and were nowhere else.
    pub lost: u64,
    /// Moves that were started.
    pub moves: usize,
    /// What they were, and when they were started, in seconds.
    pub schedule: Vec<(f64, Move)>,
    /// When the last byte was in the repository, in seconds.
    pub end: f64,
}

impl Run {
    /// When this many nodes were free.
    pub fn free(&self, count: usize) -> Option<f64> {
        let mut times: Vec<f64> = self.free.iter().flatten().copied().collect();
        times.sort_by(f64::total_cmp);
        count.checked_sub(1).map_or(Some(0.0), |last| times.get(last).copied())
    }

    /// The sum of the times at which nodes were free.
    pub fn node_seconds(&self) -> f64 {
        self.free.iter().flatten().sum()
    }
}

struct Active {
    going: Move,
    left: f64,
    rate: f64,
}

struct World<'a> {
    input: &'a Input,
    nodes: Vec<Node>,
    /// Bytes of whom each node holds, in the order in which they go.
    holds: Vec<VecDeque<(usize, u64)>>,
    active: Vec<Active>,
    free: Vec<Option<f64>>,
    stored: u64,
    moved: u64,
    lost: u64,
}

/// Runs the policy to its end.
pub fn run(input: &Input, terms: &Terms, policy: Policy) -> Run {
    let node = |size: &u64| Node {
        load: *size,
        room: input.room,
        receives: true,
        answers: true,
        up: input.node,
        down: input.node,
    };
    let mut world = World {
        input,
        nodes: input.sizes.iter().map(node).collect(),
        holds: input.sizes.iter().enumerate().map(|(own, size)| VecDeque::from([(own, *size)])).collect(),
        active: Vec::new(),
        free: input.sizes.iter().map(|size| (*size == 0).then_some(0.0)).collect(),
        stored: 0,
        moved: 0,
        lost: 0,
    };
    let mut deaths = terms.deaths.clone();
    deaths.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut now, mut idle, mut schedule) = (0.0, 0.0, Vec::new());
    let mut planner = Planner::new(policy);
    loop {
        for going in world.start(terms, &mut planner, now) {
            schedule.push((now, going));
            world.active.push(Active { going, left: going.bytes as f64, rate: 0.0 });
        }
        let feeding = world.rates();
        if world.active.is_empty() {
            break;
        }
        let ends = world.active.iter().map(|active| active.left / active.rate);
        let step = ends.fold(f64::INFINITY, f64::min);
        let step = deaths.last().map_or(step, |(at, _)| step.min((at - now).max(0.0)));
        now += step;
        idle += step * (1.0 - feeding / input.repository).max(0.0);
        world.advance(step, now);
        while let Some((_, node)) = deaths.pop_if(|(at, _)| *at <= now) {
            world.die(node);
        }
    }
    let World { free, stored, moved, lost, .. } = world;
    Run { free, idle, stored, moved, lost, moves: schedule.len(), schedule, end: now }
}

impl World<'_> {
    fn start(&mut self, terms: &Terms, planner: &mut Planner, now: f64) -> Vec<Move> {
        let going: Vec<Move> = self.active.iter().map(|active| active.going).collect();
        let repository = Repository { rate: self.input.repository, senders: terms.senders, tried: 0 };
        let view = View { nodes: &self.nodes, repository, moves: &going, chunk: terms.chunk };
        let started = planner.next(&view, now);
        for going in &started {
            if let Place::Node(to) = going.to {
                self.nodes[to].room -= going.bytes;
                self.free[to] = None;
            }
        }
        started
    }

    /// Sets the rate of every move; what the repository takes in.
    fn rates(&mut self) -> f64 {
        let feeders = self.active.iter().filter(|active| active.going.to == Place::Repository).count();
        let share = self.input.repository / feeders.max(1) as f64;
        let mut feeding = 0.0;
        for active in &mut self.active {
            active.rate = match active.going.to {
                Place::Node(_) => self.input.node,
                Place::Repository => share.min(self.input.node),
            };
            if active.going.to == Place::Repository {
                feeding += active.rate;
            }
        }
        feeding
    }

    /// What has come is where it has come to.
    fn advance(&mut self, step: f64, now: f64) {
        let mut came = Vec::new();
        self.active.retain_mut(|active| {
            active.left -= step * active.rate;
            let over = active.left <= TOGETHER * active.rate.max(1.0);
            let left = if over { 0 } else { (active.left.ceil() as u64).min(active.going.bytes) };
            came.push((Move { bytes: active.going.bytes - left, ..active.going }, over));
            active.going.bytes = left;
            !over
        });
        for (going, over) in came {
            self.moved += going.bytes;
            let pieces = self.take(going.from, going.bytes);
            match going.to {
                Place::Repository => self.stored += going.bytes,
                Place::Node(to) => {
                    self.nodes[to].load += going.bytes;
                    self.holds[to].extend(pieces);
                }
            }
            if over && self.nodes[going.from].load == 0 && !self.receives(going.from) {
                self.free[going.from] = Some(now);
            }
        }
    }

    fn receives(&self, node: usize) -> bool {
        self.active.iter().any(|other| other.going.to == Place::Node(node))
    }

    /// Takes bytes from a node; those of others leave room.
    fn take(&mut self, node: usize, mut bytes: u64) -> Vec<(usize, u64)> {
        self.nodes[node].load -= bytes;
        let mut taken = Vec::new();
        while bytes > 0 {
            let Some((of, held)) = self.holds[node].front_mut() else { break };
            let part = bytes.min(*held);
            taken.push((*of, part));
            if *of != node {
                self.nodes[node].room = self.nodes[node].room.saturating_add(part);
            }
            bytes -= part;
            *held -= part;
            if *held == 0 {
                self.holds[node].pop_front();
            }
        }
        taken
    }

    /// The node is gone, with what moved from it and to it. Bytes of others are still where they came from.
    fn die(&mut self, node: usize) {
        let mut back = Vec::new();
        self.active.retain(|active| {
            let (to, from) = (active.going.to == Place::Node(node), active.going.from == node);
            if let (Place::Node(to), true) = (active.going.to, from) {
                back.push((to, active.going.bytes));
            }
            !to && !from
        });
        for (to, bytes) in back {
            self.nodes[to].room = self.nodes[to].room.saturating_add(bytes);
        }
        for (of, bytes) in std::mem::take(&mut self.holds[node]) {
            if of == node || !self.nodes[of].answers {
                self.lost += bytes;
            } else {
                self.nodes[of].load += bytes;
                self.holds[of].push_back((of, bytes));
                self.free[of] = None;
            }
        }
        self.nodes[node] = Node { load: 0, room: 0, receives: false, answers: false, ..self.nodes[node] };
        self.free[node] = None;
    }
}

#[cfg(test)]
#[path = "simulate_tests.rs"]
mod tests;
