//! The way in to the job's members, where this agent serves it: on a thread and a runtime of its own, so
//! that whoever comes in there delays nothing else.

use std::{sync::Arc, time::Duration};

use tokio::net::TcpListener;

use super::Supervisor;
use crate::driver::jump::{Jump, Target};

/// What is said when the port is taken; the rest of a problem is somebody else's.
const CLOSED: &str = "the way in to the members cannot be served";
/// Between two tries to get the port.
const AGAIN: Duration = Duration::from_secs(5);

impl Supervisor {
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
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return own.problem(&format!("{CLOSED}: {error}")),
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
            self.problem(&format!("{CLOSED}: {error}"));
        }
    }

    async fn let_in(&self, jump: &Jump, at: std::net::SocketAddr) {
        loop {
            match TcpListener::bind(at).await {
                Ok(listener) => {
                    self.view.change(|facts| {
                        facts.guest.problem.take_if(|problem| problem.starts_with(CLOSED));
                    });
                    tracing::info!(%at, "the way in to the members is open");
                    return jump.serve(listener).await;
                }
                // an agent before this one may still be on its way out
                Err(error) => self.problem(&format!("{CLOSED} at {at}: {error}")),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Instant};

    use tokio::{io::AsyncReadExt as _, net::TcpStream};

    use super::*;
    use crate::{
        agent::supervisor::{
            testing::{FileStore, config},
            vm::Paths,
        },
        clock::Clock,
        driver::{
            agent::{MasterConfig, MemberNetwork, NetworkMember},
            jump::key::HostKey,
            network::Door,
        },
    };

    async fn until(what: &str, so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !so() {
            assert!(begun.elapsed() < Duration::from_secs(20), "waiting for {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn a_way_in_whose_port_is_taken_is_opened_later_and_ends_with_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = taken.local_addr().unwrap();
        let mut config = config(dir.path());
        config.master = Some(MasterConfig { listen, host_key: HostKey::of_job("secret", &config.job) });
        let member = NetworkMember {
            name: "count-0".into(),
            address: Ipv4Addr::LOCALHOST,
            mac: "02:76:c6:12:00:01".into(),
            door_mac: None,
            node: Ipv4Addr::LOCALHOST.into(),
        };
        config.network = Some(MemberNetwork {
            subnet: "127.0.0.0/28".parse().unwrap(),
            vni: 7,
            port: 14789,
            mtu: 1450,
            door: Ipv4Addr::new(127, 0, 0, 9),
            door_mac: "02:76:c6:12:00:09".into(),
            members: vec![member],
        });
        let paths = Paths { vm: dir.path().into(), cache: dir.path().join("cache") };
        let store = Arc::new(FileStore::new(&dir.path().join("store")));
        let supervisor = Supervisor::new(config, paths, store, Clock::system(), None);
        let problem = || supervisor.view.read(|facts| facts.guest.problem.clone()).unwrap_or_default();
        supervisor.serve_master();
        assert_eq!(problem(), "", "there is no network yet");
        supervisor.door.set(Arc::new(Door::here())).unwrap();
        supervisor.serve_master();
        until("a word about the port", || problem().starts_with(CLOSED)).await;
        drop(taken);
        until("the port", || problem().is_empty()).await;
        let mut stream = TcpStream::connect(listen).await.unwrap();
        let mut version = [0; 16];
        stream.read_exact(&mut version).await.unwrap();
        assert_eq!(&version, b"SSH-2.0-vmdeploy");
        supervisor.stop.cancel();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "it outlives its agent");
        assert!(TcpStream::connect(listen).await.is_err());
    }
}
