//! Exponential back-off with jitter. Pure: time and chance come from the caller.

use std::time::Duration;

use rand::Rng;

/// How long to wait after failures in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// Never longer.
    pub longest: Duration,
}

impl Backoff {
    /// After an API call failed.
    pub const API: Self = Self { first: Duration::from_secs(1), longest: Duration::from_secs(60) };
    /// After something outside failed that people may have to mend.
    pub const OUTSIDE: Self = Self { first: Duration::from_secs(10), longest: Duration::from_secs(600) };

    /// The wait after `failures` failures in a row: doubles each time up to `longest`, then a random
    /// part of up to a half is taken off, so that many objects do not come back at once.
    pub fn wait(&self, failures: u32, rng: &mut impl Rng) -> Duration {
        self.full(failures).mul_f64(rng.random_range(0.5..=1.0))
    }

    /// The same without chance, for what is seldom and must come out the same at each look.
    pub fn full(&self, failures: u32) -> Duration {
        self.first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng};
    use rstest::rstest;

    #[rstest]
    #[case(0, 1)]
    #[case(1, 1)]
    #[case(2, 2)]
    #[case(5, 16)]
    #[case(7, 60)]
    #[case(u32::MAX, 60)]
    fn waits_double_up_to_the_longest(#[case] failures: u32, #[case] seconds: u64) {
        let full = Duration::from_secs(seconds);
        for seed in 0..50 {
            let wait = Backoff::API.wait(failures, &mut StdRng::seed_from_u64(seed));
            assert!(wait >= full / 2 && wait <= full, "{wait:?} after {failures}");
        }
    }

    #[test]
    fn two_objects_do_not_come_back_together() {
        let mut rng = StdRng::seed_from_u64(7);
        assert_ne!(Backoff::API.wait(6, &mut rng), Backoff::API.wait(6, &mut rng));
    }
}
