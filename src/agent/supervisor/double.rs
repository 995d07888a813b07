//! A QEMU that is only a control channel, for tests: it obeys in order, as the real one does, and
//! answers late, never or not at all where a test says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
};

use super::{
    Supervisor,
    output::{self, Output},
    vm::Vm,
};
use crate::driver::{
    agent::{LeaseState, VmState, fake::machine_record, limits::PATIENCE},
    qemu::{
        img::{self, Chain, Format},
        probe::Version,
        qmp::Qmp,
    },
};

/// What goes wrong with one command; it has its effect all the same.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// It is answered, and so is all that follows, after this time.
    Late(Duration),
    /// Nothing is answered any more.
    Never,
    /// The connection breaks before the answer.
    Broken,
    /// It is done, and the answer is an error.
    Refused,
}

/// What the double is and was told.
#[derive(Default)]
pub(super) struct Machine {
    pub(super) paused: bool,
    /// Writing of memory and merges never end by themselves.
    pub(super) disk_hangs: bool,
    /// What is being written cannot be cancelled either.
    pub(super) cannot_cancel: bool,
    /// Memory is written only while the guest stands still.
    pub(super) no_background: bool,
    /// It stays paused, whatever it is told.
    pub(super) stuck: bool,
    /// What its command has printed when it starts.
    pub(super) prints: Vec<u8>,
    pub(super) faults: BTreeMap<&'static str, Fault>,
    pub(super) told: Vec<String>,
    migration: &'static str,
}

/// The double as a test holds it.
#[derive(Clone, Default)]
pub(super) struct Double(Arc<Mutex<Machine>>);

impl Double {
    pub(super) fn lock(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().unwrap()
    }

    pub(super) fn was_told(&self, command: &str) -> bool {
        self.lock().told.iter().any(|told| told == command)
    }

    /// What is being written ends, and what comes from now on ends at once.
    pub(super) fn end_writing(&self) {
        let mut machine = self.lock();
        machine.disk_hangs = false;
        machine.migration = "completed";
    }

    /// Gives a supervisor a running guest in this QEMU, over a real disk with this many overlays.
    pub(super) async fn run_in(&self, supervisor: &Arc<Supervisor>, overlays: u32) {
        let paths = &supervisor.paths;
        std::fs::create_dir_all(paths.disks()).unwrap();
        let (qmp, printed) = (paths.vm.join("qmp"), paths.vm.join("port"));
        let (control, port) = (UnixListener::bind(&qmp).unwrap(), UnixListener::bind(&printed).unwrap());
        let printed_words = self.lock().prints.clone();
        tokio::spawn(self.clone().serve(control));
        tokio::spawn(async move {
            let (mut held, _) = port.accept().await.unwrap();
            held.write_all(&printed_words).await.unwrap();
            std::future::pending::<()>().await;
        });
        let (base, size) = (paths.vm.join("base"), 1 << 20);
        std::fs::File::create(&base).unwrap().set_len(size).unwrap();
        let mut chain = Chain::default();
        let (mut below, mut format) = (base.clone(), Format::Raw);
        for number in 0..overlays {
            let path = paths.overlay(number);
            img::create_overlay(&path, &below, format, size).await.unwrap();
            chain.overlays.push((number, path.clone()));
            (below, format) = (path, Format::Qcow2);
        }
        *supervisor.vm.lock().await = Some(Vm {
            qmp: Arc::new(Qmp::connect(&qmp).await.unwrap()),
            threads: None,
            version: Version { text: "8.0".into(), resumes_by_itself: false },
            base,
            _held: Vec::new(),
            base_format: Format::Raw,
            disk_size: size,
            memory: 1 << 20,
            chain,
            next: overlays,
            output: Output::follow(&printed, &paths.output(), supervisor.clone(), output::PATIENCE).await.unwrap(),
            prepared: None,
            gate: None,
            being_read: BTreeSet::new(),
            patience: PATIENCE,
            captured: BTreeMap::new(),
        });
        supervisor.view.change(|facts| {
            facts.lease = LeaseState::Held;
            facts.machine = Some(machine_record());
            facts.set_vm(VmState::Running);
        });
    }

    async fn serve(self, listener: UnixListener) {
        let (stream, _) = listener.accept().await.unwrap();
        // a broken connection is told to nobody here
        let _ = self.obey(stream).await;
    }

    async fn obey(&self, stream: UnixStream) -> std::io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        writer.write_all(b"{\"QMP\": {}}\n").await?;
        let mut lines = BufReader::new(reader).lines();
        while let Some(line) = lines.next_line().await? {
            let command: Value = serde_json::from_str(&line).unwrap();
            let name = command["execute"].as_str().unwrap();
            let (reply, event) = self.lock().execute(name);
            let fault = self.lock().faults.iter().find(|(faulty, _)| **faulty == name).map(|(_, fault)| *fault);
            match fault {
                None | Some(Fault::Refused) => {}
                Some(Fault::Late(time)) => tokio::time::sleep(time).await,
                Some(Fault::Never) => std::future::pending().await,
                Some(Fault::Broken) => return Ok(()),
            }
            let background = command["arguments"]["capabilities"][0]["state"] == true;
            let refused = matches!(fault, Some(Fault::Refused)) || background && self.lock().no_background;
            let answer = if refused {
                json!({ "error": { "class": "GenericError", "desc": "no" }, "id": command["id"] })
            } else {
                json!({ "return": reply, "id": command["id"] })
            };
            let mut text = answer.to_string();
            text.push('\n');
            if let Some(event) = event {
                text += &json!({ "event": event, "data": { "device": "commit" } }).to_string();
                text.push('\n');
            }
            writer.write_all(text.as_bytes()).await?;
        }
        Ok(())
    }
}

impl Machine {
    /// The reply and an event.
    fn execute(&mut self, name: &str) -> (Value, Option<&'static str>) {
        self.told.push(name.to_owned());
        let mut event = None;
        let reply = match name {
            "query-status" => json!({ "status": if self.paused { "paused" } else { "running" } }),
            "query-migrate" => json!({ "status": self.migration, "ram": { "normal": 1 } }),
            _ => json!({}),
        };
        match name {
            "stop" => self.paused = true,
            "cont" => self.paused = self.stuck,
            "migrate" => self.migration = if self.disk_hangs { "active" } else { "completed" },
            "migrate_cancel" if !self.cannot_cancel => self.migration = "cancelled",
            "block-commit" if !self.disk_hangs => event = Some("BLOCK_JOB_COMPLETED"),
            "block-job-cancel" => event = Some("BLOCK_JOB_CANCELLED"),
            _ => {}
        }
        (reply, event)
    }
}
