//! Captures with a QEMU that misbehaves on its control channel.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};

use super::*;
use crate::{
    agent::supervisor::{
        output::Output,
        testing::{FileStore, config},
    },
    clock::Clock,
    driver::{
        agent::Authority,
        qemu::{probe::Version, qmp::Qmp},
    },
};

/// What QEMU makes of an order to stop.
#[derive(Clone, Copy, PartialEq)]
enum Stop {
    /// It stops, and its answer does not come.
    Unanswered,
    /// It refuses, and stands still all the same.
    Refused,
    /// Nothing is answered from then on.
    Hangs,
}

/// A QEMU; the commands it got.
fn qemu(stop: Stop, seen: Arc<Mutex<Vec<String>>>) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move {
        let (reader, mut writer) = tokio::io::split(theirs);
        writer.write_all(b"{\"QMP\": {}}\n").await.unwrap();
        let (mut lines, mut status) = (BufReader::new(reader).lines(), "running");
        let mut hangs = false;
        while let Some(line) = lines.next_line().await.unwrap() {
            let command: serde_json::Value = serde_json::from_str(&line).unwrap();
            let name = command["execute"].as_str().unwrap().to_owned();
            let id = &command["id"];
            let reply = match name.as_str() {
                "stop" => {
                    status = "paused";
                    hangs = stop == Stop::Hangs;
                    if stop == Stop::Refused {
                        format!("{{\"error\": {{\"desc\": \"no\"}}, \"id\": {id}}}\n")
                    } else {
                        String::new()
                    }
                }
                "query-status" => format!("{{\"return\": {{\"status\": \"{status}\"}}, \"id\": {id}}}\n"),
                "cont" => {
                    status = "running";
                    format!("{{\"return\": {{}}, \"id\": {id}}}\n")
                }
                _ => format!("{{\"return\": {{}}, \"id\": {id}}}\n"),
            };
            seen.lock().unwrap().push(name);
            if !hangs {
                writer.write_all(reply.as_bytes()).await.unwrap();
            }
        }
    });
    ours
}

/// Orders a stop; the state of the VM after it, and the commands QEMU got.
async fn stopped_badly(stop: Stop) -> (VmState, Vec<String>) {
    let root = tempfile::tempdir().unwrap();
    let paths = Paths { vm: root.path().into(), cache: root.path().join("images") };
    let store = Arc::new(FileStore::new(&root.path().join("store")));
    let supervisor = Supervisor::new(config(root.path()), paths, store, Clock::system(), None);
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let qmp = Qmp::over(qemu(stop, seen.clone())).await.unwrap();
    let port = root.path().join("port");
    let listener = tokio::net::UnixListener::bind(&port).unwrap();
    let output = Output::follow(&port, &root.path().join("output"), supervisor.view.clone()).await.unwrap();
    let _guest = listener.accept().await.unwrap();
    *supervisor.vm.lock().await = Some(Vm {
        qmp: Arc::new(qmp),
        version: Version { text: "7.2".into(), resumes_by_itself: true },
        base: root.path().join("base"),
        _held: Vec::new(),
        base_format: Format::Raw,
        disk_size: 1 << 30,
        memory: 1 << 28,
        chain: Chain::default(),
        next: 1,
        output,
        prepared: None,
        gate: None,
        being_read: false,
        captured: BTreeMap::new(),
    });
    let order = CaptureOrder {
        authority: Authority { epoch: 1, incarnation: supervisor.config.incarnation },
        generation: 1,
        nonce: "n".into(),
        resume: true,
    };
    supervisor.view.change(|facts| {
        facts.set_vm(VmState::Running);
        facts.barrier.prepare(&order).unwrap();
    });
    assert!(supervisor.stop(&order).await.is_err());
    let commands = seen.lock().unwrap().clone();
    (supervisor.view.read(|facts| facts.vm.clone()), commands)
}

#[tokio::test(start_paused = true)]
async fn b3_a_stop_whose_answer_does_not_come_leaves_no_guest_standing() {
    for stop in [Stop::Unanswered, Stop::Refused] {
        let (vm, commands) = stopped_badly(stop).await;
        assert_eq!(commands.last().map(String::as_str), Some("cont"), "{commands:?}");
        assert_eq!(vm, VmState::Running);
    }
}

#[tokio::test(start_paused = true)]
async fn b3_a_guest_that_cannot_be_let_run_is_lost() {
    let (vm, _) = stopped_badly(Stop::Hangs).await;
    assert!(matches!(&vm, VmState::Gone { reason, .. } if reason.contains("cannot be resumed")), "{vm:?}");
}
