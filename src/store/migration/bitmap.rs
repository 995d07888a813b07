//! One bit for each page, and how many are set before one.

/// Bits in a word.
const WORD: u64 = 64;

/// A bit for each page.
pub(super) struct Bitmap {
    words: Vec<u64>,
    bits: u64,
    set: u64,
}

impl Bitmap {
    /// So many bits, none of them set.
    pub(super) fn new(bits: u64) -> Self {
        Self { words: vec![0; index(bits.div_ceil(WORD))], bits, set: 0 }
    }

    /// Sets a bit below the length; says whether it was not set before.
    pub(super) fn set(&mut self, bit: u64) -> bool {
        let Some(word) = self.words.get_mut(index(bit / WORD)).filter(|_| bit < self.bits) else {
            return false;
        };
        let mask = 1 << (bit % WORD);
        let new = *word & mask == 0;
        *word |= mask;
        self.set += u64::from(new);
        new
    }

    /// Whether a bit is set.
    pub(super) fn has(&self, bit: u64) -> bool {
        self.words.get(index(bit / WORD)).is_some_and(|word| word & (1 << (bit % WORD)) != 0)
    }

    /// How many are set.
    pub(super) fn are_set(&self) -> u64 {
        self.set
    }

    /// How many are not set.
    pub(super) fn unset(&self) -> u64 {
        self.bits - self.set
    }

    /// No bit changes any more; they are counted.
    pub(super) fn counted(self) -> Counted {
        let mut sum = 0;
        let before = |word: &u64| {
            let before = sum;
            sum += u64::from(word.count_ones());
            before
        };
        Counted { before: self.words.iter().map(before).collect(), bitmap: self }
    }
}

/// A bitmap that knows how many bits are set before each.
pub(super) struct Counted {
    bitmap: Bitmap,
    /// Set bits before each word.
    before: Vec<u64>,
}

impl Counted {
    /// Whether a bit is set.
    pub(super) fn has(&self, bit: u64) -> bool {
        self.bitmap.has(bit)
    }

    /// How many bits are set before this one.
    pub(super) fn before(&self, bit: u64) -> u64 {
        let at = index(bit / WORD);
        match (self.before.get(at), self.bitmap.words.get(at)) {
            (Some(before), Some(word)) => before + u64::from((word & ((1 << (bit % WORD)) - 1)).count_ones()),
            _ => self.bitmap.set,
        }
    }
}

/// An index of a vector; what does not fit one is behind its end as well.
fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bits_are_counted(bits in prop::collection::vec(any::<bool>(), 0..200)) {
            let mut bitmap = Bitmap::new(bits.len() as u64);
            for (at, _) in bits.iter().enumerate().filter(|(_, bit)| **bit) {
                prop_assert!(bitmap.set(at as u64));
                prop_assert!(!bitmap.set(at as u64));
            }
            prop_assert!(!bitmap.set(bits.len() as u64));
            prop_assert_eq!(bitmap.unset() as usize, bits.iter().filter(|bit| !**bit).count());
            let counted = bitmap.counted();
            for at in 0..=bits.len() {
                prop_assert_eq!(counted.before(at as u64) as usize, bits[..at].iter().filter(|bit| **bit).count());
                prop_assert_eq!(counted.has(at as u64), bits.get(at).copied().unwrap_or(false));
            }
        }
    }
}
