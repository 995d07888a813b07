//! Four virtual machines in a ring of TCP connections are captured, killed and restored, round after round, and no
//! connection breaks; without the barrier it does.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use e2e::agents::{Agent, Guests, LIMIT, World, capture, reached};
use futures::future::{join_all, try_join_all};
use vmdeploy::driver::agent::AgentState;

/// Each member sends its number to the next one and waits for that of the one before, which must be the same: what
/// is in flight at the cut is of use to nobody unless all were cut at one moment.
const RING: &str = r#"cat > /tmp/ring.pl <<'END'
use strict; use IO::Socket::INET; $| = 1;
my ($who, $count) = @ARGV;
open(my $r, '<', '/dev/urandom') or die; read($r, my $bytes, 8); my $nonce = unpack 'H*', $bytes;
my $l = IO::Socket::INET->new(LocalPort => 7000, Listen => 1, ReuseAddr => 1) or die "listen: $!";
my $to; my $next = ($who + 1) % $count;
until ($to = IO::Socket::INET->new(PeerAddr => "member-$next", PeerPort => 7000, Timeout => 2)) { sleep 1 }
my $from = $l->accept or die "accept: $!";
my $filling = 'x' x 2000;
for (my $n = 1; ; $n++) {
  print $to "$n $filling\n" or die "sent at $n: $!"; $to->flush;
  my $got = <$from>; die "lost at $n" unless defined $got && $got eq "$n $filling\n";
  print "$n $nonce\n"; select undef, undef, undef, 0.02;
}
END
exec perl /tmp/ring.pl $(hostname | sed 's/.*-//') 4"#;

const MEMBERS: u32 = 4;
/// Numbers that must go round after a restore.
const FURTHER: u64 = 25;
/// Between two guests that are let run.
const STAGGER: Duration = Duration::from_millis(200);
/// A ring that stands still for this long is broken: TCP has tried again several times.
const BROKEN: Duration = Duration::from_secs(25);

/// Eight virtual machines at a time would be too many.
static TURN: Mutex<()> = Mutex::new(());

fn world() -> Result<(World, MutexGuard<'static, ()>)> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Ok((World::new(Guests { members: MEMBERS, memory: "192Mi", script: RING }, None)?, turn))
}

/// Boots, two at a time.
async fn ring(world: &World) -> Result<Vec<Agent>> {
    let agents = world.loaded(1, None).await?;
    for pair in agents.chunks(2) {
        try_join_all(pair.iter().map(Agent::go)).await?;
        try_join_all(pair.iter().map(|agent| agent.until("the guest's agent", |state| state.guest.answers))).await?;
    }
    reached(&agents, 5, LIMIT).await?;
    Ok(agents)
}

/// One round: captured as one generation, killed, restored. Where the ring goes on from, if it does.
async fn round(world: &World, agents: Vec<Agent>, number: u32, barrier: bool) -> Result<(Vec<Agent>, Option<u64>)> {
    capture(&agents, number, barrier).await?;
    world.store(&agents, number).await?;
    for agent in &agents {
        agent.kill_qemu()?;
    }
    try_join_all(agents.iter().map(|agent| agent.gone(LIMIT))).await?;
    drop(agents);
    let restored = world.loaded(number + 1, Some(number)).await?;
    // in both orders, one after the other
    let mut order: Vec<&Agent> = restored.iter().collect();
    if number.is_multiple_of(2) {
        order.reverse();
    }
    for agent in order {
        agent.go().await?;
        tokio::time::sleep(STAGGER).await;
    }
    // nothing is printed before the first number after the restore
    let counted = join_all(restored.iter().map(|agent| agent.counts_to(1, BROKEN))).await;
    Ok((restored, counted.into_iter().filter_map(|one| Some(one.ok()?.0)).max()))
}

async fn rounds(world: &World, count: u32) -> Result<()> {
    let mut agents = ring(world).await?;
    let nonces = |all: &[(u64, String)]| all.iter().map(|(_, nonce)| nonce.clone()).collect::<Vec<_>>();
    let begun = nonces(&reached(&agents, 5, LIMIT).await?);
    for number in 1..=count {
        let first;
        (agents, first) = round(world, agents, number, true).await.with_context(|| format!("round {number}"))?;
        let first = first.with_context(|| format!("round {number}: nobody goes on"))?;
        let now = reached(&agents, first + FURTHER, BROKEN).await.with_context(|| format!("round {number}"))?;
        ensure!(nonces(&now) == begun, "round {number}: {now:?} instead of {begun:?}");
        eprintln!("round {number} of {count}: at {:?}", now.iter().map(|(at, _)| at).max());
    }
    Ok(())
}

#[ignore = "boots guests: e2e/test --e2e"]
#[test]
fn b7_connections_outlive_captures_kills_and_restores_in_both_orders() -> Result<()> {
    let (world, _turn) = world()?;
    world.nodes.at_the_switch(rounds(&world, 2))
}

/// What the barrier is for.
#[ignore = "boots guests: e2e/test --e2e"]
#[test]
fn b7_without_the_barrier_they_break() -> Result<()> {
    let (world, _turn) = world()?;
    world.nodes.at_the_switch(async {
        let agents = ring(&world).await?;
        let (agents, first) = round(&world, agents, 1, false).await?;
        if let Some(first) = first {
            let broken = reached(&agents, first + FURTHER, BROKEN).await.is_err();
            ensure!(broken, "members that were cut at moments of their own go on as if nothing had been");
        }
        // it is the ring that stands still, and not its guests
        let lives = |state: &AgentState| state.guest.answers || state.guest.exit_code.is_some();
        try_join_all(agents.iter().map(|agent| agent.until("the guest's agent", lives))).await?;
        Ok(())
    })
}

mod hours {
    use super::*;

    #[ignore = "hours: e2e/test --all"]
    #[test]
    fn connections_outlive_fifty_rounds() -> Result<()> {
        let (world, _turn) = world()?;
        world.nodes.at_the_switch(rounds(&world, 50))
    }
}
