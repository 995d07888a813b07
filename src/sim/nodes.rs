//! Kubelets, agents and guests: what happens on the nodes while the operator looks elsewhere.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStatus, Pod, PodStatus,
};

use super::{Health, World};
use crate::{
    driver::agent::{AgentConfig, LeaseState, LoadFault, PartState, VmState, fake::FakeAgent},
    driver::{
        repository::Repository,
        site::{End, SlotFacts, SlotPhase},
    },
    names::NodeName,
};
use futures::FutureExt;

/// The process of an agent and its VM.
pub(super) struct Body {
    pub(super) uid: String,
    pub(super) pod: String,
    pub(super) node: String,
    pub(super) config: AgentConfig,
    pub(super) agent: Arc<FakeAgent>,
    born: Timestamp,
    /// The last answer of the repository.
    contact: Timestamp,
    armed: Option<Timestamp>,
    writing: Option<Timestamp>,
    uploading: Option<(u32, Timestamp)>,
    stopped: Option<Timestamp>,
    /// Seconds the guest had run before this incarnation.
    pub(super) before: f64,
    dead: bool,
    /// The end, as long as the kubelet could not report it.
    report: Option<i32>,
}

impl Body {
    /// Whether its VM may run.
    pub(super) fn alive(&self) -> bool {
        !self.dead
    }

    /// Whether its guest runs, or may run on at any moment.
    pub(super) fn runs(&self) -> bool {
        self.alive() && matches!(self.agent.peek().vm, VmState::Running | VmState::Stopped)
    }

    /// Since when its guest stands still.
    pub(super) fn stopped(&self) -> Option<Timestamp> {
        self.stopped.filter(|_| self.alive())
    }

    pub(super) fn describe(&self) -> String {
        let state = self.agent.peek();
        let capture = state.capture.map(|part| (part.generation, part.state));
        format!(
            "{} on {} slot {}: dead {} {:?} {:?} ran {:.0}+{:.0} capture {capture:?} exit {:?} leaving {:?}",
            self.pod,
            self.node,
            self.config.slot,
            self.dead,
            state.lease,
            state.vm,
            self.before,
            state.ran,
            state.guest.exit_code,
            state.leaving,
        )
    }

    /// The end of process and VM. The last words of an agent that was told to leave were heard.
    fn die(&mut self, exit_code: i32) {
        self.dead = true;
        self.report = Some(exit_code);
        self.agent.set_reachable(false);
        self.agent.change(|state| {
            if !matches!(state.vm, VmState::Gone { .. }) {
                state.vm = VmState::Gone { reason: "killed".into(), fault: LoadFault::Unknown };
            }
        });
    }
}

impl World {
    /// What a node is like from now on.
    pub(super) fn set_health(&mut self, node: &str, health: Health) {
        self.health.insert(node.into(), health);
        for body in self.bodies.iter_mut().filter(|body| body.node == node && body.alive()) {
            match health {
                Health::Up => body.agent.set_reachable(true),
                Health::Cut(_) | Health::Deaf | Health::Stray => body.agent.set_reachable(false),
                Health::Down => body.die(137),
            }
        }
    }

    /// The agent process of one member dies, and its VM with it.
    pub(super) fn kill_agent(&mut self, index: usize) {
        self.bodies[index].die(134);
    }

    fn health_of(&self, node: &str) -> Health {
        self.health.get(node).copied().unwrap_or(Health::Down)
    }

    /// Whatever is due on the nodes.
    pub(super) fn live(&mut self) {
        let pods = self.cluster.pods();
        self.start_pods(&pods);
        self.start_launched();
        let slots = self.site.slots();
        let mut bodies = std::mem::take(&mut self.bodies);
        for body in &mut bodies {
            if body.alive() {
                self.live_one(body, &pods, &slots);
            }
            self.report_end(body);
        }
        self.bodies = bodies;
        self.bodies.retain(|body| body.alive() || body.report.is_some());
    }

    fn start_pods(&mut self, pods: &[Pod]) {
        for pod in pods {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
            let known = self.bodies.iter().any(|body| body.uid == uid) || ended(pod);
            let works = matches!(self.health_of(&node), Health::Up | Health::Deaf);
            if known || !works {
                continue;
            }
            if pod.metadata.deletion_timestamp.is_some() {
                self.cluster.remove_pod(&name);
                continue;
            }
            let Some(config) = self.config_of(pod) else { continue };
            let running = ContainerState {
                running: Some(ContainerStateRunning { started_at: None }),
                ..ContainerState::default()
            };
            self.cluster.set_pod_status(&name, pod_status("Running", running));
            self.begin(uid, name, node, config);
        }
    }

    /// A process of an agent begins.
    pub(super) fn begin(&mut self, uid: String, pod: String, node: String, config: AgentConfig) {
        let agent = FakeAgent::loaded(
            config.job.clone(),
            config.member,
            config.incarnation,
            config.max_pause,
            self.clock.clone(),
        );
        agent.set_prompt(false);
        agent.change(|state| {
            state.lease = LeaseState::Waiting;
            state.vm = VmState::None;
        });
        if self.health_of(&node) == Health::Deaf {
            agent.set_reachable(false);
        }
        self.bodies.push(Body {
            agent: self.agents.add(agent),
            born: self.clock.now(),
            contact: self.clock.now(),
            armed: None,
            writing: None,
            uploading: None,
            stopped: None,
            before: 0.0,
            dead: false,
            report: None,
            pod,
            uid,
            node,
            config,
        });
    }

    fn config_of(&self, pod: &Pod) -> Option<AgentConfig> {
        let secret = self.cluster.agent_secret(pod)?;
        let data = secret.data.and_then(|data| Some(data.get("config.json")?.0.clone()));
        let text = data.or_else(|| Some(secret.string_data?.get("config.json")?.clone().into_bytes()))?;
        Some(serde_json::from_slice(&text).expect("an agent cannot read its configuration"))
    }

    /// One agent. The order matters: what ends it comes first.
    fn live_one(&self, body: &mut Body, pods: &[Pod], slots: &[SlotFacts]) {
        let now = self.clock.now();
        let since = |time: Timestamp| Duration::try_from(now.duration_since(time)).unwrap_or_default();
        let health = self.health_of(&body.node);
        if matches!(health, Health::Up | Health::Deaf) {
            let pod = pods.iter().find(|pod| pod.metadata.uid.as_deref() == Some(&body.uid));
            let is_wanted = match self.is_wanted_by_launcher(body) {
                Some(is_wanted) => is_wanted,
                None => pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_none()),
            };
            if !is_wanted {
                body.die(143);
                return;
            }
        }
        let slot = slots.iter().find(|slot| slot.id == body.config.slot);
        if let Health::Cut(start) = health {
            // the beat comes from the slot's first node; there only T_iso helps, unless the site says
            // that it has reached the hold
            let first = slot.is_some_and(|slot| slot.nodes.first().is_some_and(|node| node.0 == body.node));
            let killed = slot.is_some_and(|slot| match &slot.phase {
                SlotPhase::Ended(End::Infrastructure(_)) => false,
                SlotPhase::Ended(_) => true,
                _ => false,
            });
            let limit = if first { body.config.isolation } else { body.config.lease.beat_limit };
            if killed || since(start.max(body.born)) >= limit {
                body.die(137);
                return;
            }
        }
        let content = self.repository.content(&body.config.job).now_or_never().and_then(Result::ok);
        if content.is_some_and(|content| content.fence <= body.config.incarnation) {
            body.contact = now;
        }
        if health == Health::Stray {
            if since(body.contact) > body.config.isolation {
                body.die(137);
            } else {
                self.compute(body);
                body.agent.tick();
            }
            return;
        }
        let held = slot.is_some_and(|slot| {
            let ours = slot.nodes.iter().any(|node| node.0 == body.node);
            ours && slot.since.is_some() && matches!(slot.phase, SlotPhase::Running | SlotPhase::Ending)
        });
        match (body.armed, held) {
            (None, true) => {
                if now > body.config.not_after {
                    body.die(3);
                    return;
                }
                body.armed = Some(now);
                body.agent.change(|state| state.lease = LeaseState::Held);
            }
            (None, false) if since(body.born) > body.config.lease.arm_within => {
                body.die(4);
                return;
            }
            // the holder's connection is cut as well, in the worst case only T_iso helps
            (Some(_), false) if !matches!(health, Health::Cut(_)) => {
                body.die(5);
                return;
            }
            (None, false) | (Some(_), _) => {}
        }
        let state = body.agent.peek();
        if let Some(code) = state.leaving {
            self.site.release_node(&body.config.slot, &NodeName(body.node.clone()), code);
            body.agent.tick();
            body.dead = true;
            body.report = Some(0);
            return;
        }
        if state.vm == VmState::None && body.armed.is_some_and(|armed| since(armed) >= self.pace.load) {
            self.load(body);
        }
        self.compute(body);
        body.agent.tick();
    }

    fn load(&self, body: &mut Body) {
        let Some(generation) = body.config.restore else {
            body.agent.change(|state| state.vm = VmState::Loaded);
            return;
        };
        let manifest = self.repository.manifest(&body.config.job, generation).now_or_never();
        match manifest.expect("the double never waits") {
            Ok(_) if self.broken == Some(generation) => body.agent.change(|state| {
                state.vm = VmState::Gone { reason: "cannot load it".into(), fault: LoadFault::Part };
            }),
            Ok(manifest) => {
                body.before = manifest.members[body.config.member as usize].ran;
                body.agent.set_before(body.before);
                body.agent.change(|state| {
                    state.vm = VmState::Loaded;
                    state.guest.started = true;
                });
            }
            Err(crate::driver::repository::RepositoryError::Unreachable(_)) => {}
            Err(error) => body.agent.change(|state| {
                state.vm = VmState::Gone { reason: error.to_string(), fault: LoadFault::Part };
            }),
        }
    }

    fn compute(&self, body: &mut Body) {
        let now = self.clock.now();
        let due = |since: Timestamp, length: Duration| now.duration_since(since).unsigned_abs() >= length;
        let state = body.agent.peek();
        match state.capture.as_ref().map(|part| &part.state) {
            Some(PartState::Writing) => {
                if due(*body.writing.get_or_insert(now), self.pace.write) {
                    body.writing = None;
                    body.agent.captured();
                }
            }
            _ => body.writing = None,
        }
        if let Some(upload) = state.upload.as_ref().filter(|upload| !upload.done) {
            let start = match body.uploading {
                Some((generation, start)) if generation == upload.generation => start,
                Some(_) | None => now,
            };
            body.uploading = Some((upload.generation, start));
            if due(start, self.pace.upload) {
                body.agent.uploaded();
            }
        }
        body.stopped = (state.vm == VmState::Stopped).then(|| body.stopped.unwrap_or(now));
        let done = body.before + state.ran >= self.pace.work.as_secs_f64();
        if state.vm == VmState::Running && done && state.guest.exit_code.is_none() && body.config.run.is_some() {
            body.agent.finish(0);
        }
    }

    /// The kubelet tells how a container ended, and lets go what was deleted.
    fn report_end(&self, body: &mut Body) {
        let works = matches!(self.health_of(&body.node), Health::Up | Health::Deaf);
        let Some(exit_code) = body.report.filter(|_| works) else { return };
        body.report = None;
        self.tell_launcher(body, exit_code);
        let ended = ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code,
                reason: Some("Error".into()),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        };
        let pods = self.cluster.pods();
        let Some(pod) = pods.iter().find(|pod| pod.metadata.uid.as_deref() == Some(&body.uid)) else { return };
        if pod.metadata.deletion_timestamp.is_some() {
            self.cluster.remove_pod(&body.pod);
        } else {
            self.cluster.set_pod_status(&body.pod, pod_status("Failed", ended));
        }
    }
}

fn pod_status(phase: &str, state: ContainerState) -> PodStatus {
    let container = ContainerStatus { name: "agent".into(), state: Some(state), ..ContainerStatus::default() };
    PodStatus { phase: Some(phase.into()), container_statuses: Some(vec![container]), ..PodStatus::default() }
}

fn ended(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Failed")
        && pod.metadata.deletion_timestamp.is_none()
}
