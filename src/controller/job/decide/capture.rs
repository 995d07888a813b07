//! A capture: begun, watched until all members have their bytes on disk, or void.
//!
//! A number is never used twice; a capture that fails burns its own (safety B2). The number of the
//! next one is always reserved beforehand, so that a notice needs no write before it (B17).

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::draft::{Draft, since};
use super::members::{agent_ref, state};
use crate::{
    api::{
        Reason,
        conditions::{self, ConditionType, Truth},
        job_status::CaptureStatus,
        snapshot::{SnapshotMember, SnapshotPhase, SnapshotReason, SnapshotStatus},
    },
    controller::job::plan::{AgentRef, BarrierState, CaptureJob, Effect},
    driver::agent::{CapturePart, PartState, VmState, limits},
    names::Generation,
};

impl Draft<'_> {
    /// Begins a capture of all members.
    pub(super) fn capture(&mut self, reason: SnapshotReason, resume: bool, name: Option<String>) {
        let generation = self.next_generation();
        let agents: Vec<AgentRef> = self.status.members.iter().filter_map(agent_ref).collect();
        if agents.len() != self.status.members.len() {
            return;
        }
        let mut capture = self.capture_of(generation, reason, resume);
        if let Some(name) = name {
            capture.snapshot = name;
        }
        self.effect(Effect::Capture(self.order(&capture, agents)));
        self.status.snapshots.capture = Some(capture);
        self.status.snapshots.next_generation = generation + 1;
        if resume {
            self.plan_next();
            self.phase(crate::api::JobPhase::Snapshotting);
        }
        self.because("a capture is begun");
        self.wake(Duration::from_secs(1));
    }

    /// What the coordinator is told. The nonce follows from what is never used twice, so that the
    /// same decision makes the same order.
    fn order(&self, capture: &CaptureStatus, agents: Vec<AgentRef>) -> CaptureJob {
        let left = self.leaving_deadline().map_or(Duration::from_secs(600), |end| since(self.now, end));
        // those that are not wanted stand still until all is stored
        let left = left.max(self.acquire_timeout());
        CaptureJob {
            generation: capture.generation,
            incarnation: capture.incarnation,
            nonce: format!("{}-{}-{}", self.uid.short(), capture.incarnation, capture.generation),
            reason: capture.reason,
            resume: capture.resume,
            max_pause: self.job.spec.snapshots.max_pause.into(),
            stay_down: left + Duration::from_secs(10),
            within: self.capture_limit(),
            agents,
        }
    }

    /// How long the members may take until all is on their disks.
    fn capture_limit(&self) -> Duration {
        let vm = &self.job.spec.vm;
        let image = self.status.image.as_ref().map_or(0, |image| image.virtual_size);
        limits::capture_limit(vm.memory.0, vm.disk.map_or(image, |disk| disk.0))
    }

    /// 1 + the highest number that anybody knows of.
    fn next_generation(&self) -> Generation {
        let parts =
            self.status.members.iter().filter_map(|m| state(self.seen, m)?.capture.as_ref()).map(|p| p.generation);
        let agents = parts.max().unwrap_or_default();
        let repository = self.seen.content.known().map_or(0, |content| content.highest);
        let barrier = self.seen.barrier.as_ref().map_or(0, |barrier| barrier.job.generation);
        self.status.snapshots.next_generation.max(agents + 1).max(repository + 1).max(barrier + 1)
    }

    /// Follows the capture under way.
    pub(super) fn track_capture(&mut self) {
        self.adopt_barrier();
        let Some(capture) = self.status.snapshots.capture.clone() else { return };
        if capture.captured {
            self.track_storing(&capture);
            return;
        }
        if capture.incarnation != self.status.incarnation {
            self.void_capture("its incarnation is over");
            return;
        }
        let parts: Vec<Option<&CapturePart>> = self
            .status
            .members
            .iter()
            .map(|member| state(self.seen, member)?.capture.as_ref().filter(|p| p.generation == capture.generation))
            .collect();
        let abandoned = parts.iter().flatten().find_map(|part| match &part.state {
            PartState::Abandoned { reason } => Some(reason.clone()),
            PartState::Prepared | PartState::Stopped | PartState::Writing | PartState::Captured => None,
        });
        let failed =
            self.seen.barrier.as_ref().filter(|b| b.job.generation == capture.generation).and_then(|barrier| {
                match &barrier.state {
                    BarrierState::Failed(reason) => Some(reason.clone()),
                    BarrierState::Conducting | BarrierState::Cut => None,
                }
            });
        if let Some(reason) = failed.or(abandoned) {
            self.void_capture(&reason);
            return;
        }
        let one_cut = one_nonce(&parts);
        let all = |wanted: &dyn Fn(&PartState) -> bool| parts.iter().all(|p| p.is_some_and(|part| wanted(&part.state)));
        if all(&|state| *state == PartState::Captured) {
            if one_cut {
                let parts: Vec<CapturePart> = parts.into_iter().flatten().cloned().collect();
                self.captured(capture, &parts);
            } else {
                self.void_capture("the parts are of different cuts");
            }
            return;
        }
        if since(capture.since.0, self.now) >= self.capture_limit() {
            self.void_capture("it was not on local disk in time");
            return;
        }
        let conducted = self.seen.barrier.as_ref().is_some_and(|b| b.job.generation == capture.generation);
        let cut = one_cut && all(&|state| matches!(state, PartState::Writing | PartState::Captured));
        if !conducted && !cut {
            // nobody conducts it any more, and not all were cut: void, whoever had begun it
            self.void_capture("its coordinator is gone");
            return;
        }
        self.show_capturing(&capture);
    }

    /// Makes the Snapshot object of somebody who asked for one say that it is being taken.
    fn show_capturing(&mut self, capture: &CaptureStatus) {
        let seen = self.seen.snapshots.iter().find(|snapshot| snapshot.name == capture.snapshot);
        let Some(snapshot) = seen.filter(|snapshot| snapshot.status.phase == SnapshotPhase::Pending) else { return };
        let status = SnapshotStatus {
            generation: Some(capture.generation),
            phase: SnapshotPhase::Capturing,
            incarnation: capture.incarnation,
            parent: self.status.origin.as_ref().and_then(|origin| origin.generation),
            job_uid: self.uid.0.clone(),
            ..snapshot.status.clone()
        };
        let (name, uid) = (snapshot.name.clone(), snapshot.uid.clone());
        self.repeat(Effect::WriteSnapshot { name, uid, status: Box::new(status) }, Duration::from_secs(5));
    }

    /// A capture whose beginning could not be written down (safety B17).
    fn adopt_barrier(&mut self) {
        let Some(barrier) = &self.seen.barrier else { return };
        let job = &barrier.job;
        let new = job.generation >= self.status.snapshots.next_generation && job.incarnation == self.status.incarnation;
        if !new || self.status.snapshots.capture.is_some() {
            return;
        }
        self.status.snapshots.capture = Some(CaptureStatus {
            generation: job.generation,
            incarnation: job.incarnation,
            reason: job.reason,
            since: Time(barrier.since),
            snapshot: self.own_snapshot_name(job.generation),
            resume: job.resume,
            captured: false,
            taken_at: None,
            work: 0,
            reserved: self.next_bytes(),
            quota: self.quota_of(job.reason),
        });
        self.status.snapshots.next_generation = job.generation + 1;
    }

    fn captured(&mut self, mut capture: CaptureStatus, parts: &[CapturePart]) {
        let base = self.status.origin.as_ref().map_or(0, |origin| origin.work);
        let before = self.status.adopted.as_ref().map_or(0, |adopted| adopted.work);
        // a record counts over all incarnations, and those of the job before; an agent from this one's start
        let records: Option<f64> = parts.iter().map(|part| part.record.as_ref().map(|record| record.ran)).sum();
        capture.captured = true;
        capture.work = records.map_or_else(|| base + self.ran(), |ran| (ran as u64).saturating_sub(before)).max(base);
        capture.taken_at = Some(Time(parts.iter().filter_map(|part| part.stopped_at).max().unwrap_or(self.now)));
        self.status.snapshots.last = Some(capture.generation);
        let message = format!("generation {} is captured on the nodes", capture.generation);
        self.note(Reason::SnapshotCaptured, message);
        self.because("a capture is complete");
        self.status.snapshots.capture = Some(capture.clone());
        self.show_captured(&capture);
    }

    /// Makes the Snapshot object say that it is captured, so that its bytes are fetched.
    pub(super) fn show_captured(&mut self, capture: &CaptureStatus) {
        let seen = self.seen.snapshots.iter().find(|snapshot| snapshot.name == capture.snapshot);
        let leaving = self.leaving_members(capture, seen);
        let every = Duration::from_secs(5);
        if let Some(snapshot) = seen.filter(|snapshot| {
            snapshot.status.generation == Some(capture.generation)
                && matches!(snapshot.status.phase, SnapshotPhase::Captured | SnapshotPhase::Stored)
        }) {
            if snapshot.status.phase == SnapshotPhase::Captured && snapshot.status.leaving != leaving {
                let status = Box::new(SnapshotStatus { leaving, ..snapshot.status.clone() });
                let (name, uid) = (snapshot.name.clone(), snapshot.uid.clone());
                self.repeat(Effect::WriteSnapshot { name, uid, status }, every);
            }
            return;
        }
        let Some(seen) = seen else {
            // it is written to once it is seen to be there and to be ours
            let name = capture.snapshot.clone();
            self.repeat(Effect::CreateSnapshot { name, reason: capture.reason }, every);
            return;
        };
        let parts: Vec<&CapturePart> = self
            .status
            .members
            .iter()
            .filter_map(|member| state(self.seen, member)?.capture.as_ref())
            .filter(|part| part.generation == capture.generation)
            .collect();
        let stops: Vec<jiff::Timestamp> = parts.iter().filter_map(|part| part.stopped_at).collect();
        let skew = stops.iter().min().zip(stops.iter().max()).map(|(first, last)| since(*first, *last).as_millis());
        let logical: u64 = parts.iter().map(|part| part.bytes).sum();
        let status = SnapshotStatus {
            observed_generation: 1,
            generation: Some(capture.generation),
            phase: SnapshotPhase::Captured,
            incarnation: capture.incarnation,
            parent: self.status.origin.as_ref().and_then(|origin| origin.generation),
            job_uid: self.uid.0.clone(),
            taken_at: capture.taken_at.clone(),
            pause_ms: parts.iter().filter_map(|part| part.pause_ms).max(),
            skew_ms: skew.map(|ms| u64::try_from(ms).unwrap_or(u64::MAX)),
            work: capture.work,
            members: self.status.members.iter().filter_map(snapshot_member).collect(),
            leaving,
            bytes: Some(crate::api::snapshot::SnapshotBytes { logical, stored: 0 }),
            transfer: None,
            conditions: seen.status.conditions.clone(),
        };
        let (name, uid) = (seen.name.clone(), seen.uid.clone());
        self.repeat(Effect::WriteSnapshot { name, uid, status: Box::new(status) }, every);
    }

    /// Lets guests run on that still stand still for a final capture that is void: what they were told
    /// then may be lost.
    pub(super) fn let_run_on(&mut self) {
        let stands = |part: &&CapturePart| part.state == PartState::Captured;
        let standing = self.living_members().into_iter().find_map(|member| {
            let state = state(self.seen, member).filter(|state| state.vm == VmState::Stopped)?;
            state.capture.as_ref().filter(stands).map(|part| part.generation)
        });
        let Some(generation) = standing else { return };
        let capture = self.capture_of(generation, self.leaving_reason(), false);
        let agents = self.living_members().into_iter().filter_map(agent_ref).collect();
        self.repeat(Effect::AbandonCapture(self.order(&capture, agents)), Duration::from_secs(5));
    }

    fn capture_of(&self, generation: Generation, reason: SnapshotReason, resume: bool) -> CaptureStatus {
        CaptureStatus {
            generation,
            incarnation: self.status.incarnation,
            reason,
            since: self.time(),
            snapshot: self.own_snapshot_name(generation),
            resume,
            captured: false,
            taken_at: None,
            work: 0,
            reserved: self.next_bytes(),
            quota: self.quota_of(reason),
        }
    }

    /// Says why no generation came of it, until one does.
    pub(super) fn snapshot_failed(&mut self, reason: Reason, message: String) {
        let (generation, now) = (self.generation(), self.now);
        let (list, kind) = (&mut self.status.conditions, ConditionType::SnapshotFailed);
        conditions::set(list, kind, Truth::True, reason, message, generation, now);
    }

    /// Gives a capture up: its number is burnt, the generation before stays.
    pub(super) fn void_capture(&mut self, why: &str) {
        let Some(capture) = self.status.snapshots.capture.take() else { return };
        self.voided = true;
        self.warn(Reason::SnapshotVoid, format!("generation {} is void: {why}", capture.generation));
        let message = format!("generation {}: {why}", capture.generation);
        self.snapshot_failed(Reason::SnapshotVoid, message);
        // guests that were to stay down for it run on
        if (!capture.captured || !capture.resume) && capture.incarnation == self.status.incarnation {
            let agents: Vec<AgentRef> = self.living_members().into_iter().filter_map(agent_ref).collect();
            if !(capture.captured && agents.is_empty()) {
                let order = self.order(&capture, agents);
                self.effect(Effect::AbandonCapture(order));
            }
        }
        let seen = self.seen.snapshots.iter().find(|snapshot| snapshot.name == capture.snapshot);
        // one that was captured may be complete by now: the snapshot controller asks the repository
        if let Some(snapshot) = seen.filter(|snapshot| snapshot.status.phase != SnapshotPhase::Captured) {
            let status = SnapshotStatus {
                generation: Some(capture.generation),
                phase: SnapshotPhase::Failed,
                incarnation: capture.incarnation,
                job_uid: self.uid.0.clone(),
                ..snapshot.status.clone()
            };
            let (name, uid) = (snapshot.name.clone(), snapshot.uid.clone());
            self.effect(Effect::WriteSnapshot { name, uid, status: Box::new(status) });
        }
    }
}

fn one_nonce(parts: &[Option<&CapturePart>]) -> bool {
    let mut nonces = parts.iter().flatten().map(|part| &part.nonce);
    let first = nonces.next();
    nonces.all(|nonce| Some(nonce) == first)
}

fn snapshot_member(member: &crate::api::job_status::MemberStatus) -> Option<SnapshotMember> {
    let agent = member.agent.as_ref()?;
    Some(SnapshotMember {
        index: member.index,
        node: member.node.clone()?,
        pod: agent.pod.clone(),
        endpoint: agent.endpoint.clone(),
    })
}
