//! Which complete generations of a job may go. Pure; who removes them asks here first.

use std::collections::BTreeSet;

use crate::{driver::repository::GenerationSummary, names::Generation};

/// However few a job wants to keep, this many complete generations stay while newer ones come: the
/// newest may turn out not to restore.
const AT_LEAST: usize = 2;

/// The complete generations that are beyond the newest `keep` and spared by nobody, oldest first.
/// `spared` are those a user retains and those something is being restored from.
pub fn surplus(complete: &[GenerationSummary], keep: u32, spared: &BTreeSet<Generation>) -> Vec<Generation> {
    let mut numbers: Vec<Generation> = complete.iter().map(|g| g.generation).collect();
    numbers.sort_unstable();
    let keep = usize::try_from(keep).unwrap_or(usize::MAX).max(AT_LEAST);
    numbers.truncate(numbers.len().saturating_sub(keep));
    numbers.retain(|number| !spared.contains(number));
    numbers
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn complete(numbers: &[Generation]) -> Vec<GenerationSummary> {
        let taken_at = jiff::Timestamp::UNIX_EPOCH;
        let one = |&generation| GenerationSummary {
            generation,
            incarnation: 1,
            parent: None,
            taken_at,
            stored: 1,
            members: 1,
            machine: None,
        };
        numbers.iter().map(one).collect()
    }

    #[test]
    fn the_oldest_go_first_and_the_spared_stay() {
        let all = complete(&[9, 2, 4, 7]);
        assert_eq!(surplus(&all, 2, &BTreeSet::new()), [2, 4]);
        assert_eq!(surplus(&all, 2, &BTreeSet::from([2])), [4]);
        assert_eq!(surplus(&all, 9, &BTreeSet::new()), [] as [Generation; 0]);
        assert_eq!(surplus(&[], 2, &BTreeSet::new()), [] as [Generation; 0]);
    }

    proptest! {
        #[test]
        fn the_newest_two_always_remain(numbers in proptest::collection::btree_set(0u32..50, 0..12), keep in 0u32..5) {
            let all: Vec<Generation> = numbers.iter().copied().collect();
            let gone = surplus(&complete(&all), keep, &BTreeSet::new());
            for newest in all.iter().rev().take(2) {
                prop_assert!(!gone.contains(newest));
            }
            prop_assert!(all.len() - gone.len() <= (keep as usize).max(2));
        }
    }
}
