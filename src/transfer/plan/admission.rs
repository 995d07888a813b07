//! How many may send to the repository at a time: as few as fill its link. Pure.
//!
//! One sender can be too slow for it (its disk, its processor, scp), and more than are needed only share what one would
//! have had, and get free later. So one more is admitted while that brings more, and one less when the last brought
//! nothing.

/// A sender more has to bring so much of what each brought before.
const GAIN: f64 = 0.25;
/// A link is full from this share of its known rate on.
const FULL: f64 = 0.95;

/// The number of senders, by what was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    senders: usize,
    most: usize,
    /// Bytes a second of the number before, once another is tried.
    before: Option<f64>,
    /// Whether the number was found.
    settled: bool,
}

impl Admission {
    /// Begins with one; never admits more than `most`.
    pub fn new(most: usize) -> Self {
        Self { senders: 1, most: most.max(1), before: None, settled: false }
    }

    /// How many may send: one at least.
    pub fn senders(&self) -> usize {
        self.senders
    }

    /// The repository took in so much with all of them sending; `link` is what its link is known to take, if it is.
    pub fn measured(&mut self, rate: f64, link: Option<f64>) {
        if self.settled {
            return;
        }
        if link.is_some_and(|link| rate >= FULL * link) {
            self.settled = true;
            return;
        }
        let each = self.before.map(|before| before / (self.senders - 1).max(1) as f64);
        if let (Some(before), Some(each)) = (self.before, each)
            && rate - before <= GAIN * each
        {
            self.senders -= 1;
            self.settled = true;
        } else if self.senders < self.most {
            self.before = Some(rate);
            self.senders += 1;
        } else {
            self.settled = true;
        }
    }

    /// Nodes or links have changed: looks again from here.
    pub fn look_again(&mut self) {
        self.before = None;
        self.settled = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settles(most: usize, link: Option<f64>, rate: impl Fn(usize) -> f64) -> usize {
        let mut admission = Admission::new(most);
        for _ in 0..50 {
            admission.measured(rate(admission.senders()), link);
        }
        admission.senders()
    }

    #[test]
    fn so_many_are_admitted_as_fill_the_link() {
        let link = |each: f64| move |senders: usize| (each * senders as f64).min(100.0);
        assert_eq!(settles(9, None, link(100.0)), 1);
        assert_eq!(settles(9, None, link(60.0)), 2);
        assert_eq!(settles(9, None, link(34.0)), 3);
        assert_eq!(settles(9, Some(100.0), link(97.0)), 1);
        assert_eq!(settles(2, None, link(10.0)), 2);
        assert_eq!(settles(9, None, |_| 0.0), 1, "a link that takes nothing");
    }

    #[test]
    fn a_change_has_it_look_again() {
        let mut admission = Admission::new(9);
        admission.measured(100.0, Some(100.0));
        admission.measured(10.0, Some(100.0));
        assert_eq!(admission.senders(), 1);
        admission.look_again();
        admission.measured(10.0, Some(100.0));
        assert_eq!(admission.senders(), 2);
    }
}
