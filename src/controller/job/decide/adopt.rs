//! `restoreFrom`: a job that begins with a generation of another one. The repository makes it the job's own
//! generation 0 before a slot is asked for, and everything else is as after any loss (safety B11).
//!
//! What is copied is in the status first. The copy may be repeated, and is there as soon as the repository
//! lists it, whoever has asked for it.

use std::time::Duration;

use super::draft::{Draft, Problem, wrong};
use crate::{
    api::{
        BestEffortJobSpec, JobPhase, Reason,
        job_status::{Adopted, NetworkStatus, ResolvedImage},
        snapshot::SnapshotPhase,
    },
    controller::job::plan::{Effect, SourceSeen, SourceSnapshot},
    driver::Fact,
    store::{
        adoption::{ADOPTED, Adoption, Ancestor, GuestRecord, run_digest},
        manifest::Manifest,
    },
};

/// How often a snapshot is looked at that is not complete yet; its changes are told of, too.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// How often the repository is asked to copy.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// The same, after it has said why it cannot.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);

/// What a job begins with instead of its image.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) manifest: &'a Manifest,
    pub(super) guests: &'a GuestRecord,
}

impl Source<'_> {
    /// The network its guests have: the job's own one has the same addresses.
    pub(super) fn network(&self) -> Option<NetworkStatus> {
        let network = self.guests.network.as_ref()?;
        Some(NetworkStatus { subnet: network.subnet.to_string(), mtu: network.mtu, vni: 0, port: 0, way_in: None })
    }
}

impl<'a> Draft<'a> {
    /// What the job is to begin with, if its spec names a snapshot.
    pub(super) fn source(&mut self) -> Result<Option<Source<'a>>, Problem> {
        if self.job.spec.restore_from.is_none() {
            return Ok(None);
        }
        let Some(seen) = self.seen.source.as_ref() else {
            self.because("what it is to start from is not known yet");
            self.wake(Duration::from_secs(2));
            return Err(None);
        };
        if self.status.adopted.is_none() {
            self.usable(seen)?;
        }
        if let Some(why) = self.seen.content.known().and_then(|content| content.damage(ADOPTED)) {
            let message = format!("what was copied from Snapshot {} is damaged ({why}): make another job", seen.name);
            return wrong(Reason::SnapshotDamaged, message);
        }
        let adopted = self.status.adopted.as_ref();
        let name = &seen.name;
        let manifest: &'a Manifest = match (&seen.manifest, adopted) {
            (Fact::Known(manifest), _) => manifest,
            (Fact::Absent, Some(adopted)) if adopted.complete.is_some() => {
                let message = format!(
                    "the repository no longer has generation 0, which was Snapshot {name}: bring its data back, or make \
                     another job"
                );
                return wrong(Reason::SnapshotLost, message);
            }
            (Fact::Absent, _) => {
                let message = format!(
                    "the repository has no generation any more for Snapshot {name}: name another one{}",
                    if adopted.is_some() { " in another job" } else { "" }
                );
                return wrong(Reason::SnapshotLost, message);
            }
            (Fact::Unknown { .. }, _) => {
                if let Some((reason, why)) = &seen.trouble {
                    return wrong(*reason, format!("the generation of Snapshot {name} cannot be had: {why}"));
                }
                self.because("the repository does not answer");
                self.wake(Duration::from_secs(2));
                return Err(None);
            }
        };
        if Some(&manifest.namespace) != self.job.metadata.namespace.as_ref() {
            return wrong(Reason::SnapshotLost, format!("the generation of Snapshot {name} is not of this namespace"));
        }
        match &manifest.guests {
            Some(guests) => Ok(Some(Source { manifest, guests })),
            None => wrong(
                Reason::NotSupported,
                format!(
                    "Snapshot {name} was stored by a version that did not note what its guests know of themselves: \
                     take another one of job {}",
                    manifest.job_name
                ),
            ),
        }
    }

    /// Whether the snapshot is there and complete.
    fn usable(&mut self, seen: &SourceSeen) -> Result<(), Problem> {
        let name = &seen.name;
        let Some(snapshot) = &seen.snapshot else {
            let message = format!(
                "there is no Snapshot {name} in this namespace: restoreFrom.snapshot must name a complete one, see \
                 kubectl get snapshots"
            );
            return wrong(Reason::SnapshotNotFound, message);
        };
        if snapshot.deleting {
            return wrong(Reason::SnapshotLost, format!("Snapshot {name} is being deleted: name another one"));
        }
        match snapshot.phase {
            SnapshotPhase::Stored => Ok(()),
            SnapshotPhase::Failed => wrong(Reason::SnapshotLost, format!("Snapshot {name} is void: name another one")),
            SnapshotPhase::Pending | SnapshotPhase::Capturing | SnapshotPhase::Captured => {
                self.phase(JobPhase::Pending);
                // whatever was wrong with it before
                self.status.retry = None;
                self.because("the snapshot to start from is not complete");
                self.wake(LOOK_AGAIN);
                Err(None)
            }
        }
    }

    /// Whether the job must have a generation of another one before it asks for slots.
    pub(super) fn must_adopt(&self) -> bool {
        let complete = self.status.adopted.as_ref().is_some_and(|adopted| adopted.complete.is_some());
        self.job.spec.restore_from.is_some() && self.status.started.is_none() && !complete
    }

    /// Has the generation copied; the intent is in the status first.
    pub(super) fn adopt_generation(&mut self, source: Source<'_>) {
        let Some(seen) = &self.seen.source else { return };
        if self.status.adopted.is_none() {
            let Some(SourceSnapshot { job, job_uid, generation, .. }) = seen.snapshot.clone() else { return };
            let work = source.manifest.members.iter().map(|part| part.ran).sum::<f64>() as u64;
            let snapshot = seen.name.clone();
            self.status.adopted = Some(Adopted { snapshot, job, job_uid, generation, complete: None, work });
        }
        let Some(adopted) = &self.status.adopted else { return };
        let from = Ancestor { job: adopted.job_uid.clone().into(), generation: adopted.generation };
        let order = Adoption {
            from,
            job_name: self.job.metadata.name.clone().unwrap_or_default(),
            namespace: self.job.metadata.namespace.clone().unwrap_or_default(),
        };
        self.because("the generation to start from is being copied");
        self.repeat(Effect::Adopt(order), if seen.refused.is_some() { REFUSED_AGAIN } else { ASK_AGAIN });
    }

    /// Takes note of a generation that was copied.
    pub(super) fn note_adopted(&mut self) {
        let (now, seen) = (self.time(), self.seen);
        let Some(adopted) = self.status.adopted.as_mut().filter(|adopted| adopted.complete.is_none()) else { return };
        let found =
            seen.content.known().and_then(|content| content.generations.iter().find(|g| g.generation == ADOPTED));
        let Some(found) = found else { return };
        adopted.complete = Some(now);
        let message = format!("generation {} of job {} is generation 0 of this one", adopted.generation, adopted.job);
        self.status.snapshots.last_stored = Some(ADOPTED);
        self.status.snapshots.last_stored_at =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(found.taken_at));
        self.note(Reason::Adopted, message);
    }
}

/// What must be changed for a job to go on from a generation.
pub(super) fn differences(spec: &BestEffortJobSpec, image: &ResolvedImage, source: Source<'_>) -> Vec<String> {
    let Source { manifest, guests } = source;
    let mut found = Vec::new();
    let mut compare = |what: &str, is: String, must: String| {
        if is != must {
            found.push(format!("{what} is {is} and must be {must}"));
        }
    };
    compare("members", spec.members.to_string(), manifest.members.len().to_string());
    compare("vm.cpus", spec.vm.cpus.to_string(), guests.vm.cpus.to_string());
    compare("vm.memory", spec.vm.memory.to_string(), guests.vm.memory.to_string());
    compare("vm.cpuModel", spec.vm.cpu_model.clone(), guests.vm.cpu_model.clone());
    compare("vm.machine", spec.vm.machine.clone(), guests.vm.machine.clone());
    let theirs = &manifest.image;
    if !image.files().eq(theirs.files()) {
        found.push(format!(
            "image {}/{} has other files than {}/{} had when the snapshot was taken: leave image out",
            image.namespace, image.name, theirs.namespace, theirs.name
        ));
    } else if spec.vm.disk_over(image.virtual_size) != guests.vm.disk_over(theirs.virtual_size) {
        found.push(match guests.vm.disk {
            Some(disk) => format!("vm.disk must be {disk}"),
            None => "vm.disk must be left out".to_owned(),
        });
    }
    // what runs already goes on, whatever is asked for
    if manifest.members.iter().any(|part| part.started) && run_digest(&spec.run) != guests.run {
        found.push(format!("run must be that of job {}, whose command goes on", manifest.job_name));
    }
    found
}
