//! How many may send to the repository at a time: as few as fill its link. Pure.
//!
//! One sender can be too slow for it (its disk, its processor, scp), and more than are needed only share what one would
//! have had, and get free later. So one more is tried for a moment, and stays if that brings more. What is measured
//! stumbles now and then: nothing is decided by one measurement alone.

/// A sender more has to bring so much of what each brought before.
const GAIN: f64 = 0.25;
/// Measurements of those that may send, of which the middle one counts.
const KNOWN: usize = 3;
/// Measurements with one more, of which the largest counts.
const TRIED: usize = 2;
/// After so many seconds it looks again: links and nodes change.
const AGAIN: f64 = 30.0;

/// Most that send to a repository at a time.
pub const MOST: usize = 8;

/// The number of senders, by what was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Admission {
    senders: usize,
    most: usize,
    step: Step,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// What these bring, in bytes a second.
    Measure(Vec<f64>),
    /// What they bring is known; and what they have brought with one more.
    Try(f64, Vec<f64>),
    /// Nothing is tried until then, in seconds.
    Rest(f64),
}

impl Admission {
    /// Begins with one; never admits more than `most`.
    pub fn new(most: usize) -> Self {
        Self { senders: 1, most: most.max(1), step: Step::Measure(Vec::new()) }
    }

    /// How many are known to bring more than fewer: one at least.
    pub fn senders(&self) -> usize {
        self.senders
    }

    /// How many more may send, to see what that brings.
    pub fn tried(&self) -> usize {
        usize::from(matches!(self.step, Step::Try(..)))
    }

    /// The repository took in so much with all of them sending, `now` seconds after the beginning.
    pub fn measured(&mut self, rate: f64, now: f64) {
        match &mut self.step {
            Step::Measure(seen) => {
                seen.push(rate);
                if seen.len() >= KNOWN {
                    seen.sort_by(f64::total_cmp);
                    let known = seen[KNOWN / 2];
                    self.next(known, now);
                }
            }
            Step::Try(known, seen) => {
                seen.push(rate);
                if seen.len() >= TRIED {
                    let (known, more) = (*known, seen.iter().copied().fold(0.0, f64::max));
                    if more - known > GAIN * known / self.senders as f64 {
                        self.senders += 1;
                        self.next(more, now);
                    } else {
                        self.step = Step::Rest(now + AGAIN);
                    }
                }
            }
            Step::Rest(until) => {
                if now >= *until {
                    self.step = Step::Measure(vec![rate]);
                }
            }
        }
    }

    fn next(&mut self, known: f64, now: f64) {
        self.step = if self.senders < self.most { Step::Try(known, Vec::new()) } else { Step::Rest(now + AGAIN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After some measurements, a second each.
    fn after(admission: &mut Admission, seconds: std::ops::Range<u32>, rate: impl Fn(usize) -> f64) -> usize {
        for second in seconds {
            admission.measured(rate(admission.senders() + admission.tried()), f64::from(second));
        }
        admission.senders()
    }

    fn settles(most: usize, rate: impl Fn(usize) -> f64) -> usize {
        after(&mut Admission::new(most), 0..29, rate)
    }

    #[test]
    fn so_many_are_admitted_as_fill_the_link() {
        let link = |each: f64| move |senders: usize| (each * senders as f64).min(100.0);
        for (most, each, expected) in [(9, 100.0, 1), (9, 60.0, 2), (9, 34.0, 3), (2, 10.0, 2), (9, 97.0, 1)] {
            assert_eq!(settles(most, link(each)), expected, "{each} each, at most {most}");
        }
        assert_eq!(settles(9, |_| 0.0), 1, "a link that takes nothing");
    }

    #[test]
    fn what_stumbles_once_decides_nothing() {
        for at in 0..5 {
            for wrong in [20.0, 300.0] {
                let mut admission = Admission::new(9);
                for second in 0..20 {
                    admission.measured(if second == at { wrong } else { 100.0 }, f64::from(second));
                }
                // one more than is needed is no harm, one less is
                assert!(admission.senders() <= if wrong > 100.0 { 2 } else { 1 }, "{at}: {wrong}");
                let mut admission = Admission::new(2);
                for second in 0..20 {
                    let brings = 50.0 * (admission.senders() + admission.tried()) as f64;
                    admission.measured(if second == at { wrong / 2.0 } else { brings }, f64::from(second));
                }
                assert_eq!(admission.senders(), 2, "{at}: {wrong}");
            }
        }
    }

    #[test]
    fn a_change_is_found_after_a_while() {
        let mut admission = Admission::new(9);
        assert_eq!(after(&mut admission, 0..20, |_| 100.0), 1);
        assert_eq!(after(&mut admission, 20..70, |senders| 30.0 * senders as f64), 9);
    }
}
