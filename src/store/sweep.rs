//! Which packs of a job may go, and of which the blocks are kept no longer for later generations. Pure;
//! who removes them asks here, with the job's lock held (safety B10).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::SignedDuration;

use super::pack::PackName;

/// A pack that was written or promised within this time before the process began may stay: its recipe may be on
/// its way.
pub const SPARED: SignedDuration = SignedDuration::from_hours(1);

/// The packs that nothing needs: no recipe names them, and none that is being sent. A process that has not run for
/// long knows only some of what is being sent and takes no young ones, nor those of a time to come.
pub fn unneeded(
    there: impl IntoIterator<Item = (PackName, SignedDuration)>,
    needed: &BTreeSet<PackName>,
    running: Duration,
) -> Vec<PackName> {
    let knows_all = SignedDuration::try_from(running).is_ok_and(|running| running > SPARED);
    let goes = |(name, age): (PackName, SignedDuration)| {
        ((knows_all || age > SPARED) && !needed.contains(&name)).then_some(name)
    };
    there.into_iter().filter_map(goes).collect()
}

/// The packs of which less than a quarter of the slots is in use. As long as later generations find blocks
/// in them they never go, however little of them is needed.
pub fn sparse(slots: &BTreeMap<PackName, u32>, used: &BTreeMap<PackName, u64>) -> Vec<PackName> {
    let of = |name: &PackName| used.get(name).copied().unwrap_or_default();
    let mut sparse: Vec<PackName> = slots
        .iter()
        .filter(|(name, slots)| of(name).saturating_mul(4) < u64::from(**slots))
        .map(|(name, _)| *name)
        .collect();
    sparse.sort_unstable();
    sparse
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(n: u8) -> PackName {
        PackName([n; 32])
    }

    proptest! {
        #[test]
        fn b10_no_pack_that_a_kept_recipe_names_ever_goes(
            there in prop::collection::vec((0u8..30, -7200i64..720_000), 0..40),
            recipes in prop::collection::vec(prop::collection::vec(0u8..30, 0..8), 0..5),
            running in 0u64..7200,
        ) {
            let there: Vec<_> = there.into_iter().map(|(n, age)| (name(n), SignedDuration::from_secs(age))).collect();
            let needed: BTreeSet<PackName> = recipes.concat().into_iter().map(name).collect();
            let gone = unneeded(there, &needed, Duration::from_secs(running));
            prop_assert!(gone.iter().all(|name| !needed.contains(name)));
        }
    }

    #[test]
    fn b10_what_was_promised_lately_stays() {
        let there = [(name(1), SPARED), (name(2), SPARED + SignedDuration::from_secs(1))];
        assert_eq!(unneeded(there, &BTreeSet::new(), Duration::ZERO), [name(2)]);
    }

    #[test]
    fn packs_of_which_little_is_used_are_sparse() {
        let slots = BTreeMap::from([(name(1), 100), (name(2), 100), (name(3), 1), (name(4), 8)]);
        let used = BTreeMap::from([(name(1), 24), (name(2), 25), (name(3), 1)]);
        assert_eq!(sparse(&slots, &used), [name(1), name(4)]);
    }
}
