//! Starts once what was made of an archive or of a partition: whoever uses the image later would wait for slots to find
//! out that it does not come up. Without a network, without a privilege, and nothing that the guest writes stays.
//!
//! It has come up when its guest agent answers, or its console asks for a login. Under TCG a Debian system with systemd
//! takes 20 to 40 s for that.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    process::{Child, ChildStdout, Command},
};

use super::{Trouble, TroubleKind, convert};
use crate::driver::qemu::cmdline::GUEST_AGENT_PORT;

const PROGRAM: &str = "qemu-system-x86_64";
/// Longest time to come up.
const LIMIT: Duration = Duration::from_secs(300);
/// An agent that is there answers so soon after the console asks for a login.
const AGENT_LIMIT: Duration = Duration::from_secs(20);
const AGENT_PACE: Duration = Duration::from_millis(500);
/// Most of the console that is looked at again.
const WINDOW: usize = 4096;
/// As much of its end is shown.
const SHOWN: usize = 400;
const MEMORY_MIB: u32 = 512;
/// Of the code that TCG makes.
const TCG_MIB: u32 = 128;

/// How the console ended, or what it said.
enum Console {
    AsksForLogin,
    Panics,
    Over,
}

/// Starts the disk, kernel and initial ram disk in `work` with this command line. What was seen, for people.
pub(super) async fn starts(work: &Path, params: &str) -> Result<String, Trouble> {
    let failed = |what: &str, error: &std::io::Error| {
        Trouble::passing(TroubleKind::Importer, format!("failed to {what}: {error}"))
    };
    let socket = work.join("agent.sock");
    let mut qemu = command(work, &socket, params).spawn().map_err(|error| failed("start QEMU", &error))?;
    let console = qemu.stdout.take().ok_or_else(|| Trouble::passing(TroubleKind::Importer, "QEMU has no console"))?;
    let mut said = Vec::new();
    let begun = Instant::now();
    let seen = tokio::time::timeout(LIMIT, come_up(console, &mut said, &socket)).await;
    let words = ending(&mut qemu).await;
    // gone already, or never made
    let _ = std::fs::remove_file(&socket);
    let refused = |why: &str| {
        let text = String::from_utf8_lossy(&said);
        let shown: String = text.chars().filter(|c| *c == '\n' || !c.is_control()).collect();
        let skipped = shown.chars().count().saturating_sub(SHOWN);
        let end: String = shown.chars().skip(skipped).collect();
        Trouble::refused(
            TroubleKind::Unusable,
            format!(
                "the system does not start as a VM: {why}. Correct the file, or set spec.skipBootCheck. The end of its \
                 console: {}{words}",
                end.trim()
            ),
        )
    };
    let seconds = begun.elapsed().as_secs();
    match seen {
        Ok((Some(Console::Panics), _)) => Err(refused("its kernel panics")),
        Ok((Some(Console::Over), false)) => Err(refused("QEMU ends")),
        Ok((_, true)) => Ok(format!("started once as a VM: its guest agent answers after {seconds} s")),
        Ok((_, false)) => Ok(format!(
            "started once as a VM: it asks for a login after {seconds} s, but no guest agent answers: jobs need the package \
             qemu-guest-agent in it"
        )),
        Err(_) => Err(refused(&format!(
            "within {} s neither did its console ask for a login nor its guest agent answer",
            LIMIT.as_secs()
        ))),
    }
}

fn command(work: &Path, socket: &Path, params: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "q35"]);
    command.args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    command.args(["-accel", &format!("tcg,tb-size={TCG_MIB}"), "-cpu", "qemu64", "-m", &format!("{MEMORY_MIB}M")]);
    command.arg("-kernel").arg(work.join(convert::KERNEL)).arg("-initrd").arg(work.join(convert::INITRD));
    command.args(["-append", params, "-serial", "stdio"]);
    // what is written goes to a file without a name below the working directory
    let disk = work.join(convert::DISK);
    command.arg("-drive").arg(format!("id=disk,if=none,format=qcow2,snapshot=on,file={}", disk.display()));
    command.args(["-device", "virtio-blk-pci,drive=disk"]);
    command.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci,id=ports"]);
    command.arg("-chardev").arg(format!("socket,id=agent,server=on,wait=off,path={}", socket.display()));
    command.args(["-device", &format!("virtserialport,bus=ports.0,chardev=agent,name={GUEST_AGENT_PORT}")]);
    command.env("TMPDIR", work).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// What the console said, if it did before the agent answered; and whether that did.
async fn come_up(console: ChildStdout, said: &mut Vec<u8>, socket: &Path) -> (Option<Console>, bool) {
    let answers = answers(socket);
    tokio::pin!(answers);
    let seen = tokio::select! {
        () = &mut answers => return (None, true),
        seen = watch(console, said) => seen,
    };
    let answered = match seen {
        Console::AsksForLogin => tokio::time::timeout(AGENT_LIMIT, answers).await.is_ok(),
        Console::Panics | Console::Over => false,
    };
    (Some(seen), answered)
}

async fn watch(mut console: ChildStdout, said: &mut Vec<u8>) -> Console {
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = console.read(&mut piece).await {
        said.extend_from_slice(&piece[..count]);
        said.drain(..said.len().saturating_sub(WINDOW));
        let has = |words: &str| said.windows(words.len()).any(|found| found == words.as_bytes());
        if has("Kernel panic") {
            // the rest of what it has to say
            let _ = tokio::time::timeout(AGENT_PACE, console.read(&mut piece)).await;
            return Console::Panics;
        }
        if has(" login:") {
            return Console::AsksForLogin;
        }
    }
    Console::Over
}

/// Returns once the guest agent has answered.
async fn answers(socket: &Path) {
    loop {
        if asked(socket).await.is_ok_and(|answered| answered) {
            return;
        }
        tokio::time::sleep(AGENT_PACE).await;
    }
}

async fn asked(socket: &Path) -> std::io::Result<bool> {
    let mut agent = UnixStream::connect(socket).await?;
    agent.write_all(b"{\"execute\":\"guest-sync\",\"arguments\":{\"id\":4711}}\n").await?;
    let mut reply = Vec::new();
    let mut piece = [0; 256];
    while reply.len() < WINDOW {
        let read = tokio::time::timeout(AGENT_PACE * 4, agent.read(&mut piece)).await;
        let Ok(Ok(count @ 1..)) = read else { return Ok(false) };
        reply.extend_from_slice(&piece[..count]);
        if reply.windows(4).any(|found| found == b"4711") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Ends QEMU; what it complained of itself, if it had ended by then.
async fn ending(qemu: &mut Child) -> String {
    let ended = qemu.try_wait().is_ok_and(|status| status.is_some());
    // gone by itself, otherwise
    let _ = qemu.kill().await;
    let Some(stderr) = qemu.stderr.take().filter(|_| ended) else { return String::new() };
    let mut words = Vec::new();
    let _ = stderr.take(SHOWN as u64).read_to_end(&mut words).await;
    let words = String::from_utf8_lossy(&words).trim().to_owned();
    if words.is_empty() { words } else { format!(" ({words})") }
}
