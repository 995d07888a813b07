//! Whether a gather kept its promises, by the events it wrote. Pure.
//!
//! - The repository's link is not idle while bytes are left for it.
//! - No node is freed before all it held is acknowledged by somebody else.
//! - No node is given more of others than it has room for.

use std::collections::HashMap;

use super::events::{Event, Kind, REPOSITORY};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// Seconds from the first move to the repository to the last.
    pub fed: f64,
    /// Seconds of it in which nobody sent to it.
    pub idle: f64,
    /// Bytes that the repository acknowledged.
    pub stored: u64,
    /// Promises that were broken.
    pub wrongs: Vec<String>,
}

impl Verdict {
    /// The share of the time in which the repository's link was idle.
    pub fn idle_share(&self) -> f64 {
        if self.fed > 0.0 { self.idle / self.fed } else { 0.0 }
    }
}

#[derive(Default)]
struct Node {
    /// Bytes it holds by name of the file, its own and others'.
    holds: HashMap<String, i64>,
    room: Option<u64>,
    /// Bytes of others that are on their way to it.
    coming: i64,
}

/// The files that each node had at first, and where the bytes are now.
#[derive(Default)]
struct World {
    nodes: HashMap<String, Node>,
    /// Which node each file is from.
    origin: HashMap<String, String>,
    /// Moves under way: from, to, bytes that are not acknowledged.
    moves: HashMap<u64, (String, String, i64)>,
    verdict: Verdict,
    /// Moves that feed the repository, and since when.
    feeding: usize,
    quiet: Option<f64>,
}

/// Checks the events of one run.
pub fn check(events: &[Event]) -> Verdict {
    let mut world = World::default();
    for event in events {
        world.see(event);
    }
    world.verdict
}

impl World {
    fn see(&mut self, event: &Event) {
        let from = event.from.clone().unwrap_or_default();
        let to = event.to.clone().unwrap_or_default();
        let bytes = event.bytes.unwrap_or_default() as i64;
        let item = event.item.clone().unwrap_or_default();
        match event.event {
            Kind::Item => {
                *self.nodes.entry(from.clone()).or_default().holds.entry(item.clone()).or_default() += bytes;
                self.origin.insert(item, from);
            }
            Kind::Room => self.nodes.entry(from).or_default().room = event.bytes,
            Kind::Start => {
                if to == REPOSITORY {
                    self.fed(event.t);
                    self.feeding += 1;
                } else {
                    self.nodes.entry(to.clone()).or_default().coming += bytes;
                    self.within_room(event.t, &to);
                }
                self.moves.insert(event.id.unwrap_or_default(), (from, to, bytes));
            }
            Kind::Stored => self.stored(event, &to, bytes, &item),
            Kind::Done | Kind::Broken => self.ended(event),
            Kind::Freed => {
                let left: i64 = self.nodes.get(&from).map_or(0, |node| node.holds.values().sum());
                if left > 0 {
                    self.wrong(event.t, format!("{from} is freed with {left} bytes"));
                }
            }
            Kind::Lost => self.lost(&from),
            Kind::Failed => {
                for node in self.nodes.values_mut() {
                    node.holds.remove(&item);
                }
            }
            Kind::Whole | Kind::Replan | Kind::Rate => {}
        }
    }

    /// Somebody begins or ends to feed the repository.
    fn fed(&mut self, t: f64) {
        if self.feeding == 0
            && let Some(since) = self.quiet.take()
        {
            self.verdict.idle += t - since;
            self.verdict.fed += t - since;
        }
        if self.feeding == 0 {
            self.quiet = Some(t);
        }
    }

    fn ended(&mut self, event: &Event) {
        let id = event.id.unwrap_or_default();
        let Some((_, to, left)) = self.moves.get_mut(&id) else { return };
        if to != REPOSITORY {
            if event.event == Kind::Broken {
                let left = std::mem::take(left);
                let to = to.clone();
                self.nodes.entry(to).or_default().coming -= left;
                self.moves.remove(&id);
            }
            return;
        }
        self.moves.remove(&id);
        self.feeding = self.feeding.saturating_sub(1);
        if self.feeding == 0
            && let Some(since) = self.quiet.replace(event.t)
        {
            self.verdict.fed += event.t - since;
        }
    }

    fn stored(&mut self, event: &Event, to: &str, bytes: i64, item: &str) {
        let from = event.from.as_deref().unwrap_or_default();
        // of a file that has failed, nobody holds anything
        let known = self.nodes.get_mut(from).and_then(|node| node.holds.get_mut(item));
        let Some(held) = known else { return };
        *held -= bytes;
        let wrong = *held < 0;
        if wrong {
            self.wrong(event.t, format!("{from} sent more of {item} than it held"));
        }
        if to == REPOSITORY {
            self.verdict.stored += bytes as u64;
            return;
        }
        if let Some((_, _, left)) = event.id.and_then(|id| self.moves.get_mut(&id)) {
            *left -= bytes;
        }
        let node = self.nodes.entry(to.to_owned()).or_default();
        node.coming -= bytes;
        *node.holds.entry(item.to_owned()).or_default() += bytes;
        self.within_room(event.t, to);
    }

    /// What a lost node held of others is again where it came from.
    fn lost(&mut self, host: &str) {
        let Some(node) = self.nodes.remove(host) else { return };
        for (item, bytes) in node.holds {
            if let Some(origin) = self.origin.get(&item).filter(|origin| *origin != host)
                && let Some(node) = self.nodes.get_mut(origin)
            {
                *node.holds.entry(item).or_default() += bytes;
            }
        }
        self.moves.retain(|_, (from, to, left)| {
            if from == host
                && let Some(node) = self.nodes.get_mut(to.as_str())
            {
                node.coming -= *left;
            }
            // those to the repository end by an event of their own
            to == REPOSITORY || (from != host && to != host)
        });
    }

    fn within_room(&mut self, t: f64, host: &str) {
        let Some(node) = self.nodes.get(host) else { return };
        let Some(room) = node.room else { return };
        let own = |item: &str| self.origin.get(item).is_some_and(|origin| origin == host);
        let others: i64 = node.holds.iter().filter(|(item, _)| !own(item)).map(|(_, bytes)| *bytes).sum();
        let taken = others + node.coming;
        if taken > room as i64 {
            self.wrong(t, format!("{host} has {taken} bytes of others and room for {room}"));
        }
    }

    fn wrong(&mut self, t: f64, what: String) {
        self.verdict.wrongs.push(format!("{t:.3}: {what}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(t: f64, event: Event) -> Event {
        Event { t, ..event }
    }

    fn event(kind: Kind) -> Event {
        Event::new(kind)
    }

    /// Two nodes: b's bytes go through a.
    fn run() -> Vec<Event> {
        vec![
            at(0.0, event(Kind::Item).from("a").item("a").bytes(100)),
            at(0.0, event(Kind::Item).from("b").item("b").bytes(50)),
            at(0.0, event(Kind::Room).from("a").bytes(50)),
            at(0.0, event(Kind::Start).id(1).from("a").to(REPOSITORY).bytes(100)),
            at(0.0, event(Kind::Start).id(2).from("b").to("a").bytes(50)),
            at(0.5, event(Kind::Done).id(2).from("b").to("a")),
            at(0.5, event(Kind::Stored).id(2).from("b").to("a").item("b").bytes(50)),
            at(0.6, event(Kind::Freed).from("b")),
            at(1.0, event(Kind::Stored).id(1).from("a").to(REPOSITORY).item("a").bytes(100)),
            at(1.0, event(Kind::Done).id(1).from("a").to(REPOSITORY)),
            at(1.0, event(Kind::Start).id(3).from("a").to(REPOSITORY).bytes(50)),
            at(2.0, event(Kind::Done).id(3).from("a").to(REPOSITORY)),
            at(2.1, event(Kind::Stored).id(3).from("a").to(REPOSITORY).item("b").bytes(50)),
            at(2.2, event(Kind::Freed).from("a")),
        ]
    }

    #[test]
    fn a_good_run_has_nothing_wrong() {
        let verdict = check(&run());
        assert_eq!(verdict, Verdict { fed: 2.0, idle: 0.0, stored: 150, wrongs: Vec::new() });
    }

    #[test]
    fn a_pause_between_two_senders_is_idle() {
        let mut events = run();
        events[10].t = 1.5;
        let verdict = check(&events);
        assert_eq!((verdict.fed, verdict.idle), (2.0, 0.5));
        assert!((verdict.idle_share() - 0.25).abs() < 1e-9);
    }

    #[test]
    fn every_broken_promise_is_seen() {
        let early = |without: usize| {
            let mut events = run();
            events.remove(without);
            check(&events).wrongs
        };
        assert!(early(6)[0].contains("b is freed with 50 bytes"), "{:?}", early(6));
        assert!(early(12)[0].contains("a is freed with 50 bytes"));
        let mut events = run();
        events[2].bytes = Some(49);
        assert!(check(&events).wrongs[0].contains("a has 50 bytes of others and room for 49"));
        let mut events = run();
        events[8].bytes = Some(101);
        assert!(check(&events).wrongs[0].contains("more of a than it held"));
    }

    #[test]
    fn what_a_lost_node_held_is_owed_again() {
        let mut events = run();
        events.insert(8, at(0.7, event(Kind::Lost).from("a")));
        events.truncate(9);
        events.push(at(0.8, event(Kind::Freed).from("b")));
        assert_eq!(check(&events).wrongs, ["0.800: b is freed with 50 bytes"]);
    }
}
