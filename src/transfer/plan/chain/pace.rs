//! How fast something comes now. Pure.

use std::collections::VecDeque;

/// Seconds that count.
const WINDOW: f64 = 3.0;
/// Parts of them.
const STEPS: f64 = 12.0;

/// Bytes of the last seconds.
#[derive(Debug, Default)]
pub struct Pace {
    /// When each part of the window began, and what came in it.
    came: VecDeque<(f64, u64)>,
    since: Option<f64>,
}

impl Pace {
    /// So many bytes have come, this many seconds after some beginning.
    pub fn came(&mut self, now: f64, bytes: u64) {
        self.since.get_or_insert(now);
        match self.came.back_mut() {
            Some((begun, sum)) if now - *begun < WINDOW / STEPS => *sum += bytes,
            _ => self.came.push_back((now, bytes)),
        }
        while self.came.len() as f64 > STEPS + 1.0 {
            self.came.pop_front();
        }
    }

    /// Whom they come from has changed: what came before says nothing.
    pub fn anew(&mut self) {
        *self = Self::default();
    }

    /// Bytes a second, if they have been coming for long enough to say.
    pub fn rate(&self, now: f64) -> Option<f64> {
        if now - self.since? < WINDOW {
            return None;
        }
        let recent = self.came.iter().filter(|(begun, _)| now - begun < WINDOW);
        Some(recent.map(|(_, bytes)| *bytes as f64).sum::<f64>() / WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_came_of_late_once_that_is_known() {
        let mut pace = Pace::default();
        assert_eq!(pace.rate(9.0), None);
        for step in 0..100 {
            pace.came(f64::from(step) / 10.0, 100);
            let rate = pace.rate(f64::from(step) / 10.0);
            assert_eq!(rate.is_some(), step >= 30, "{step}");
            assert!(rate.is_none_or(|rate| (rate - 1000.0).abs() < 110.0), "{rate:?}");
        }
        let slower = pace.rate(11.5).unwrap();
        assert!((350.0..650.0).contains(&slower), "{slower}");
        assert_eq!(pace.rate(20.0), Some(0.0), "nothing comes any more");
        pace.anew();
        assert_eq!(pace.rate(30.0), None);
    }
}
