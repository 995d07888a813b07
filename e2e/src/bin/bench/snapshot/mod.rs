//! Snapshots of VMs of 256 MiB that write 4 MB/s of what does not compress: how long they stop them, what they cost,
//! and how soon one is back. Agents and repository run on namespaces of this machine, under TCG; what a second
//! snapshot takes beside programs for backups, and what kubectl would show of the pauses, is measured on the test bed.

mod cost;
mod evacuate;
mod pause;
mod restore;
mod savevm;
mod stored;

use anyhow::Result;
use clap::ValueEnum;
use e2e::{TestBed, agents::Guests};

use crate::report::{Figure, Measured};

/// Writes 0.4 MB of random bytes ten times a second, round and round in 64 MB. Each line has a number, a nonce, and
/// the longest time from one line to the next since the fiftieth, in milliseconds, as the guest's clock has it.
const WRITER: &str = r#"cat > /tmp/write.pl <<'END'
use strict; use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC); $| = 1; my $size = 64_000_000; my $piece = 400_000;
open(my $r, '<:raw', '/dev/urandom') or die; read($r, my $nonce, 8); $nonce = unpack 'H*', $nonce;
my $memory = ''; while (length $memory < $size) { read($r, my $b, 4_000_000); $memory .= $b; }
my ($at, $n, $last, $gap) = (0, 0, clock_gettime(CLOCK_MONOTONIC), 0);
while (1) {
  read($r, my $b, $piece); substr($memory, $at, $piece) = $b; $at = ($at + $piece) % $size; $n++;
  my $now = clock_gettime(CLOCK_MONOTONIC); my $was = int(1000 * ($now - $last)); $last = $now;
  $gap = $was if $n > 50 && $was > $gap;
  print "$n $nonce $gap\n"; select undef, undef, undef, 0.08;
}
END
exec perl /tmp/write.pl"#;

fn writers(members: u32) -> Guests {
    Guests { members, memory: "256Mi", script: WRITER }
}

/// A part of what is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// How long a capture stops a guest.
    Pauses,
    /// How soon a guest is back.
    Restores,
    /// What captures cost a guest.
    Costs,
    /// How soon members that leave are safe.
    Evacuate,
    /// What the second snapshot takes, on the test bed.
    Stored,
}

type Measure = fn() -> Result<Vec<Figure>>;

/// Measures all, or only one part. The figures from the test bed are left out, and said to be, where none is in the
/// environment.
pub(crate) async fn measure(only: Option<Part>) -> Result<Measured> {
    let parts: [(Part, Measure); 4] = [
        (Part::Pauses, pause::measure),
        (Part::Restores, restore::measure),
        (Part::Costs, cost::measure),
        (Part::Evacuate, evacuate::measure),
    ];
    let wanted = |part: Part| only.is_none_or(|only| only == part);
    let mut measured = Measured { figures: Vec::new(), failed: Vec::new() };
    for (part, measure) in parts.into_iter().filter(|(part, _)| wanted(*part)) {
        eprintln!("{part:?} ...");
        match tokio::task::spawn_blocking(measure).await? {
            Ok(figures) => measured.figures.extend(figures),
            Err(error) => measured.failed.push(format!("{part:?}: {error:#}")),
        }
    }
    if !wanted(Part::Stored) {
        return Ok(measured);
    }
    let Some(bed) = TestBed::find().await? else {
        measured.failed.push("what is stored: no test bed in the environment (testbed env)".into());
        return Ok(measured);
    };
    let stored = stored::measure(&bed).await?;
    measured.figures.extend(stored.figures);
    measured.failed.extend(stored.failed);
    Ok(measured)
}
