//! What to do about an image: pure and total.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::{
    environment,
    observe::{Importer, Seen},
    status::{self, Notice},
};
use crate::{
    api::{
        ANNOTATION_IMPORT, Reason, VmImage, VmImageStatus,
        image::{ImageSource, ImportRecord, ImportResult},
    },
    backoff::Backoff,
    driver::Fact,
    image::{Outcome, Trouble},
};

/// What one pass does: the status once, then the effects, then the notes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The status to write, unless it equals the present one.
    pub status: VmImageStatus,
    /// What is done outside, in order.
    pub effects: Vec<Effect>,
    /// An event for people.
    pub note: Option<Note>,
    /// When to look again if nothing happens before; absent: only when something does.
    pub wake: Option<Duration>,
    /// The arm that decided.
    pub why: &'static str,
}

/// A write to the outside; all may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Effect {
    /// Starts the importer that the status calls for.
    StartImporter,
    /// Removes it: what it brought is gone again.
    RemoveImporter,
}

/// An event for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Whether a person should look at it.
    pub warning: bool,
    /// The reason.
    pub reason: Reason,
    /// What happened, in a sentence.
    pub message: String,
}

/// What a decision needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Digests to look for in the repository.
    pub digests: Vec<String>,
    /// Whether the importer matters.
    pub importer: bool,
}

/// Time between two looks at an importer at work.
const WORKING: Duration = Duration::from_secs(2);
/// Time between two looks while something does not answer.
const UNKNOWN: Duration = Duration::from_secs(5);
/// Time between two looks whether the repository still has an image.
const IMPORTED: Duration = Duration::from_secs(120);

/// What must be looked at.
pub fn wanted(image: &VmImage) -> Wanted {
    let status = image.status.clone().unwrap_or_default();
    let record = status.import.as_ref().filter(|record| record.fingerprint == fingerprint(image));
    match record.map(|record| record.result) {
        Some(ImportResult::Imported) => {
            let digests = [status.digest, status.kernel, status.initrd].into_iter().flatten().collect();
            Wanted { digests, importer: false }
        }
        Some(ImportResult::Refused) => Wanted { digests: Vec::new(), importer: false },
        Some(ImportResult::Failed) | None => Wanted { digests: Vec::new(), importer: true },
    }
}

/// Stands for everything of the spec that is imported, and for what a person asks of it: another value is another
/// import.
pub fn fingerprint(image: &VmImage) -> String {
    let spec = &image.spec;
    let sources: Vec<Option<&ImageSource>> = vec![
        Some(&spec.source),
        spec.os.as_ref().and_then(|os| os.kernel.as_ref()),
        spec.os.as_ref().and_then(|os| os.initrd.as_ref()),
    ];
    // plain data: writing it as text does not fail
    let mut text = serde_json::to_string(&(sources, spec.format)).unwrap_or_default();
    if let Some(size) = spec.made_disk() {
        text += &size.to_string();
    }
    if spec.skip_boot_check {
        text += " unchecked";
    }
    if let Some(asked) = image.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION_IMPORT)) {
        text += asked;
    }
    blake3::hash(text.as_bytes()).to_hex()[..12].into()
}

/// Decides.
pub fn decide(image: &VmImage, seen: &Seen, now: Timestamp) -> Plan {
    let fingerprint = fingerprint(image);
    let mut status = image.status.clone().unwrap_or_default();
    let generation = image.metadata.generation.unwrap_or_default();
    status.observed_generation = generation;
    if image.metadata.deletion_timestamp.is_some() {
        let status = image.status.clone().unwrap_or_default();
        return Plan { status, effects: vec![], note: None, wake: None, why: "being deleted" };
    }
    if status.import.as_ref().is_some_and(|record| record.fingerprint != fingerprint) {
        // the spec names something else now
        status = VmImageStatus { conditions: status.conditions, observed_generation: generation, ..Default::default() };
    }
    let mut turn = Turn { status, fingerprint, unused: environment::unused(&image.spec), now };
    if turn.status.import.is_none()
        && let Err(refused) = environment::read(&image.spec)
    {
        return turn.failed(&refused);
    }
    match turn.status.import.as_ref().map(|record| record.result) {
        Some(ImportResult::Imported) => turn.imported(seen),
        // what is to be done is in the conditions since it was refused
        Some(ImportResult::Refused) => turn.waits(None, "refused until the spec changes"),
        Some(ImportResult::Failed) => match turn.until_retry() {
            Some(left) => turn.waits(Some(left), "backing off"),
            None => turn.importing(seen),
        },
        None => turn.importing(seen),
    }
}

/// One decision on its way.
struct Turn {
    status: VmImageStatus,
    fingerprint: String,
    /// What of an environment's description is not used.
    unused: Vec<String>,
    now: Timestamp,
}

impl Turn {
    fn plan(&self, wake: Option<Duration>, why: &'static str) -> Plan {
        Plan { status: self.status.clone(), effects: vec![], note: None, wake, why }
    }

    fn show(&mut self, notice: &Notice) {
        status::show(&mut self.status, notice, self.now);
    }

    /// Nothing but time goes on; the generation in the conditions follows the spec's.
    fn waits(&mut self, wake: Option<Duration>, why: &'static str) -> Plan {
        let generation = self.status.observed_generation;
        for condition in &mut self.status.conditions {
            condition.observed_generation = Some(generation);
        }
        self.plan(wake, why)
    }

    /// Time left until the next try.
    fn until_retry(&self) -> Option<Duration> {
        let record = self.status.import.as_ref()?;
        let due = record.at.0.saturating_add(Backoff::OUTSIDE.full(self.status.failures)).ok()?;
        let left = due.duration_since(self.now);
        left.is_positive().then(|| left.unsigned_abs())
    }

    fn imported(&mut self, seen: &Seen) -> Plan {
        let missing = seen.stored.iter().find(|(_, fact)| **fact == Fact::Absent).map(|(digest, _)| digest.clone());
        if let Some(digest) = missing {
            let message = format!(
                "the repository no longer has {digest} as it was imported (it is gone, or was found damaged): importing \
                 again; no job starts from it until then"
            );
            let generation = self.status.observed_generation;
            let conditions = std::mem::take(&mut self.status.conditions);
            self.status = VmImageStatus { conditions, observed_generation: generation, ..Default::default() };
            self.show(&Notice::Importing(message.clone()));
            let note = Note { warning: true, reason: Reason::ImageImporting, message };
            let plan = self.plan(Some(WORKING), "gone from the repository");
            return Plan { effects: vec![Effect::RemoveImporter], note: Some(note), ..plan };
        }
        if seen.stored.values().any(|fact| matches!(fact, Fact::Unknown { .. })) {
            // it was there: silence of the repository takes nothing back
            return self.waits(Some(UNKNOWN), "imported; the repository does not answer");
        }
        self.show(&Notice::Imported);
        self.plan(Some(IMPORTED), "imported")
    }

    fn importing(&mut self, seen: &Seen) -> Plan {
        match &seen.importer {
            Fact::Unknown { .. } => {
                self.show(&Notice::Importing("waiting for the API server".into()));
                self.plan(Some(UNKNOWN), "the importer is unknown")
            }
            Fact::Absent if let Some(outcome) = &seen.present => {
                Plan { why: "the repository has it already", ..self.ended(outcome) }
            }
            Fact::Absent => match &seen.logins {
                Fact::Known(Ok(_)) => {
                    self.show(&Notice::Importing("the importer is being started".into()));
                    Plan { effects: vec![Effect::StartImporter], ..self.plan(Some(WORKING), "start the importer") }
                }
                Fact::Known(Err(trouble)) => self.failed(trouble),
                Fact::Absent | Fact::Unknown { .. } => {
                    self.show(&Notice::Importing("waiting for the API server".into()));
                    self.plan(Some(UNKNOWN), "the logins are unknown")
                }
            },
            Fact::Known(Importer::Working(waiting)) => {
                let words = match waiting {
                    None => "the importer fetches the image".into(),
                    Some(why) => format!("the importer waits: {why}"),
                };
                self.show(&Notice::Importing(words));
                self.plan(Some(WORKING), "the importer works")
            }
            Fact::Known(Importer::Ended(outcome)) => self.ended(outcome),
        }
    }

    fn ended(&mut self, outcome: &Outcome) -> Plan {
        match outcome {
            Outcome::Imported { disk, virtual_size, kernel, initrd, conversion } => {
                self.status.digest = Some(disk.digest.clone());
                self.status.size = Some(crate::api::quantity::Bytes(disk.size));
                self.status.virtual_size = Some(crate::api::quantity::Bytes(*virtual_size));
                self.status.kernel = kernel.as_ref().map(|file| file.digest.clone());
                self.status.initrd = initrd.as_ref().map(|file| file.digest.clone());
                self.status.os = conversion.as_ref().and_then(|conversion| conversion.os.clone());
                let made = conversion.iter().map(|conversion| conversion.log.clone());
                let log: Vec<String> = self.unused.iter().cloned().chain(made).collect();
                self.status.log = (!log.is_empty()).then(|| log.join("\n"));
                self.status.failures = 0;
                self.record(ImportResult::Imported);
                self.show(&Notice::Imported);
                let message = format!("{} is in the repository", disk.digest);
                let note = Note { warning: false, reason: Reason::ImageImported, message };
                Plan { note: Some(note), ..self.plan(Some(IMPORTED), "the importer has ended well") }
            }
            Outcome::Failed(trouble) => self.failed(trouble),
        }
    }

    fn failed(&mut self, trouble: &Trouble) -> Plan {
        self.status.failures = self.status.failures.saturating_add(1);
        let (result, wake, why) = if trouble.again {
            let wait = Backoff::OUTSIDE.full(self.status.failures);
            (ImportResult::Failed, Some(wait), "failed; tried again")
        } else {
            (ImportResult::Refused, None, "refused")
        };
        self.record(result);
        let reason = trouble.kind.reason();
        let message = match wake {
            Some(wait) => format!("{}; tried again in {} s", trouble.message, wait.as_secs()),
            None => trouble.message.clone(),
        };
        self.show(&if trouble.again {
            Notice::Failed(reason, message.clone())
        } else {
            Notice::Refused(reason, message.clone())
        });
        Plan { note: Some(Note { warning: true, reason, message }), ..self.plan(wake, why) }
    }

    fn record(&mut self, result: ImportResult) {
        let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now);
        self.status.import = Some(ImportRecord { fingerprint: self.fingerprint.clone(), result, at });
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
