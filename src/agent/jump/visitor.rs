//! One connection to the way in: which key it shows, and what it asks for.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use russh::{
    Channel, ChannelId, ChannelOpenFailure, Pty,
    keys::PublicKey,
    server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey},
};
use tokio_util::sync::CancellationToken;

use super::{Held, Way};

/// Time for a member to accept a connection.
const ACCEPT: Duration = Duration::from_secs(10);
/// Bytes on their way, in each direction.
const BUFFER: usize = 32 << 10;
/// Sessions, which are only there to be refused, in a connection.
const SESSIONS: u32 = 8;
/// Extended data that is an error's text (RFC 4254).
const STDERR: u32 = 1;
/// The protocol's numbers for refusals (RFC 4254).
mod code {
    pub(super) const PROHIBITED: u32 = 1;
    pub(super) const CONNECT_FAILED: u32 = 2;
    pub(super) const SHORTAGE: u32 = 4;
}

/// Whoever is connected.
pub(super) struct Visitor {
    way: Arc<Way>,
    held: Held,
    from: SocketAddr,
    known: CancellationToken,
    sessions: u32,
}

impl Visitor {
    pub(super) fn new(way: Arc<Way>, held: Held, from: SocketAddr) -> Self {
        Self { way, held, from, known: CancellationToken::new(), sessions: 0 }
    }

    /// Is cancelled once a key was shown.
    pub(super) fn known(&self) -> CancellationToken {
        self.known.clone()
    }

    fn admits(&self, key: &PublicKey) -> Auth {
        // the comment of a key is nobody's name
        if self.way.keys.iter().any(|own| own.key_data() == key.key_data()) { Auth::Accept } else { Auth::reject() }
    }

    /// Says on a session what this server is for, and ends it.
    fn refuse(&self, channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        let text = format!(
            "This is only the way in to the members of job {}: ssh -J (or -W) to one of {}.\r\n",
            self.way.name,
            self.way.targets.iter().filter_map(|target| target.names.first()).cloned().collect::<Vec<_>>().join(", ")
        );
        session.channel_success(channel)?;
        session.extended_data(channel, STDERR, text)?;
        session.exit_status_request(channel, 1)?;
        session.eof(channel)?;
        session.close(channel)
    }
}

fn refusal(code: u32, reason: String) -> ChannelOpenFailure {
    ChannelOpenFailure::Other { code, reason }
}

impl Way {
    /// The address of a member that is asked for by name or address.
    fn target(&self, host: &str) -> Option<Ipv4Addr> {
        let address = host.parse::<Ipv4Addr>().ok();
        let wanted = |target: &&super::Target| {
            Some(target.address) == address || target.names.iter().any(|name| name.eq_ignore_ascii_case(host))
        };
        self.targets.iter().find(wanted).map(|target| target.address)
    }

    /// Joins a channel with a port of a member.
    async fn join(self: Arc<Self>, channel: Channel<Msg>, host: String, port: u32, reply: ChannelOpenHandle) {
        let Some(address) = self.target(&host) else {
            let why = format!("{host} is no member of job {}", self.name);
            return reply.reject(refusal(code::PROHIBITED, why)).await;
        };
        let Ok(port) = u16::try_from(port) else {
            return reply.reject(refusal(code::PROHIBITED, format!("there is no port {port}"))).await;
        };
        let Ok(_held) = self.channels.clone().try_acquire_owned() else {
            let why = "too many connections are open to the members of this job".to_owned();
            return reply.reject(refusal(code::SHORTAGE, why)).await;
        };
        match self.door.connect(SocketAddrV4::new(address, port), ACCEPT).await {
            Ok(mut member) => {
                reply.accept().await;
                let mut visitor = channel.into_stream();
                let ended = tokio::io::copy_bidirectional_with_sizes(&mut visitor, &mut member, BUFFER, BUFFER).await;
                tracing::debug!(host, port, ?ended, "a connection to a member has ended");
            }
            Err(error) => {
                let why = format!("port {port} of {host} was not reached: {error}");
                reply.reject(refusal(code::CONNECT_FAILED, why)).await;
            }
        }
    }
}

impl Handler for Visitor {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, _user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, russh::Error> {
        Ok(self.admits(offer.public_key))
    }

    async fn auth_publickey(&mut self, _user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        Ok(self.admits(key.public_key))
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), russh::Error> {
        self.known.cancel();
        self.held.stranger = None;
        tracing::info!(from = %self.from, "somebody has come in");
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        // the others of this connection do not wait for a member that does not answer
        tokio::spawn(self.way.clone().join(channel, host.into(), port, reply));
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        _channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.sessions += 1;
        // people are told why on it
        if self.sessions <= SESSIONS {
            reply.accept().await;
        } else {
            reply.reject(refusal(code::SHORTAGE, "no sessions here".into())).await;
        }
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        // a client that insists on a terminal would not read on
        session.channel_success(channel)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(channel)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        self.refuse(channel, session)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.refuse(channel, session)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.refuse(channel, session)
    }
}
