//! The way in to the job's members, where this agent serves it: on a thread and a runtime of its own, so
//! that whoever comes in there delays nothing else.

use std::{sync::Arc, time::Duration};

use tokio::net::TcpListener;

use super::{Supervisor, load::LoadError, problems::Problem};
use crate::{
    agent::jump::{Jump, Target},
    driver::agent::{LeaseState, VmState},
};

/// What is said when the port is taken.
const CLOSED: &str = "the way in to the members cannot be served";
/// How far it stands back behind all else in the agent.
const NICE: i32 = 10;
/// Between two tries to get the port.
const AGAIN: Duration = Duration::from_secs(5);

impl Supervisor {
    /// What a master on a node of its own does in place of a VM: joins the job's network, once the lease is
    /// held (safety A4), and serves.
    pub(super) async fn stand_by(self: &Arc<Self>) -> Result<(), LoadError> {
        self.chain.gives_nothing();
        self.view.until(|facts| facts.lease == LeaseState::Held).await;
        // nobody is at the other end of the guest's card
        drop(self.join_network().await?);
        self.serve_master();
        self.view.change(|facts| facts.set_vm(VmState::Loaded));
        Ok(())
    }

    /// Serves the way in, if it is this agent's to serve, until everything ends.
    pub(super) fn serve_master(self: &Arc<Self>) {
        let (Some(master), Some(network), Some(door)) =
            (self.config.master.clone(), &self.config.network, self.door.get())
        else {
            return;
        };
        let targets = network.members.iter().enumerate().map(|(index, member)| Target {
            names: vec![member.name.clone(), format!("member-{index}")],
            address: member.address,
        });
        let (name, keys) = (&self.config.job_name, &self.config.ssh_keys);
        let jump = Jump::new(name, &master.host_key, keys, targets.collect(), door.clone());
        let own = self.clone();
        let serve = move || {
            // captures and the guest come first, also where a node gives an agent little; it works without that
            let _ = rustix::process::nice(NICE);
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return own.problem(Problem::WayIn, &format!("{CLOSED}: {error}")),
            };
            runtime.block_on(async {
                tokio::select! {
                    () = own.stop.cancelled() => {}
                    () = own.let_in(&jump, master.listen) => {}
                }
            });
        };
        // the guest is worth more than a way to it
        if let Err(error) = std::thread::Builder::new().name("master".into()).spawn(serve) {
            self.problem(Problem::WayIn, &format!("{CLOSED}: {error}"));
        }
    }

    async fn let_in(&self, jump: &Jump, at: std::net::SocketAddr) {
        loop {
            match TcpListener::bind(at).await {
                Ok(listener) => {
                    self.problem_ends(&Problem::WayIn);
                    tracing::info!(%at, "the way in to the members is open");
                    return jump.serve(listener).await;
                }
                // an agent before this one may still be on its way out
                Err(error) => self.problem(Problem::WayIn, &format!("{CLOSED} at {at}: {error}")),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, SocketAddr},
        time::Instant,
    };

    use tokio::{io::AsyncReadExt as _, net::TcpStream};

    use super::*;
    use crate::{
        agent::supervisor::{
            Orders,
            testing::{Making, config},
        },
        driver::{
            agent::{
                Authority, CaptureOrder, ExecOrder, GuestAccess as _, HostKey, LeaveCode, MasterConfig, MasterPlace,
                MemberNetwork, NetworkMember, NodeAgent as _, Role,
            },
            network::Door,
        },
    };

    async fn until(what: &str, so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !so() {
            assert!(begun.elapsed() < Duration::from_secs(60), "waiting for {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// An agent of a job with one member, which is this machine, as is its node.
    fn agent(dir: &tempfile::TempDir, listen: SocketAddr, role: Role) -> Arc<Supervisor> {
        let mut config = config(dir.path());
        config.master = Some(MasterConfig { listen, host_key: HostKey::of_job("secret", &config.job) });
        (config.role, config.member) = (role, u32::from(role == Role::Master));
        let member = NetworkMember {
            name: "count-0".into(),
            address: Ipv4Addr::LOCALHOST,
            mac: "02:76:c6:12:00:01".into(),
            door_mac: None,
            node: Ipv4Addr::LOCALHOST.into(),
        };
        let door_mac = "02:76:c6:12:00:09".to_owned();
        config.network = Some(MemberNetwork {
            subnet: "198.18.0.0/28".parse().unwrap(),
            vni: 7,
            port: 14790,
            mtu: 1450,
            door: Ipv4Addr::new(198, 18, 0, 9),
            door_mac: door_mac.clone(),
            members: vec![member],
            master: (role == Role::Master).then(|| MasterPlace { mac: door_mac, node: Ipv4Addr::LOCALHOST.into() }),
        });
        Making::below(dir.path()).config(config).vm_in(dir.path()).make()
    }

    async fn is_served(at: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let mut version = [0; 16];
        stream.read_exact(&mut version).await.unwrap();
        assert_eq!(&version, b"SSH-2.0-vmdeploy");
        stream
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_master_of_its_own_obeys_as_a_member_but_has_nothing_to_capture() {
        let dir = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let supervisor = agent(&dir, free, Role::Master);
        let orders = Orders(supervisor.clone());
        let vm = || supervisor.view.read(|facts| facts.vm.clone());
        tokio::spawn(supervisor.clone().live());
        let authority = Authority { epoch: 1, incarnation: 1 };
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(vm(), VmState::None, "a4: nothing is made before the lease is held");
        assert!(orders.go(authority).await.is_err());
        supervisor.view.change(|facts| facts.lease = LeaseState::Held);
        until("the network", || vm() == VmState::Loaded).await;
        until("the way in", || std::net::TcpStream::connect(free).is_ok()).await;
        let mut stream = is_served(free).await;
        assert!(orders.go(Authority { epoch: 1, incarnation: 2 }).await.is_err(), "a9: it is of another incarnation");
        for _ in 0..2 {
            orders.go(authority).await.unwrap();
            assert_eq!(vm(), VmState::Running);
        }
        let capture = CaptureOrder { authority, generation: 1, nonce: "n".into(), resume: true };
        assert!(orders.prepare(&capture).await.is_err() && orders.stop(&capture).await.is_err());
        assert!(orders.exec(&ExecOrder { command: vec!["id".into()], timeout: 1 }).await.is_err());
        assert_eq!(vm(), VmState::Running);
        orders.leave(authority, LeaveCode::KeepSlot).await.unwrap();
        assert!(matches!(vm(), VmState::Gone { .. }));
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "it outlives its agent");
    }

    #[tokio::test]
    async fn a_way_in_whose_port_is_taken_is_opened_later_and_ends_with_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = taken.local_addr().unwrap();
        let supervisor = agent(&dir, listen, Role::Member);
        let problem = || supervisor.view.render().guest.problem.unwrap_or_default();
        supervisor.serve_master();
        assert_eq!(problem(), "", "there is no network yet");
        supervisor.door.set(Arc::new(Door::here())).unwrap();
        supervisor.serve_master();
        until("a word about the port", || problem().starts_with(CLOSED)).await;
        drop(taken);
        until("the port", || problem().is_empty()).await;
        let mut stream = is_served(listen).await;
        supervisor.stop.cancel();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "it outlives its agent");
        assert!(TcpStream::connect(listen).await.is_err());
    }
}
