//! Which images the repository lets go: a pure rule that the server and its double share.
//!
//! An image goes once nothing has named it for a while. Since when is written down beside it, and begins anew
//! whenever something names it, or it arrives again.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// What the operator knows of images: all that objects name. Manifests are the repository's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageReview {
    /// Digests (`sha256:...`) that any object names.
    pub named: BTreeSet<String>,
    /// When that was.
    pub now: Timestamp,
    /// An image that nothing names goes after so many seconds.
    pub grace: u64,
}

/// What becomes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Something names it: no time runs.
    Named,
    /// Nothing does, from now on.
    Unnamed,
    /// Nothing does since a while.
    Waits,
    /// It goes.
    Goes,
}

/// Decides. `since` is when it was first seen that nothing names the image, if it was. A time that is yet to come is
/// a clock's mistake, and begins anew.
pub fn fate(named: bool, since: Option<Timestamp>, review: &ImageReview) -> Fate {
    let grace = SignedDuration::from_secs(i64::try_from(review.grace).unwrap_or(i64::MAX));
    match since {
        _ if named => Fate::Named,
        Some(since) if since <= review.now => {
            if review.now.duration_since(since) >= grace {
                Fate::Goes
            } else {
                Fate::Waits
            }
        }
        Some(_) | None => Fate::Unnamed,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::named(true, Some(0), Fate::Named)]
    #[case::never_seen_so_before(false, None, Fate::Unnamed)]
    #[case::a_little_early(false, Some(401), Fate::Waits)]
    #[case::in_time(false, Some(400), Fate::Goes)]
    #[case::from_the_future(false, Some(4001), Fate::Unnamed)]
    fn b12_an_image_goes_only_after_nothing_named_it_for_a_while(
        #[case] named: bool,
        #[case] since: Option<i64>,
        #[case] expected: Fate,
    ) {
        let at = |second| Timestamp::from_second(second).unwrap();
        let review = ImageReview { named: BTreeSet::new(), now: at(4000), grace: 3600 };
        assert_eq!(fate(named, since.map(at), &review), expected);
        let never = ImageReview { grace: u64::MAX, ..review };
        assert_ne!(fate(named, since.map(at), &never), Fate::Goes);
    }
}
