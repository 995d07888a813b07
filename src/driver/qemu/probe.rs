//! What the node's QEMU is and can do.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{io::AsyncReadExt as _, process::Command, sync::OnceCell};

use super::{QemuError, process::PROGRAM};
use crate::driver::agent::Accelerator;

/// A kernel that says nothing for this long does not run under KVM here.
const KVM_LIMIT: Duration = Duration::from_secs(20);
/// What a kernel without a root says at its end.
const END_OF_BOOT: &str = "Unable to mount root fs";

/// Most machines that are read of a list.
const MOST_MACHINES: usize = 512;

/// The node's QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// As it calls itself, for example `7.2.22`.
    pub text: String,
    /// Whether a background snapshot lets the guest run again by itself (before QEMU 8).
    pub resumes_by_itself: bool,
}

/// Asks QEMU what it is; an answer counts as long as this process runs.
pub async fn version() -> Result<Version, QemuError> {
    static KNOWN: OnceCell<Version> = OnceCell::const_new();
    let ask = async || {
        let text = output(&["--version"]).await?;
        parse_version(&text).ok_or_else(|| unknown("version", &text))
    };
    KNOWN.get_or_try_init(ask).await.cloned()
}

fn parse_version(text: &str) -> Option<Version> {
    let version = text.split("version ").nth(1)?;
    let end = version.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(version.len());
    let major: u32 = version.split('.').next()?.parse().ok()?;
    Some(Version { text: version[..end].into(), resumes_by_itself: major < 8 })
}

/// The machines that QEMU can make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machines {
    /// Versioned names.
    pub names: Vec<String>,
    /// Other names, and which they stand for.
    aliases: BTreeMap<String, String>,
}

/// Asks QEMU for its machines; an answer counts as long as this process runs.
pub async fn machines() -> Result<Machines, QemuError> {
    static KNOWN: OnceCell<Machines> = OnceCell::const_new();
    let ask = async || output(&["-machine", "help"]).await.map(|list| Machines::parse(&list));
    KNOWN.get_or_try_init(ask).await.cloned()
}

impl Machines {
    fn parse(list: &str) -> Self {
        let (mut names, mut aliases) = (Vec::new(), BTreeMap::new());
        for line in list.lines().skip(1).take(MOST_MACHINES) {
            let Some(first) = line.split_whitespace().next() else { continue };
            match line.split_once("(alias of ").and_then(|(_, target)| target.split(')').next()) {
                Some(target) => drop(aliases.insert(first.to_owned(), target.to_owned())),
                None => names.push(first.to_owned()),
            }
        }
        Self { names, aliases }
    }

    /// The versioned name of a machine, for example `pc-q35-7.2` for `q35`.
    pub fn resolve(&self, name: &str) -> Result<String, QemuError> {
        let found = self.aliases.get(name).or_else(|| self.names.iter().find(|known| *known == name));
        found.cloned().ok_or_else(|| unknown("machine", name))
    }
}

fn unknown(what: &str, text: &str) -> QemuError {
    let message = format!("no {what} {:?} is known here", text.chars().take(100).collect::<String>());
    QemuError::Program { program: PROGRAM, message }
}

async fn output(arguments: &[&str]) -> Result<String, QemuError> {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(QemuError::io("start QEMU"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What `Probe` means on this node: KVM only if a guest's kernel really boots under it, which the
/// presence of a device does not prove. The answer is kept in `cache` until the node boots.
pub async fn accelerator(wanted: Accelerator, kernel: Option<&Path>, cache: &Path) -> Accelerator {
    match (wanted, kernel) {
        (Accelerator::Tcg | Accelerator::Kvm, _) => wanted,
        (Accelerator::Probe, None) => Accelerator::Tcg,
        (Accelerator::Probe, Some(kernel)) => {
            let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
            let kept: PathBuf = cache.join(format!("kvm-{}", boot.trim()));
            let answer = if let Ok(answer) = std::fs::read_to_string(&kept) {
                answer == "yes"
            } else {
                let answer = kvm().is_ok() && boots(kernel).await;
                if let Err(error) = std::fs::write(&kept, if answer { "yes" } else { "no" }) {
                    tracing::warn!(%error, "failed to keep the answer of the KVM probe");
                }
                answer
            };
            if answer { Accelerator::Kvm } else { Accelerator::Tcg }
        }
    }
}

/// Whether the node lets us use its processor's virtualisation.
pub fn kvm() -> std::io::Result<()> {
    std::fs::File::options().read(true).write(true).open("/dev/kvm").map(drop)
}

async fn boots(kernel: &Path) -> bool {
    let mut command = Command::new(PROGRAM);
    command.args(["-accel", "kvm", "-machine", "q35", "-cpu", "qemu64", "-m", "256M", "-nodefaults", "-no-reboot"]);
    command.args(["-display", "none", "-serial", "stdio", "-append", "console=ttyS0 panic=-1", "-kernel"]);
    command.arg(kernel).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let Ok(mut child) = command.spawn() else { return false };
    let Some(mut console) = child.stdout.take() else { return false };
    let read = async {
        let (mut seen, mut piece) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = console.read(&mut piece).await {
            seen.extend_from_slice(&piece[..count]);
            if String::from_utf8_lossy(&seen).contains(END_OF_BOOT) {
                return true;
            }
            if seen.len() > 1 << 20 {
                return false;
            }
        }
        false
    };
    let booted = tokio::time::timeout(KVM_LIMIT, read).await.unwrap_or(false);
    // it may have ended by itself
    let _ = child.kill().await;
    booted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let seven = parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright").unwrap();
        assert_eq!(seven, Version { text: "7.2.22".into(), resumes_by_itself: true });
        let ten = parse_version("QEMU emulator version 10.0.2\n").unwrap();
        assert_eq!(ten, Version { text: "10.0.2".into(), resumes_by_itself: false });
        assert_eq!(parse_version("no qemu"), None);
    }

    #[test]
    fn machines_get_their_versioned_names() {
        let list = "Supported machines are:\npc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)\n\
            pc-i440fx-7.2        Standard PC (i440FX + PIIX, 1996) (default)\n\
            q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)\n\
            pc-q35-7.1           Standard PC (Q35 + ICH9, 2009)\n";
        let machines = Machines::parse(list);
        for (name, versioned) in [("q35", "pc-q35-7.2"), ("pc", "pc-i440fx-7.2"), ("pc-q35-7.1", "pc-q35-7.1")] {
            assert_eq!(machines.resolve(name).unwrap(), versioned);
        }
        assert!(machines.resolve("pc-q35").is_err() && machines.resolve("Supported").is_err());
        assert_eq!(machines.names, ["pc-i440fx-7.2", "pc-q35-7.1"]);
    }
}
