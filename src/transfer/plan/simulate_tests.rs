

use super::*;

const UNIT: u64 = 1000;

fn equal(nodes: usize, ratio: f64) -> Input {
    Input { sizes: vec![UNIT; nodes], node: UNIT as f64, repository: ratio * UNIT as f64, room: u64::MAX / 2 }
}

fn terms(senders: usize) -> Terms {
    Terms { senders, chunk: 1, deaths: Vec::new() }
}

/// Time to 80 % free, to all, node-seconds: each over its bound.
fn ratios(input: &Input, senders: usize, policy: Policy) -> [f64; 3] {
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

const TARGET: Policy = Policy::Target { share: 0.8 };

#[test]
fn print() {
    for n in [16, 32, 64, 1000] {
        for policy in [TARGET, Policy::NodeSeconds, Policy::Rounds] {
            println!("{n} {policy:?} {:?}", ratios(&equal(n, 1.0), 1, policy));
        }
    }
    for ratio in [2.0, 3.0] {
        println!("ratio {ratio} {:?}", ratios(&equal(64, ratio), ratio as usize, TARGET));
    }
    for room in [1, 2, 4, 8] {
        let input = Input { room: room * UNIT, ..equal(64, 1.0) };
        println!("room {room} {:?} {:?}", ratios(&input, 1, TARGET), ratios(&input, 1, Policy::NodeSeconds));
    }
}
