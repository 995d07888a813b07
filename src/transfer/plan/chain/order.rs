//! The order of a chain. Pure: everybody finds the same.

use crate::names::MemberIndex;

/// Where a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The member.
    pub member: MemberIndex,
    /// The switch that its node is on, if that is known.
    pub switch: Option<String>,
}

/// Those that stand before a member in the chain, the nearest first. Switches come in the order of their first
/// members; nodes of which none is known count as on one.
pub fn before(places: &[Place], member: MemberIndex) -> Vec<MemberIndex> {
    let mut sorted: Vec<&Place> = places.iter().collect();
    sorted.sort_by_key(|place| place.member);
    let mut switches: Vec<Option<&str>> = Vec::new();
    for place in &sorted {
        if !switches.contains(&place.switch.as_deref()) {
            switches.push(place.switch.as_deref());
        }
    }
    sorted.sort_by_key(|place| switches.iter().position(|switch| *switch == place.switch.as_deref()));
    let mut before: Vec<MemberIndex> =
        sorted.iter().map(|place| place.member).take_while(|other| *other != member).collect();
    before.reverse();
    before
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn place(member: MemberIndex, switch: &str) -> Place {
        Place { member, switch: Some(switch.to_owned()).filter(|name| !name.is_empty()) }
    }

    #[test]
    fn the_nodes_of_a_switch_stand_together_and_the_next_switch_is_fed_by_the_last_of_them() {
        let places = [place(0, "a"), place(1, "b"), place(2, "a"), place(3, ""), place(4, "b"), place(5, "")];
        assert_eq!(before(&places, 0), [] as [MemberIndex; 0]);
        assert_eq!(before(&places, 2), [0]);
        assert_eq!(before(&places, 1), [2, 0]);
        assert_eq!(before(&places, 5), [3, 4, 1, 2, 0]);
    }

    proptest! {
        #[test]
        fn everybody_finds_the_same_chain_and_switches_are_left_once(switches in proptest::collection::vec(0..4u8, 1..40)) {
            let places: Vec<Place> =
                (0..).zip(&switches).map(|(member, switch)| place(member, &switch.to_string())).collect();
            let last = places.iter().max_by_key(|place| before(&places, place.member).len()).unwrap().member;
            let mut chain = before(&places, last);
            chain.insert(0, last);
            prop_assert_eq!(chain.len(), places.len());
            for (at, member) in chain.iter().enumerate() {
                prop_assert_eq!(&before(&places, *member), &chain[at + 1..]);
            }
            let of = |member: MemberIndex| switches[member as usize];
            let crossings = chain.windows(2).filter(|pair| of(pair[0]) != of(pair[1])).count();
            prop_assert_eq!(crossings + 1, switches.iter().collect::<BTreeSet<_>>().len());
            let mut shuffled = places.clone();
            shuffled.reverse();
            prop_assert_eq!(before(&shuffled, last), before(&places, last));
        }
    }
}
