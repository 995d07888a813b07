//! The way into a job's network from outside: an ssh server that connects to the job's members and does
//! nothing else. It knows keys, names and addresses; no job, no guest, no lease.
//!
//! Whoever has one of the keys may connect to any port of any member. There are no shells, commands,
//! files, agents, or connections the other way.
//!
//! The protocol is russh's: people come with the ssh they have (`-J`), and OpenSSH's server would need accounts
//! and programs on the node. The algorithms are those that russh prefers, so that they follow its releases; none
//! is added for old clients, and its feature `rsa` is there for people's keys.

mod visitor;

use std::{
    io,
    net::{Ipv4Addr, Shutdown},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use russh::{
    MethodKind, MethodSet,
    keys::PublicKey,
    server::{self, Config},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use self::visitor::Visitor;
use crate::driver::{agent::HostKey, network::Door};

/// Connections at once.
const VISITORS: usize = 64;
/// Those of them that have not shown a key yet.
const STRANGERS: usize = 16;
/// Connections to members at once.
const CHANNELS: usize = 256;
/// Time to show a key.
const GRACE: Duration = Duration::from_secs(20);
/// Keys and other ways that may be tried in a connection.
const ATTEMPTS: usize = 10;
/// A connection over which nothing goes for so long is ended.
const IDLE: Duration = Duration::from_secs(3600);
/// Between two signs of life; three that are missing end a connection.
const BEAT: Duration = Duration::from_secs(30);
/// Bytes on their way to a member.
const WINDOW: u32 = 1 << 20;
/// After a failure to accept, as when no files can be opened.
const PAUSE: Duration = Duration::from_millis(200);

/// A member as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its names.
    pub(crate) names: Vec<String>,
    /// Its address.
    pub(crate) address: Ipv4Addr,
}

/// The server.
pub(crate) struct Jump {
    config: Arc<Config>,
    way: Arc<Way>,
    strangers: Arc<Semaphore>,
    visitors: Arc<Semaphore>,
}

/// What all connections share.
struct Way {
    /// Of the job, for people.
    name: String,
    keys: Vec<PublicKey>,
    targets: Vec<Target>,
    door: Arc<Door>,
    channels: Arc<Semaphore>,
}

/// What a connection holds while it lasts.
struct Held {
    _visitor: OwnedSemaphorePermit,
    /// Until it has shown a key.
    stranger: Option<OwnedSemaphorePermit>,
}

impl Jump {
    /// Lets those in who have one of `keys`, as `authorized_keys` has them; lines that are none are passed
    /// over. `name` is the job's, for people.
    pub(crate) fn new(name: &str, key: &HostKey, keys: &[String], targets: Vec<Target>, door: Arc<Door>) -> Self {
        let keys = keys.iter().filter_map(|line| {
            let key = PublicKey::from_openssh(line.trim());
            key.inspect_err(|error| tracing::warn!(%error, "a key of access.sshKeys cannot be used")).ok()
        });
        let config = Config {
            server_id: russh::SshId::Standard("SSH-2.0-vmdeploy".into()),
            methods: MethodSet::from(&[MethodKind::PublicKey][..]),
            auth_rejection_time: Duration::from_secs(1),
            auth_rejection_time_initial: Some(Duration::ZERO),
            keys: vec![key.private()],
            max_auth_attempts: ATTEMPTS,
            inactivity_timeout: Some(IDLE),
            keepalive_interval: Some(BEAT),
            keepalive_max: 3,
            window_size: WINDOW,
            nodelay: true,
            ..Config::default()
        };
        Self {
            config: Arc::new(config),
            way: Arc::new(Way {
                name: name.into(),
                keys: keys.collect(),
                targets,
                door,
                channels: Arc::new(Semaphore::new(CHANNELS)),
            }),
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            visitors: Arc::new(Semaphore::new(VISITORS)),
        }
    }

    /// Serves for as long as it is polled; connections go on in tasks of the same runtime.
    pub(crate) async fn serve(&self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let Some(held) = self.admit() else {
                        tracing::warn!(%from, "too many connections: one more is refused");
                        continue;
                    };
                    tokio::spawn(visit(self.config.clone(), stream, Visitor::new(self.way.clone(), held, from)));
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn admit(&self) -> Option<Held> {
        let visitor = self.visitors.clone().try_acquire_owned().ok()?;
        let stranger = self.strangers.clone().try_acquire_owned().ok()?;
        Some(Held { _visitor: visitor, stranger: Some(stranger) })
    }
}

/// Sees one connection to its end. One that shows no key in time is cut, however far it is.
async fn visit(config: Arc<Config>, stream: TcpStream, visitor: Visitor) -> io::Result<()> {
    let stream = stream.into_std()?;
    let (cut, known) = (stream.try_clone()?, visitor.known());
    let stream = TcpStream::from_std(stream)?;
    let mut served = pin!(async { server::run_stream(config, stream, visitor).await?.await });
    tokio::select! {
        _ = &mut served => return Ok(()),
        late = tokio::time::timeout(GRACE, known.cancelled()) => if late.is_err() {
            cut.shutdown(Shutdown::Both)?;
        }
    }
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection has ended early");
    }
    Ok(())
}

#[cfg(test)]
#[path = "jump_tests.rs"]
mod tests;
