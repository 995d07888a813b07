//! Whether there is room for another member's part. Pure.

/// Kept free whatever is taken in.
const FLOOR: u64 = 64 << 20;
/// To name the blocks of what was captured takes this share of it.
const NAMES: u64 = 64;

/// Most bytes that a part of this size takes: what does not compress grows a little, and there are indices and recipes.
pub(super) fn wanted(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 32).saturating_add(4 << 20)
}

/// Whether so much more may be taken in; `coming` has been promised already, `own` is captured here itself.
pub(super) fn check(free: u64, coming: u64, own: u64, wanted: u64) -> Result<(), String> {
    let kept = FLOOR.saturating_add(own / NAMES).saturating_add(coming);
    if free >= kept.saturating_add(wanted) {
        Ok(())
    } else {
        Err(format!("no room: {free} bytes are free, {kept} of them are needed here, and {wanted} are to come"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_kept_for_its_own_and_for_what_was_promised() {
        const GIB: u64 = 1 << 30;
        let wanted = wanted(GIB);
        assert!(wanted > GIB && wanted < GIB + GIB / 16);
        assert_eq!(check(2 * GIB, 0, GIB, wanted), Ok(()));
        for (free, coming, own) in [(GIB, 0, 0), (2 * GIB, GIB, 0), (2 * GIB, 0, 64 * GIB), (0, u64::MAX, u64::MAX)] {
            let refused = check(free, coming, own, wanted).unwrap_err();
            assert!(refused.starts_with("no room"), "{refused}");
        }
    }
}
