//! Numbers that look drawn and are the same each time.

use std::f64::consts::TAU;

/// Draws by a seed.
pub struct Chance(blake3::OutputReader);

impl Chance {
    /// Those of this seed.
    pub fn of(seed: u64) -> Self {
        Self(blake3::Hasher::new().update(&seed.to_be_bytes()).finalize_xof())
    }

    /// From 0 to 1.
    pub fn share(&mut self) -> f64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        (u64::from_be_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One of so many.
    pub fn index(&mut self, count: usize) -> usize {
        ((self.share() * count as f64) as usize).min(count.saturating_sub(1))
    }

    /// Sizes around this one, whose logarithms have this standard deviation.
    pub fn lognormal(&mut self, middle: f64, sigma: f64) -> u64 {
        let (a, b) = (self.share().max(f64::MIN_POSITIVE), self.share());
        let normal = (-2.0 * a.ln()).sqrt() * (TAU * b).cos();
        (middle * (sigma * normal).exp()).ceil() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_the_same_and_as_wide_as_they_should_be() {
        assert_eq!(Chance::of(1).index(1000), Chance::of(1).index(1000));
        let mut chance = Chance::of(7);
        let logs: Vec<f64> = (0..2000).map(|_| (chance.lognormal(1e6, 0.5) as f64 / 1e6).ln()).collect();
        let mean = logs.iter().sum::<f64>() / 2000.0;
        let deviation = (logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / 2000.0).sqrt();
        assert!(mean.abs() < 0.05 && (deviation - 0.5).abs() < 0.05, "{mean} {deviation}");
    }
}
