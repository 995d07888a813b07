use proptest::prelude::*;

use super::*;

const UNIT: u64 = 1000;
const TARGET: Policy = Policy::Target { share: 0.8 };

fn equal(nodes: usize, ratio: f64) -> Input {
    Input { sizes: vec![UNIT; nodes], node: UNIT as f64, repository: ratio * UNIT as f64, room: u64::MAX / 2 }
}

fn terms(senders: usize) -> Terms {
    Terms { senders, chunk: 1, deaths: Vec::new() }
}

/// Time to 80 % free, to all, node-seconds: each over its bound.
fn ratios(input: &Input, policy: Policy) -> [f64; 3] {
    // as many as fill the link
    let senders = (input.repository / input.node).ceil() as usize;
    let run = run(input, &terms(senders), policy);
    let count = input.sizes.len();
    let most = (count as f64 * 0.8).ceil() as usize;
    assert!(run.free.iter().all(Option::is_some), "{policy:?}: not all are free");
    [
        run.free(most).unwrap() / input.free(most),
        run.free(count).unwrap() / input.all(),
        run.node_seconds() / input.node_seconds(),
    ]
}

/// None is larger than its limit.
fn within(found: [f64; 3], limits: [f64; 3]) {
    assert!(found.iter().zip(limits).all(|(found, limit)| *found <= limit), "{found:?} is not within {limits:?}");
}

#[test]
fn a_star_frees_the_wanted_share_at_the_bound_and_the_rest_soon() {
    for (nodes, node_seconds) in [(16, 1.08), (32, 1.09), (64, 1.03), (1000, 1.05)] {
        within(ratios(&equal(nodes, 1.0), TARGET), [1.001, 1.001, node_seconds]);
    }
}

#[test]
fn a_repository_of_several_links_is_fed_to_the_end() {
    for (nodes, ratio) in [(32, 2.0), (64, 2.0), (32, 3.0), (64, 3.0), (1000, 3.0)] {
        within(ratios(&equal(nodes, ratio), TARGET), [1.02, 1.001, 1.15]);
        within(ratios(&equal(nodes, ratio), Policy::NodeSeconds), [2.2, 1.001, 1.06]);
    }
}

#[test]
fn the_last_part_of_a_chunk_goes_with_the_others() {
    let input = equal(32, 1.0);
    let run = run(&input, &Terms { chunk: 70, ..terms(1) }, TARGET);
    assert!(run.free(26).unwrap() <= 1.1 * input.free(26), "{:?} of {}", run.free(26), input.free(26));
    assert!(run.end <= 1.001 * input.all());
}

#[test]
fn pairs_hold_nodes_no_longer_than_the_bound() {
    for nodes in [16, 32, 64, 1000] {
        within(ratios(&equal(nodes, 1.0), Policy::NodeSeconds), [2.0, 1.001, 1.001]);
        // of equal sizes, a round is over when its pairs are
        within(ratios(&equal(nodes, 1.0), Policy::Rounds), [2.0, 1.001, 1.001]);
    }
}

#[test]
fn little_room_is_used_as_far_as_it_goes() {
    for room in [1, 2, 4, 8] {
        within(ratios(&Input { room: room * UNIT, ..equal(64, 1.0) }, TARGET), [1.001, 1.001, 5.0]);
    }
}

#[test]
fn so_many_nodes_are_free_at_the_deadline_as_can_be() {
    for (within, least) in [(4.0, 52), (1.0, 32), (15.3, 61)] {
        let run = run(&equal(64, 1.0), &terms(1), Policy::Deadline { within });
        assert!(run.free(least - 1).unwrap() <= within * 1.001, "{:?} of {within}", run.free(least - 1));
        assert!(run.free.iter().all(Option::is_some));
    }
}

#[test]
fn what_a_dead_node_held_of_others_is_sent_again() {
    for policy in [TARGET, Policy::NodeSeconds, Policy::Rounds] {
        let input = equal(32, 1.0);
        // most of them hold a lot then
        let deaths = (0..4).map(|n| (2.5 + f64::from(n) / 10.0, 28 + n as usize)).collect();
        let run = run(&input, &Terms { deaths, ..terms(1) }, policy);
        let dead = run.free.iter().filter(|free| free.is_none()).count();
        assert_eq!(dead, 4, "{policy:?}");
        assert!(run.lost <= 4 * UNIT, "{policy:?}: {}", run.lost);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn everything_arrives_and_no_node_is_overfilled(
        sizes in prop::collection::vec(0u64..5000, 1..60),
        ratio in 0.5f64..3.0,
        room in 0u64..20_000,
        chunk in 1u64..300,
        senders in 1usize..4,
        deaths in prop::collection::vec((0.0f64..20.0, 0usize..60), 0..4),
    ) {
        let input = Input { sizes, node: 1000.0, repository: ratio * 1000.0, room };
        let deaths: Vec<_> = deaths.into_iter().filter(|(_, node)| *node < input.sizes.len()).collect();
        for policy in [TARGET, Policy::NodeSeconds, Policy::Rounds, Policy::Deadline { within: 3.0 }] {
            // more than there is room for would be less than nothing, which panics
            let run = run(&input, &Terms { senders, chunk, deaths: deaths.clone() }, policy);
            let dead = |node: usize| deaths.iter().any(|(_, death)| *death == node);
            for (node, free) in run.free.iter().enumerate() {
                prop_assert!(free.is_some() || dead(node) || input.sizes[node] == 0, "{:?}: {} is held", policy, node);
            }
            let all: u64 = input.sizes.iter().sum();
            prop_assert!(run.stored + run.lost >= all, "{:?}: {} and {} of {}", policy, run.stored, run.lost, all);
            if deaths.is_empty() {
                prop_assert_eq!((run.stored, run.lost), (all, 0));
            }
        }
    }
}
