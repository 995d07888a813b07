//! What time changes in a gather: links are measured, and what does not move is given up.

use std::time::{Duration, Instant};

use super::{Gather, Host, Planned, Trail};
use crate::transfer::{
    plan::{Place, Policy},
    run::{
        events::{Event, Kind, REPOSITORY},
        rates::ASSUMED,
        wire::Order,
    },
};

/// A node is lost if it says nothing for so long.
const SILENCE: Duration = Duration::from_secs(15);
/// Nodes hear from here as often, so that none waits for orders for ever.
const BEAT: Duration = Duration::from_secs(20);
/// A move is given up if nothing comes of it for so long.
const STALLED: Duration = Duration::from_secs(20);
/// A move says how fast its link is as often.
const EARLY: Duration = Duration::from_millis(250);
/// Fewer bytes say nothing.
const TELLING: u64 = 256 << 10;
/// The next sender to the repository is ordered so many seconds before the last one has ended: it has to connect.
const AHEAD: f64 = 0.05;
/// But within these bounds of bytes.
const AHEAD_LEAST: f64 = 65536.0;
const AHEAD_CHUNKS: u64 = 8;
/// What is only noise changes no plan: after so many seconds it is more.
const ODD: f64 = 1.5;
/// Plans are not made anew more often, in seconds.
const REPLAN: f64 = 1.0;

impl Gather {
    /// What time changes: measures, and gives up what does not move.
    pub(in crate::transfer::run) fn tick(&mut self) {
        self.trails.retain(|id, _| self.ledger.moves.contains_key(id));
        // at first, one that sends to the repository shares its link with the one before
        let early = |trail: &Trail| {
            let mark = trail.mark.filter(|_| trail.to != Place::Repository);
            mark.is_some_and(|(since, _)| since.elapsed() >= EARLY)
        };
        let early: Vec<u64> = self.trails.iter().filter(|(_, trail)| early(trail)).map(|(id, _)| *id).collect();
        for id in early {
            self.judge(id);
        }
        self.measure();
        self.look_at_rates();
        if self.beat.elapsed() >= BEAT {
            self.beat = Instant::now();
            self.hosts.iter().for_each(|host| host.order(Order::Beat));
        }
        let stalled = |id: &u64, trail: &Trail| {
            trail.last.elapsed() >= STALLED && self.ledger.moves.get(id).is_some_and(|going| !going.landed)
        };
        let stalled: Vec<u64> =
            self.trails.iter().filter(|(id, trail)| stalled(id, trail)).map(|(id, _)| *id).collect();
        for id in stalled {
            self.broken(id, "nothing comes of it");
        }
        let silent = |host: &Host| host.peer.is_some() && host.heard.elapsed() >= SILENCE;
        let silent: Vec<usize> = (0..self.hosts.len()).filter(|node| silent(&self.hosts[*node])).collect();
        for node in silent {
            self.lost(node, "it is silent");
        }
    }

    fn measure(&mut self) {
        let mut feeding: Vec<&mut Trail> =
            self.trails.values_mut().filter(|trail| trail.to == Place::Repository && trail.first.is_some()).collect();
        if feeding.len() > 1 {
            for trail in &mut feeding {
                trail.shared = true;
            }
        }
        let feeding = feeding.len();
        let may = self.senders() + self.tried();
        let now = self.log.now();
        let Some(rate) = self.meter.rate(now, feeding, may) else { return };
        self.rates.took(rate);
        self.admission.measured(rate, now);
        self.dirty |= self.senders() + self.tried() != may;
    }

    fn look_at_rates(&mut self) {
        // the first plan for a deadline is made as soon as there can be one
        let first = (self.planned.most - ASSUMED).abs() < 1.0 && self.rates.known();
        if !first && self.log.now() - self.planned.at < REPLAN {
            return;
        }
        let factor = self.rates.most() / self.planned.most;
        let absolute = matches!(self.wish.policy, Policy::Deadline { .. }) && !(0.75..=1.33).contains(&factor);
        let others = self.senders() != self.planned.senders;
        if !absolute && !others && self.rates.differing() == self.planned.differing {
            self.planned.odd = None;
        } else if absolute || others || self.log.now() - *self.planned.odd.get_or_insert(self.log.now()) > ODD {
            let event = Event::new(Kind::Rate).to(REPOSITORY).bytes(self.rates.repository() as u64);
            self.log.say(event);
            self.replan("links are faster or slower, or another number of senders fills the repository's");
        }
    }

    pub(super) fn replan(&mut self, reason: &str) {
        self.planner.anew(self.wish.policy);
        self.planned = Planned {
            at: self.log.now(),
            senders: self.senders(),
            differing: self.rates.differing(),
            most: self.rates.most(),
            odd: None,
        };
        self.log.say(Event::new(Kind::Replan).reason(reason));
        self.dirty = true;
    }

    /// How fast it is says how fast its links are, if it is alone on them.
    pub(super) fn judge(&mut self, id: u64) {
        let Some((trail, going)) = self.trails.get_mut(&id).zip(self.ledger.moves.get(&id)) else { return };
        let Some((since, before)) = trail.mark else { return };
        let (took, bytes) = (since.elapsed().as_secs_f64(), going.got - before);
        if bytes < TELLING || took <= 0.0 {
            return;
        }
        trail.mark = Some((Instant::now(), going.got));
        let to = match trail.to {
            Place::Repository if trail.shared => return,
            Place::Repository => None,
            Place::Node(node) => Some(node),
        };
        self.rates.moved(trail.from, to, bytes as f64 / took);
    }

    pub(super) fn ahead(&self) -> u64 {
        // while one more is only tried, nobody else begins
        if self.tried() > 0 {
            return 0;
        }
        let most = (AHEAD_CHUNKS * self.wish.chunk) as f64;
        (self.rates.next() * AHEAD).clamp(AHEAD_LEAST, most.max(AHEAD_LEAST)) as u64
    }
}
