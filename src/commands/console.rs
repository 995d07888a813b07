//! `vmdeploy console`: the serial console of a guest, at the person's terminal.

use std::{
    io::IsTerminal as _,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::Context as _;
use hyper::Request;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    signal::unix::{SignalKind, signal},
};

use super::member::{Member, cluster, in_words};
use crate::{
    stream::{End, carry},
    subresources::paths,
};

/// Leaves: Ctrl+], as with telnet and virsh.
const LEAVE: u8 = 0x1d;
/// Bytes typed at a time.
const PIECE: usize = 1 << 10;

/// Arguments of `vmdeploy console`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job, or JOB/INDEX for another member than 0.
    member: Member,
    /// Namespace; that of the kubeconfig if absent.
    #[arg(short, long)]
    namespace: Option<String>,
}

/// Joins the console with the terminal until the person leaves or the guest ends.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let (client, namespace) = cluster(args.namespace.as_deref()).await?;
    let path = paths::console(&namespace, &args.member.job, args.member.index);
    let connection = client.connect(Request::post(path).body(Vec::new())?).await.map_err(in_words)?;
    let (near, far) = tokio::io::duplex(PIECE);
    let mut ends = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()]
        .map(signal)
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    let ended = futures::future::select_all(ends.iter_mut().map(|end| Box::pin(end.recv())));
    if std::io::stdin().is_terminal() {
        eprintln!("The console of {}, member {}. Ctrl+] leaves.", args.member.job, args.member.index);
    }
    // until the end of this function, whichever way it comes
    let _raw = Raw::set(std::io::stdin().as_fd().try_clone_to_owned()?)?;
    tokio::select! {
        carried = carry(connection.into_stream(), End::User, far, tokio::io::stdout()) => Ok(carried?),
        () = typed(tokio::io::stdin(), near) => Ok(()),
        _ = ended => Ok(()),
    }
}

/// Passes on what is typed, until the person leaves. Input that ends without that leaves the output on.
async fn typed(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut piece = [0; PIECE];
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        let typed = &piece[..count];
        let end = typed.iter().position(|byte| *byte == LEAVE);
        let written = to.write_all(&typed[..end.unwrap_or(count)]).await;
        if end.is_some() {
            return;
        }
        if written.is_err() {
            break;
        }
    }
    // nobody waits for more, if it fails
    let _ = to.shutdown().await;
    std::future::pending::<()>().await;
}

/// A terminal that passes every key on; as it was before, once this is dropped.
struct Raw(Option<(OwnedFd, Termios)>);

impl Raw {
    /// What is no terminal is left alone.
    fn set(terminal: OwnedFd) -> anyhow::Result<Self> {
        if !terminal.is_terminal() {
            return Ok(Self(None));
        }
        let before = tcgetattr(&terminal).context("failed to read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Flush, &raw).context("failed to set the terminal")?;
        Ok(Self(Some((terminal, before))))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some((terminal, before)) = &self.0 {
            // a terminal that is gone needs nothing
            let _ = tcsetattr(terminal, OptionalActions::Flush, before);
            eprintln!();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::{
        pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
        termios::LocalModes,
    };

    use super::*;

    /// A terminal: the side of its keyboard and screen, and that of programs.
    fn terminal() -> (OwnedFd, OwnedFd) {
        let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&screen).unwrap();
        unlockpt(&screen).unwrap();
        let name = ptsname(&screen, Vec::new()).unwrap();
        let own = std::fs::File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        (screen, own.into())
    }

    #[test]
    fn a_terminal_is_as_before_after_every_end() {
        let (_screen, terminal) = terminal();
        let modes = || tcgetattr(&terminal).unwrap().local_modes;
        let before = modes();
        assert!(before.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
        let raw = Raw::set(terminal.try_clone().unwrap()).unwrap();
        assert!(!modes().intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
        drop(raw);
        assert_eq!(modes(), before);
        let broken = std::panic::catch_unwind(|| {
            let _raw = Raw::set(terminal.try_clone().unwrap()).unwrap();
            assert_eq!(modes(), before, "this fails");
        });
        assert!(broken.is_err());
        assert_eq!(modes(), before);
    }

    #[test]
    fn what_is_no_terminal_is_left_alone() {
        let (pipe, _other) = std::io::pipe().unwrap();
        assert!(Raw::set(pipe.into()).unwrap().0.is_none());
    }

    #[tokio::test]
    async fn the_key_that_leaves_is_not_passed_on() {
        let (near, mut far) = tokio::io::duplex(100);
        typed(&b"ls\r\x03\x1dlost"[..], near).await;
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"ls\r\x03");
    }

    #[tokio::test]
    async fn an_end_of_input_does_not_leave() {
        let (near, mut far) = tokio::io::duplex(100);
        let ended = tokio::time::timeout(Duration::from_millis(50), typed(&b"x"[..], near)).await;
        assert!(ended.is_err());
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"x");
    }
}
