//! Listening to agents in memory, in simulated time.

use super::*;
use crate::driver::agent::fake::{FakeAgent, FakeAgents};

fn uid() -> JobUid {
    "3f2b8a10-9c1d-4e5f-8a7b-112233445566".into()
}

fn address(member: u32) -> AgentAddress {
    AgentAddress { endpoint: ([127, 0, 0, 1], 17700).into(), job: uid(), member, incarnation: 1 }
}

struct World {
    clock: Clock,
    agents: FakeAgents,
    hub: Arc<AgentHub>,
}

impl World {
    fn new() -> Self {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        let agents = FakeAgents::default();
        let hub = Arc::new(AgentHub::new(Arc::new(agents.clone()), clock.clone()));
        Self { clock, agents, hub }
    }

    fn agent(&self, member: u32) -> Arc<FakeAgent> {
        self.agents.add(FakeAgent::loaded(uid(), member, 1, Duration::from_secs(2), self.clock.clone()))
    }

    async fn wait(&self, seconds: u64) {
        for _ in 0..seconds {
            self.clock.advance(SignedDuration::from_secs(1));
            sleep(Duration::from_secs(1)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_matters_is_news() {
    let world = World::new();
    let agent = world.agent(0);
    let mut news = world.hub.subscribe();
    world.hub.listen(&uid(), &[address(0)]);
    world.wait(1).await;
    assert_eq!(news.recv().await, Ok(uid()), "the first word is news");
    agent.change(|state| state.ran = 7.0);
    world.wait(1).await;
    agent.change(|state| state.guest.last_line = Some("42".into()));
    world.wait(1).await;
    assert!(news.try_recv().is_err());
    let heard = world.hub.heard(&address(0)).unwrap().last.unwrap();
    assert_eq!((heard.1.guest.last_line.as_deref(), heard.0), (Some("42"), world.clock.now()));
    agent.change(|state| state.notice = Some(Duration::ZERO));
    world.wait(1).await;
    assert_eq!(news.try_recv(), Ok(uid()));
    agent.change(|state| state.notice = Some(Duration::from_secs(3)));
    world.wait(1).await;
    assert!(news.try_recv().is_err(), "a notice gets older, that is all");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_comes_later_is_heard() {
    let world = World::new();
    world.hub.listen(&uid(), &[address(0)]);
    world.wait(3).await;
    assert_eq!(world.hub.state(&address(0)), Fact::Unknown { since: Timestamp::UNIX_EPOCH });
    world.agent(0);
    world.wait(2).await;
    assert!(world.hub.state(&address(0)).known().is_some());
}

#[tokio::test(start_paused = true)]
async fn those_that_are_not_wanted_are_forgotten() {
    let world = World::new();
    let (_zero, _one) = (world.agent(0), world.agent(1));
    world.hub.listen(&uid(), &[address(0), address(1)]);
    world.wait(1).await;
    world.hub.listen(&uid(), &[address(1)]);
    assert_eq!(world.hub.heard(&address(0)), None);
    assert!(world.hub.heard(&address(1)).unwrap().last.is_some());
    world.hub.listen(&"another".into(), &[]);
    assert!(world.hub.heard(&address(1)).is_some(), "another job's visit changes nothing");
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_made_again() {
    let world = World::new();
    let agent = world.agent(0);
    world.hub.listen(&uid(), &[address(0)]);
    world.wait(1).await;
    agent.set_reachable(false);
    world.wait(20).await;
    let silent = world.hub.heard(&address(0)).unwrap();
    assert!(silent.last.is_some_and(|(at, _)| world.clock.now().duration_since(at).as_secs() >= 20));
    agent.set_reachable(true);
    world.wait(2).await;
    let heard = world.hub.heard(&address(0)).unwrap();
    assert!(heard.last.is_some_and(|(at, _)| world.clock.now().duration_since(at).as_secs() <= 2));
}

#[rstest::rstest]
#[case::for_long(600)]
#[case::for_less_than_any_isolation(6)]
#[tokio::test(start_paused = true)]
async fn b13_silence_counts_only_while_this_process_listened(#[case] stood_still: i64) {
    let world = World::new();
    let hub = world.hub.clone();
    tokio::spawn(async move { hub.run().await });
    let agent = world.agent(0);
    world.wait(1000).await;
    world.hub.listen(&uid(), &[address(0)]);
    assert_eq!(world.hub.heard(&address(0)).unwrap().listening, world.clock.now(), "not from stored times");
    let since = world.clock.now();
    world.wait(30).await;
    assert_eq!(world.hub.heard(&address(0)).unwrap().listening, since);
    // the process stands still while the world goes on
    agent.set_reachable(false);
    world.clock.advance(SignedDuration::from_secs(stood_still));
    assert_eq!(world.hub.heard(&address(0)).unwrap().listening, world.clock.now(), "even before it knows");
    sleep(Duration::from_secs(2)).await;
    world.wait(5).await;
    let listening = world.hub.heard(&address(0)).unwrap().listening;
    assert!(world.clock.now().duration_since(listening).as_secs() <= 7);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_loaded_gets_on_with_every_byte() {
    let world = World::new();
    let agent = world.agent(0);
    world.hub.listen(&uid(), &[address(0)]);
    agent.change(|state| state.vm = VmState::Fetching { done: 1, total: 9 });
    world.wait(2).await;
    let moved = || world.hub.heard(&address(0)).unwrap().moved;
    let first = moved();
    world.wait(30).await;
    assert_eq!(moved(), first, "heartbeats alone are no progress");
    let mut news = world.hub.subscribe();
    agent.change(|state| state.vm = VmState::Fetching { done: 2, total: 9 });
    world.wait(1).await;
    assert_eq!(moved(), Some(world.clock.now()));
    assert!(news.try_recv().is_err(), "and nobody is woken for it");
    for (done, told) in [(0_u64, true), (100, false), (300, true), (400, false)] {
        agent.change(|state| state.vm = VmState::Fetching { done: done << 20, total: 1 << 30 });
        world.wait(1).await;
        assert_eq!(news.try_recv().is_ok(), told, "{done} MiB: of much each quarter is told");
    }
}
