//! A process is killed at a moment of a capture, its transfer or its publication that a seed chooses: after every one
//! the newest complete generation is at least the one before, its hashes match, and all members go on from it.
//!
//! A seed is given again by `VMDEPLOY_SEED`.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use e2e::agents::{Agent, COUNT, Guests, JOB, LIMIT, World, capture, kill, program, reached};
use futures::future::try_join_all;
use vmdeploy::{
    driver::repository::Repository as _,
    names::{Generation, Identity},
};

const MEMBERS: u32 = 2;
/// A repository is away for this long.
const AWAY: Duration = Duration::from_millis(700);
/// What goes on once a member is dead comes to nothing within this time.
const IN_VAIN: Duration = Duration::from_secs(2);

/// Who is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Repository,
    /// Its fence, its supervisor, or its QEMU.
    Agent {
        member: u32,
        process: usize,
    },
    Qemu {
        member: u32,
    },
}

/// What a seed says: the same for ever.
struct Chance(u64);

impl Chance {
    /// A part of 1.
    fn next(&mut self) -> f64 {
        self.0 += 1;
        let hash = blake3::hash(&self.0.to_le_bytes());
        f64::from(hash.as_bytes().first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))) / f64::from(u32::MAX)
    }

    fn below(&mut self, count: u32) -> u32 {
        ((self.next() * f64::from(count)) as u32).min(count - 1)
    }

    fn victim(&mut self) -> Victim {
        let (kind, member, process) = (self.below(4), self.below(MEMBERS), self.below(2) as usize);
        match kind {
            0 | 1 => Victim::Repository,
            2 => Victim::Agent { member, process },
            _ => Victim::Qemu { member },
        }
    }
}

/// Kills it. Whether a member is lost by that.
fn strike(world: &World, agents: &[Agent], victim: Victim) -> Result<bool> {
    match victim {
        Victim::Repository => world.kill_repository()?,
        Victim::Agent { member, process } => {
            let all = agents[member as usize].processes()?;
            kill(all[process % all.len()])?;
        }
        Victim::Qemu { member } => agents[member as usize].kill_qemu()?,
    }
    Ok(!matches!(victim, Victim::Repository))
}

/// Captures and stores a generation, as operator and kget do: what a repository that is away refuses is tried again.
async fn stored(world: &World, agents: &[Agent], generation: Generation) -> Result<()> {
    capture(agents, generation, true).await?;
    let begun = Instant::now();
    loop {
        match world.store(agents, generation).await {
            Err(error) if begun.elapsed() < Duration::from_secs(60) => {
                eprintln!("stored again: {error:#}");
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            over => return over.map(drop),
        }
    }
}

/// The newest complete generation, once the repository answers.
async fn newest(world: &World) -> Result<Generation> {
    let repository = world.repository(&Identity::Kget)?;
    let ask = async || Ok(repository.content(&JOB.into()).await.ok());
    let content = e2e::testbed::until("the repository", LIMIT, ask).await?;
    ensure!(content.damaged.is_empty(), "{:?}", content.damaged);
    Ok(content.generations.last().context("nothing is complete")?.generation)
}

/// All that is complete is whole, as the command for people says.
fn verified(world: &World) -> Result<()> {
    let root = world.root().join("repository");
    let said = Command::new(program()?).args(["repository", "verify", "--root"]).arg(root).output()?;
    ensure!(
        said.status.success(),
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
    Ok(())
}

/// A job, over all its incarnations.
struct Life<'a> {
    world: &'a World,
    agents: Vec<Agent>,
    nonces: Vec<String>,
    incarnation: u32,
    generation: Generation,
    /// What a capture, its transfer and its publication take: less, the more of it the repository has.
    takes: Duration,
}

impl<'a> Life<'a> {
    async fn begin(world: &'a World) -> Result<Self> {
        let agents = world.loaded(1, None).await?;
        try_join_all(agents.iter().map(Agent::go)).await?;
        let nonces = reached(&agents, 10, LIMIT).await?.into_iter().map(|(_, nonce)| nonce).collect();
        stored(world, &agents, 1).await?;
        let begun = Instant::now();
        stored(world, &agents, 2).await?;
        Ok(Self { world, agents, nonces, incarnation: 1, generation: 2, takes: begun.elapsed() })
    }

    /// One death, and all that follows. Whether it came before the end of what it was to disturb.
    async fn round(&mut self, seed: u64) -> Result<bool> {
        let mut chance = Chance(seed.wrapping_mul(1000));
        let victim = chance.victim();
        let moment = self.takes.mul_f64(chance.next());
        eprintln!("seed {seed}: {victim:?} {} ms into generation {}", moment.as_millis(), self.generation + 1);
        let before = newest(self.world).await?;
        self.generation += 1;
        let (in_time, begun) = (AtomicBool::new(false), Instant::now());
        let death = async {
            tokio::time::sleep(moment).await;
            in_time.store(true, Ordering::SeqCst);
            if strike(self.world, &self.agents, victim)? {
                tokio::time::sleep(IN_VAIN).await;
                return anyhow::Ok(());
            }
            tokio::time::sleep(AWAY).await;
            self.world.start_repository()?;
            std::future::pending().await
        };
        let done = tokio::select! {
            done = stored(self.world, &self.agents, self.generation) => Some(done),
            died = death => { died?; None }
        };
        if !in_time.load(Ordering::SeqCst) {
            self.takes = begun.elapsed();
            eprintln!("seed {seed}: it was over before, after {} ms", self.takes.as_millis());
            strike(self.world, &self.agents, victim)?;
        }
        match (victim, done) {
            (Victim::Repository, done) => {
                done.context("the repository was waited for in vain")??;
                self.world.start_repository()?;
            }
            (_, Some(Err(error))) => eprintln!("generation {}: {error:#}", self.generation),
            (_, _) => {}
        }
        let complete = newest(self.world).await?;
        ensure!(complete >= before, "generation {before} was complete, and is not any more");
        if matches!(victim, Victim::Repository) {
            ensure!(complete == self.generation, "generation {} was published and is not there", self.generation);
        }
        verified(self.world)?;
        // one lost member is the job's loss
        self.agents.clear();
        self.incarnation += 1;
        self.agents = self.world.loaded(self.incarnation, Some(complete)).await?;
        try_join_all(self.agents.iter().map(Agent::go)).await?;
        let now = reached(&self.agents, 1, LIMIT).await?;
        ensure!(now.iter().map(|(_, nonce)| nonce).eq(&self.nonces), "{now:?}: the memory is another");
        let on = now.iter().map(|(at, _)| *at).max().unwrap_or_default() + 10;
        reached(&self.agents, on, LIMIT).await?;
        Ok(in_time.load(Ordering::SeqCst))
    }
}

async fn lives(world: &World, seeds: std::ops::Range<u64>) -> Result<()> {
    let given = std::env::var("VMDEPLOY_SEED").ok().map(|seed| seed.parse::<u64>()).transpose()?;
    let mut life = Life::begin(world).await?;
    let (mut rounds, mut in_time) = (0, 0);
    for seed in given.map_or(seeds, |seed| seed..seed + 1) {
        rounds += 1;
        in_time += u32::from(life.round(seed).await.with_context(|| format!("VMDEPLOY_SEED={seed}"))?);
    }
    // a single one that was asked for may come late
    ensure!(given.is_some() || 2 * in_time > rounds, "{in_time} deaths of {rounds} came in time");
    Ok(())
}

fn seeds(seeds: std::ops::Range<u64>) -> Result<()> {
    let world = World::new(Guests { members: MEMBERS, memory: "192Mi", script: COUNT }, None)?;
    world.nodes.at_the_switch(lives(&world, seeds))
}

#[ignore = "boots guests: e2e/test --e2e"]
#[test]
fn b7_whoever_dies_at_whatever_moment_the_newest_complete_generation_goes_on() -> Result<()> {
    // of every kind, and early enough where the machine does other things
    seeds(23..28)
}

mod hours {
    use super::*;

    #[ignore = "hours: e2e/test --all"]
    #[test]
    fn whoever_dies_at_each_of_a_hundred_moments() -> Result<()> {
        seeds(0..100)
    }
}
