//! Addresses in a job's network: which subnet it gets, and who has which address there. Pure.
//!
//! A subnet has two halves: the guests' addresses, and those by which each guest's agent reaches it.
//! Hardware addresses are made of the addresses, so that they differ wherever these do.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::names::{Mac, MemberIndex};

/// Subnets smaller than this are not handed out: room for 6 members.
const LONGEST_PREFIX: u8 = 28;

/// Length of the prefix of a subnet for this many members, and one more for a master.
pub fn prefix(members: u32) -> u8 {
    // an address of each half is the network's own, or everybody's
    let half = (u64::from(members) + 2).next_power_of_two();
    let bits = u8::try_from((half * 2).trailing_zeros()).unwrap_or(u8::MAX);
    32u8.saturating_sub(bits).min(LONGEST_PREFIX)
}

/// A subnet of the pool that overlaps none of `taken`. These may overlap each other: jobs that go on from
/// another one's snapshot have its subnet, also when that was given to a third one meanwhile. The search begins at a
/// place that `seed` decides, so that a subnet is not soon given to another job.
pub fn free(pool: Ipv4Net, members: u32, seed: u64, taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    let length = prefix(members);
    let bits = length.checked_sub(pool.prefix_len())?;
    let taken: std::collections::BTreeMap<Ipv4Addr, Ipv4Addr> =
        Ipv4Net::aggregate(&taken.to_vec()).iter().map(|net| (net.network(), net.broadcast())).collect();
    let (count, size) = (1u64 << bits, 1u64 << (32 - length));
    let first = u64::from(u32::from(pool.network()));
    (0..count).find_map(|step| {
        let start = first + (seed % count + step) % count * size;
        let net = Ipv4Net::new(Ipv4Addr::from(u32::try_from(start).ok()?), length).ok()?;
        let before = taken.range(..=net.broadcast()).next_back();
        before.is_none_or(|(_, end)| *end < net.network()).then_some(net)
    })
}

/// Address of a member's guest; the master's index is the number of members.
pub fn guest(subnet: Ipv4Net, index: MemberIndex) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()).saturating_add(1 + index))
}

/// Address by which a member's agent reaches its guest.
pub fn door(subnet: Ipv4Net, index: MemberIndex) -> Ipv4Addr {
    let half = 1u32 << (31 - subnet.prefix_len().min(31));
    Ipv4Addr::from(u32::from(subnet.network()).saturating_add(half + index))
}

/// Hardware address of the card with this address in the job's network.
pub fn mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    // locally administered, one station; the second byte is ours
    Mac([0x02, 0x76, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_have_room_for_guests_doors_and_a_master() {
        for (members, length) in [(1, 28), (6, 28), (7, 27), (14, 27), (15, 26), (1022, 21), (1023, 20)] {
            assert_eq!(prefix(members), length, "{members}");
            let subnet = free(net("10.0.0.0/8"), members, 5, &[]).unwrap();
            let master = guest(subnet, members);
            let last = door(subnet, members);
            assert!(master < door(subnet, 0), "{subnet}: {master}");
            assert!(subnet.contains(&last) && last < subnet.broadcast(), "{subnet}: {last}");
        }
    }

    #[test]
    fn an_exhausted_pool_has_none() {
        let pool = net("198.18.0.0/27");
        let first = free(pool, 2, 0, &[]).unwrap();
        let second = free(pool, 2, 0, &[first]).unwrap();
        assert_ne!(first, second);
        assert_eq!(free(pool, 2, 0, &[first, second]), None);
        assert_eq!(free(pool, 40, 0, &[]), None, "a job larger than the pool");
    }

    #[test]
    fn what_several_jobs_have_is_given_to_no_other() {
        let pool = net("198.18.0.0/26");
        // of jobs that go on from one snapshot, and of one that was given it meanwhile
        let taken = [net("198.18.0.0/28"), net("198.18.0.0/28"), net("198.18.0.0/27"), net("198.18.0.16/28")];
        for seed in 0..8 {
            let subnet = free(pool, 2, seed, &taken).unwrap();
            assert!(!net("198.18.0.0/27").contains(&subnet), "{subnet}");
        }
        assert_eq!(free(net("198.18.0.0/27"), 2, 0, &taken), None);
    }

    #[test]
    fn d2_a_million_draws_have_no_address_twice() {
        let pool = net("10.0.0.0/8");
        let mut taken = Vec::new();
        let (mut addresses, mut macs) = (HashSet::new(), HashSet::new());
        let sizes = [1u32, 2, 4, 17, 64, 300, 1000];
        let mut drawn = 0;
        for job in 0u64.. {
            let members = sizes[usize::try_from(job % 7).unwrap()];
            let seed = job.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let Some(subnet) = free(pool, members, seed, &taken) else { break };
            taken.push(subnet);
            for index in 0..members {
                let address = guest(subnet, index);
                assert!(addresses.insert(address) && addresses.insert(door(subnet, index)), "{address} twice");
                assert!(macs.insert(mac(address)) && macs.insert(mac(door(subnet, index))), "{address}: MAC twice");
                drawn += 1;
            }
            if drawn >= 1_000_000 {
                break;
            }
        }
        assert!(drawn >= 1_000_000, "the pool was too small: {drawn}");
    }

    proptest! {
        #[test]
        fn subnets_of_changing_jobs_never_overlap(steps in prop::collection::vec((any::<u64>(), 1u32..60), 1..120)) {
            let pool = net("198.18.0.0/22");
            let mut taken: Vec<Ipv4Net> = Vec::new();
            for (seed, members) in steps {
                match free(pool, members, seed, &taken) {
                    Some(subnet) => {
                        prop_assert!(pool.contains(&subnet));
                        prop_assert!(taken.iter().all(|old| !old.contains(&subnet) && !subnet.contains(old)));
                        taken.push(subnet);
                    }
                    // full: a job ends
                    None => { taken.swap_remove(usize::try_from(seed).unwrap_or_default() % taken.len()); }
                }
            }
        }
    }
}
