//! The rival: QEMU's own `savevm`, on a QEMU of the same arguments that goes on from our last capture.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    agents::{Agent, World},
    testbed::until,
};
use serde_json::{Value, json};
use vmdeploy::driver::qemu::{qmp::Qmp, restore};

const SAMPLES: u32 = 5;
const APART: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(60);

struct Rival(Child);

impl Drop for Rival {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How long `savevm` stops the guest whose `generation` was captured, in milliseconds.
pub(super) async fn pauses(world: &World, agents: Vec<Agent>, generation: u32) -> Result<Vec<f64>> {
    let agent = agents.into_iter().next().context("no agent")?;
    let captured = agent.vm.join(format!("generation-{generation}"));
    let own = world.root().join("savevm");
    std::fs::create_dir_all(own.join("s"))?;
    for file in ["memory", "disk"] {
        std::fs::copy(captured.join(file), own.join(file))
            .with_context(|| captured.join(file).display().to_string())?;
    }
    let words = arguments(&agent, &own)?;
    let (mut command, log) = (world.nodes.command(0, "qemu-system-x86_64"), File::create(own.join("log"))?);
    let child = command.args(&words).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
    let _rival = Rival(child);
    let socket = own.join("s/qmp");
    let connected = until("QEMU's control channel", LIMIT, async || Ok(Qmp::connect(&socket).await.ok())).await;
    let qmp = connected.with_context(|| std::fs::read_to_string(own.join("log")).unwrap_or_default())?;
    let loaded = restore::load(&qmp, &File::open(own.join("memory"))?, LIMIT, &|_| {}).await;
    loaded.with_context(|| std::fs::read_to_string(own.join("log")).unwrap_or_default())?;
    agent.kill_qemu()?;
    let mut events = qmp.events();
    qmp.execute("cont", Value::Null).await?;
    let mut pauses = Vec::new();
    for number in 0..SAMPLES {
        tokio::time::sleep(APART).await;
        while events.try_recv().is_ok() {}
        let command = qmp.execute("human-monitor-command", json!({"command-line": format!("savevm s{number}")}));
        let watch = async {
            let mut stopped = None;
            loop {
                match (events.recv().await?.name.as_str(), stopped) {
                    ("STOP", _) => stopped = Some(Instant::now()),
                    ("RESUME", Some(since)) => return anyhow::Ok(since.elapsed().as_secs_f64() * 1000.0),
                    _ => {}
                }
            }
        };
        let (said, pause) = tokio::join!(command, tokio::time::timeout(LIMIT, watch));
        ensure!(said? == json!(""), "savevm failed");
        pauses.push(pause.context("savevm did not resume the guest")??);
    }
    Ok(pauses)
}

/// The arguments of the agent's QEMU, with the captured disk in place of its own, other sockets, and memory to come.
fn arguments(agent: &Agent, own: &Path) -> Result<Vec<String>> {
    let pid = agent.qemu()?.context("no QEMU")?;
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    let words: Vec<&str> = line.trim_end_matches('\0').split('\0').collect();
    let start = words.iter().position(|word| *word == "-name").context("not a QEMU of an agent")?;
    let socket = words.iter().find_map(|word| path_of(word.strip_prefix("socket,id=qmp,path=")?));
    let sockets = socket.context("no control channel")?.parent().context("no directory")?.display().to_string();
    let disk = words.iter().find_map(|word| {
        let layer: Value = serde_json::from_str(word).ok()?;
        let writable = layer["read-only"] == json!(false);
        layer["file"]["filename"].as_str().filter(|_| writable).map(str::to_owned)
    });
    let (disk, ours) = (disk.context("no disk")?, own.join("disk").display().to_string());
    let theirs = own.join("s").display().to_string();
    let swap = |word: &&str| match word.split_once(',') {
        Some(("socket", _)) => word.replace(&sockets, &theirs),
        // nobody has the other end of its card
        Some(("tap", _)) => "tap,id=net1,ifname=savevm,script=no,downscript=no".to_owned(),
        _ => word.replace(&disk, &ours),
    };
    Ok(words[start..].iter().map(swap).chain(["-incoming".into(), "defer".into()]).collect())
}

fn path_of(option: &str) -> Option<PathBuf> {
    Some(option.split(',').next()?.into())
}
