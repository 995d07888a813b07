//! The proof that memory survives: a job prints `tick <number> <nonce>`; number and nonce exist in the
//! guest's memory only. Pure.

use anyhow::{Context as _, Result, ensure};

/// The command: counts to `$TICKS` and keeps the nonce in a shell variable. With `$NOISE` it writes so many KiB that
/// nobody has seen before, at every 25th tick.
pub const COMMAND: &str = r#"nonce=$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')
n=0
while [ $n -lt "$TICKS" ]; do n=$((n + 1)); echo "tick $n $nonce"; sleep 0.2
[ -z "$NOISE" ] || [ $((n % 25)) != 0 ] || head -c "${NOISE}k" /dev/urandom > /tmp/noise; done
mkdir -p /data && echo "$n $nonce" > /data/result"#;

/// One line of the job's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tick {
    /// Its number, from 1 on.
    pub number: u64,
    /// The nonce.
    pub nonce: String,
}

/// The tick in a line of a log, if there is one.
pub fn tick(line: &str) -> Option<Tick> {
    let mut words = line.get(line.find("tick ")?..)?.split_whitespace().skip(1);
    let number = words.next()?.parse().ok()?;
    let nonce: String = words.next()?.chars().take_while(char::is_ascii_hexdigit).collect();
    (nonce.len() == 16).then_some(Tick { number, nonce })
}

/// What a job's output proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuity {
    /// The nonce, the same from the beginning to the end.
    pub nonce: String,
    /// The first tick after each restore.
    pub resumed_at: Vec<u64>,
    /// How many ticks were computed again, because they came after the restored generation.
    pub again: u64,
    /// The last tick.
    pub last: u64,
}

/// Checks the ticks of a member, one list for each of its incarnations in their order: no gap, no
/// repetition, and each restore goes on inside what was computed before, with the same nonce. (A cold
/// start shows by its nonce; a generation may well be older than the first tick.)
pub fn continuity(runs: &[Vec<Tick>]) -> Result<Continuity> {
    let mut runs = runs.iter().filter(|run| !run.is_empty());
    let first = runs.next().context("no output at all")?;
    ensure!(first[0].number == 1, "the first tick is {}", first[0].number);
    let mut seen = Continuity { nonce: first[0].nonce.clone(), resumed_at: vec![], again: 0, last: 0 };
    for run in std::iter::once(first).chain(runs) {
        let start = run[0].number;
        if seen.last > 0 {
            ensure!(start <= seen.last + 1, "gap: tick {} came after tick {}", start, seen.last);
            seen.resumed_at.push(start);
            seen.again += seen.last + 1 - start;
        }
        for (expected, tick) in (start..).zip(run) {
            ensure!(tick.number == expected, "tick {} came instead of tick {expected}", tick.number);
            ensure!(tick.nonce == seen.nonce, "nonce {} instead of {} at tick {expected}", tick.nonce, seen.nonce);
            seen.last = expected;
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(numbers: std::ops::RangeInclusive<u64>) -> Vec<Tick> {
        numbers.map(|number| Tick { number, nonce: "00ff00ff00ff00ff".into() }).collect()
    }

    #[test]
    fn ticks_are_found_in_any_line() {
        let wanted = Tick { number: 12, nonce: "00ff00ff00ff00ff".into() };
        assert_eq!(tick("tick 12 00ff00ff00ff00ff"), Some(wanted.clone()));
        assert_eq!(tick(r#"{"message":"tick 12 00ff00ff00ff00ff"}"#), Some(wanted));
        assert_eq!(tick("tick 12 00ff"), None);
        assert_eq!(tick("ticking"), None);
    }

    #[test]
    fn a_restore_goes_on_inside_what_was_computed() {
        let seen = continuity(&[run(1..=10), vec![], run(8..=20), run(21..=30)]).unwrap();
        assert_eq!((seen.resumed_at, seen.again, seen.last), (vec![8, 21], 3, 30));
    }

    #[test]
    fn gaps_repetitions_and_restarts_are_seen() {
        for wrong in [
            vec![run(1..=10), run(12..=20)],
            vec![[run(1..=5), run(5..=9)].concat()],
            vec![[run(1..=5), run(7..=9)].concat()],
            vec![run(2..=5)],
            vec![vec![]],
        ] {
            assert!(continuity(&wrong).is_err(), "{wrong:?}");
        }
        for (mut other, changed) in [(run(5..=9), 2), (run(1..=9), 0)] {
            other[changed].nonce = "ff00ff00ff00ff00".into();
            assert!(continuity(&[run(1..=6), other]).is_err());
        }
    }
}
