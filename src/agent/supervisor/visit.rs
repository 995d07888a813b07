//! People in the guest: connections to its TCP ports through the job's network, its serial console, and
//! commands by its agent. Only this member's own guest is reached, and only so many visits at once.

use std::{
    io::ErrorKind,
    net::SocketAddrV4,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{Query, Request, State},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
};

use super::{Supervisor, guest::with_channel, server::refusal};
use crate::{
    driver::{
        agent::{AgentError, EXEC_LIMIT, ExecOrder, ExecReply, VmState},
        guest::{GuestError, exec},
    },
    stream::{self, End, StreamError},
};

/// Connections and commands at once.
pub(super) const MOST: usize = 16;
/// Time for the guest to accept a connection.
const ACCEPT: Duration = Duration::from_secs(10);
/// Bytes of a console on their way to somebody.
const AHEAD: usize = 16 << 10;
/// How often the end of a command is asked for.
const PACE: Duration = Duration::from_millis(200);

/// What is wanted of the guest.
#[derive(Deserialize)]
pub(super) struct Wanted {
    port: u16,
}

/// Joins a port of the guest with whoever asks.
pub(super) async fn connect(
    State(supervisor): State<Arc<Supervisor>>,
    Query(Wanted { port }): Query<Wanted>,
    mut request: Request,
) -> Response {
    let key = match stream::asked(request.headers()) {
        Ok(key) => key,
        Err(why) => return refusal(&AgentError::Refused(why.into())),
    };
    let (visit, guest) = match supervisor.port(port).await {
        Ok(joined) => joined,
        Err(error) => return refusal(&error),
    };
    let (reply, connection) = stream::agree(&key, &mut request);
    tokio::spawn(async move {
        let (from, to) = guest.into_split();
        supervisor.carry(connection, from, to).await;
        drop(visit);
    });
    reply.into_response()
}

/// Joins the guest's serial console with whoever asks.
pub(super) async fn console(State(supervisor): State<Arc<Supervisor>>, mut request: Request) -> Response {
    let key = match stream::asked(request.headers()) {
        Ok(key) => key,
        Err(why) => return refusal(&AgentError::Refused(why.into())),
    };
    let visit = match supervisor.visit() {
        Ok(visit) => visit,
        Err(error) => return refusal(&error),
    };
    let (reply, connection) = stream::agree(&key, &mut request);
    tokio::spawn(async move {
        if let Some(console) = supervisor.console.get() {
            let (person, guest) = tokio::io::duplex(AHEAD);
            let ((from, to), (typed, shown)) = (tokio::io::split(guest), tokio::io::split(person));
            tokio::select! {
                () = supervisor.carry(connection, from, to) => {}
                () = console.attach(typed, shown) => {}
            }
        }
        drop(visit);
    });
    reply.into_response()
}

impl Supervisor {
    /// Carries bytes between the guest and whoever asked, until either ends or the VM does.
    async fn carry(
        &self,
        connection: hyper::upgrade::OnUpgrade,
        from: impl AsyncRead + Unpin,
        to: impl AsyncWrite + Unpin,
    ) {
        let carried = async {
            let connection = connection.await.map_err(|_| StreamError::Cut)?;
            let socket = stream::over(TokioIo::new(connection), End::Guest).await;
            stream::carry(socket, End::Guest, from, to).await
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            ended = carried => if let Err(error) = ended {
                tracing::debug!(%error, "a connection to the guest ended early");
            }
        }
    }

    fn visit(&self) -> Result<OwnedSemaphorePermit, AgentError> {
        match self.view.read(|facts| facts.vm.clone()) {
            VmState::Running | VmState::Stopped => {}
            VmState::None | VmState::Fetching { .. } | VmState::Loaded | VmState::Gone { .. } => {
                return Err(AgentError::Refused("the guest does not run".into()));
            }
        }
        let visit = self.visits.clone().try_acquire_owned();
        visit.map_err(|_| AgentError::Refused(format!("{MOST} connections and commands are open already")))
    }

    /// A connection to a port of the own guest.
    async fn port(&self, port: u16) -> Result<(OwnedSemaphorePermit, TcpStream), AgentError> {
        let visit = self.visit()?;
        let (Some((_, own)), Some(door)) = (self.place(), self.door.get()) else {
            let why = "the job has no network of its own: the operator's configuration has none";
            return Err(AgentError::Refused(why.into()));
        };
        let name = &own.name;
        match door.connect(SocketAddrV4::new(own.address, port), ACCEPT).await {
            Ok(stream) => Ok((visit, stream)),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                Err(AgentError::Refused(format!("nothing listens at port {port} of {name}")))
            }
            Err(error) => Err(AgentError::Failed(format!("port {port} of {name} was not reached: {error}"))),
        }
    }

    /// Runs a command in the guest; the channel is free while it is waited for (safety B9).
    pub(super) async fn exec(&self, order: &ExecOrder) -> Result<ExecReply, AgentError> {
        let _visit = self.visit()?;
        if order.command.is_empty() {
            return Err(AgentError::Refused("there is no command".into()));
        }
        if !self.view.read(|facts| facts.guest.answers) {
            return Err(AgentError::Refused("qemu-guest-agent does not answer in the guest (yet)".into()));
        }
        let failed = |error: GuestError| AgentError::Failed(error.to_string());
        let number = with_channel!(self, channel => exec::begin(channel, &order.command)).map_err(failed)?;
        let limit = order.timeout.min(EXEC_LIMIT);
        let until = Instant::now() + Duration::from_secs(limit.into());
        loop {
            if let Some(ended) = with_channel!(self, channel => exec::ended(channel, number)).map_err(failed)? {
                let (stdout, stderr) = (BASE64.encode(ended.stdout), BASE64.encode(ended.stderr));
                return Ok(ExecReply { code: ended.code, stdout, stderr, cut: ended.cut });
            }
            if Instant::now() > until {
                with_channel!(self, channel => exec::kill(channel, number)).map_err(failed)?;
                return Err(AgentError::Refused(format!("the command was killed after {limit} s")));
            }
            tokio::time::sleep(PACE).await;
        }
    }
}
