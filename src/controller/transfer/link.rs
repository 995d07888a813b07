//! How many may send to the repository: as few as fill its link, by what agents say that has left them. Pure.

use std::collections::HashMap;

use crate::{
    driver::agent::AgentAddress,
    transfer::plan::{
        admission::{Admission, MOST},
        meter::{Meter, Span},
    },
};

/// Over so many seconds it is measured: agents send packs, and say now and then what has left.
const SPAN: Span = Span { warm: 0.4, window: 0.8 };
/// Seconds that count as the last moments.
const MOMENT: f64 = 0.7;
/// A limit is reached with this share of it.
const REACHED: f64 = 0.9;
/// After so many seconds in which nobody sends, what was known of the link is old.
const OLD: f64 = 10.0;

/// What is known of the repository's link.
#[derive(Debug)]
pub struct Link {
    admission: Admission,
    meter: Meter,
    moved: HashMap<AgentAddress, u64>,
    /// Bytes a second of the last moments, and when they were counted.
    rate: Option<f64>,
    counted: Option<f64>,
    evacuates: bool,
    /// When somebody sent last.
    used: f64,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            admission: Admission::new(MOST),
            meter: Meter::new(SPAN),
            moved: HashMap::new(),
            rate: None,
            counted: None,
            evacuates: false,
            used: 0.0,
        }
    }
}

impl Link {
    /// How many may send: one at least, and now and then one more, to see what that brings.
    pub fn senders(&self) -> usize {
        self.admission.senders() + self.admission.tried()
    }

    /// Bytes a second that have come in lately.
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// At `now`, in seconds, these send, and so many bytes have left each since it began; with a `limit` together no
    /// more than that. An evacuation begins anew: it is others that send, and in other numbers.
    pub fn note(&mut self, now: f64, senders: &[(AgentAddress, u64)], evacuates: bool, limit: Option<f64>) {
        let old = senders.is_empty() && now - self.used > OLD;
        if old || (evacuates && !self.evacuates) {
            *self = Self { moved: std::mem::take(&mut self.moved), ..Self::default() };
        }
        self.evacuates = evacuates;
        let mut came = 0;
        for (agent, moved) in senders {
            let before = self.moved.insert(agent.clone(), *moved);
            came += before.map_or(0, |before| moved.saturating_sub(before));
        }
        self.meter.came(came);
        if let Some(passed) = self.counted.map(|before| now - before).filter(|passed| *passed > 0.0) {
            let last = came as f64 / passed;
            // before the first bytes it only begins
            let known = self.rate.filter(|known| *known > 0.0).unwrap_or(last);
            self.rate = Some(known + (last - known) * (1.0 - (-passed / MOMENT).exp()));
        }
        self.counted = (!senders.is_empty()).then_some(now);
        self.moved.retain(|agent, _| senders.iter().any(|(sends, _)| sends == agent));
        if !senders.is_empty() {
            self.used = now;
        }
        if let Some(rate) = self.meter.rate(now, senders.len(), self.senders())
            && limit.is_none_or(|limit| rate < REACHED * limit)
        {
            self.admission.measured(rate, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(member: u32) -> AgentAddress {
        let port = 17_700 + u16::try_from(member).unwrap();
        AgentAddress { endpoint: ([127, 0, 0, 1], port).into(), job: "j".into(), member, incarnation: 1 }
    }

    /// As many send as may, for so many seconds.
    fn run(link: &mut Link, seconds: std::ops::Range<u32>, evacuates: bool, rate: impl Fn(usize) -> f64) -> usize {
        let mut moved = [0.0; MOST];
        for (number, moved) in (0..).zip(&mut moved) {
            *moved = link.moved.get(&agent(number)).copied().unwrap_or_default() as f64;
        }
        for step in seconds.start * 5..seconds.end * 5 {
            let sending = link.senders();
            for moved in moved.iter_mut().take(sending) {
                *moved += rate(sending) / sending as f64 / 5.0;
            }
            let senders: Vec<_> = (0..).zip(moved.iter().take(sending)).map(|(n, m)| (agent(n), *m as u64)).collect();
            link.note(f64::from(step) / 5.0, &senders, evacuates, None);
        }
        link.senders()
    }

    #[test]
    fn so_many_send_as_fill_the_link() {
        for (each, expected) in [(2e6, 1), (0.6e6, 2), (0.35e6, 3)] {
            let mut link = Link::default();
            assert_eq!(run(&mut link, 0..20, false, |senders| (each * senders as f64).min(1e6)), expected, "{each}");
            let rate = link.rate().unwrap();
            assert!((rate - 1e6).abs() < 0.1e6, "{rate}");
        }
    }

    #[test]
    fn what_changes_is_looked_at_again() {
        let mut link = Link::default();
        let slow = |senders: usize| (0.35e6 * senders as f64).min(1e6);
        assert_eq!(run(&mut link, 0..20, false, |_| 1e6), 1);
        assert_eq!(run(&mut link, 20..75, false, slow), 3, "their nodes have become slow");
        assert_eq!(run(&mut link, 75..76, true, slow), 1, "an evacuation begins with one");
        assert_eq!(run(&mut link, 76..96, true, slow), 3);
        link.note(100.0, &[], false, None);
        assert!(link.senders() == 3 && link.rate().is_some(), "only a pause");
        link.note(107.0, &[], false, None);
        assert_eq!((link.senders(), link.rate()), (1, None), "long ago");
    }
}
