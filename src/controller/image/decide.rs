//! What to do about an image: pure and total.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde::Serialize;

use super::{
    environment,
    observe::{Importer, Seen},
    recorded::Looked,
    status::{self, Notice},
};
use crate::{
    api::{
        ANNOTATION_IMPORT, Reason, VmImage, VmImageStatus,
        image::{ImageSource, ImportRecord, ImportResult, Pinned},
    },
    backoff::Backoff,
    controller::note::Note,
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
    /// Starts the importer that the status calls for, or makes what one lacks that was started.
    StartImporter,
    /// Removes it: what it brought is gone again.
    RemoveImporter,
}

/// What a decision needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Digests to look for in the repository.
    pub digests: Vec<String>,
    /// Whether the importer matters.
    pub importer: bool,
    /// Whether the environment that the spec names is to be looked up.
    pub environment: bool,
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
    let newest = newest(&status, &fingerprint(image));
    let files = [status.digest, status.kernel, status.initrd].into_iter().flatten();
    let digests = if is_there(image) { files.collect() } else { Vec::new() };
    match newest {
        Some(ImportResult::Imported | ImportResult::Refused) => Wanted { digests, ..Wanted::default() },
        Some(ImportResult::Failed) | None => {
            let named = image.spec.source.environment.as_ref().is_some_and(|source| source.name.is_some());
            let environment = named && pinned(image).is_none_or(|pinned| pinned.environment.is_none());
            Wanted { digests, importer: !environment, environment }
        }
    }
}

/// How the import that is called for ended, if it has.
fn newest(status: &VmImageStatus, fingerprint: &str) -> Option<ImportResult> {
    status.import.as_ref().filter(|record| record.fingerprint == fingerprint).map(|record| record.result)
}

/// Whether the status names what was imported for the content of the spec as it is, though a person may have asked for
/// another import of it since.
fn is_there(image: &VmImage) -> bool {
    let Some(VmImageStatus { digest: Some(_), import: Some(record), .. }) = &image.status else { return false };
    record.fingerprint.starts_with(&content(image))
}

/// What names in the spec stand for, if they have been looked up since an import was asked for.
pub(super) fn pinned(image: &VmImage) -> Option<&Pinned> {
    let pinned = image.status.as_ref()?.pinned.as_ref()?;
    (pinned.fingerprint == fingerprint(image)).then_some(pinned)
}

/// Stands for everything of the spec that is imported.
fn content(image: &VmImage) -> String {
    hash(&plain(image))
}

/// Stands for everything of the spec that is imported, with which it begins, and for what a person asks of it: another
/// value is another import.
pub fn fingerprint(image: &VmImage) -> String {
    let content = content(image);
    let asked = image.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION_IMPORT));
    match asked.filter(|asked| !asked.is_empty()) {
        Some(asked) => format!("{content}-{}", hash(asked)),
        None => content,
    }
}

fn plain(image: &VmImage) -> String {
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
    text
}

fn hash(text: &str) -> String {
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
    let newest = newest(&status, &fingerprint);
    let there = is_there(image);
    // what is there stays until what takes its place is there
    let kept = there && newest != Some(ImportResult::Imported);
    if status.import.is_some() && newest.is_none() {
        if kept {
            // those of another import
            status.failures = 0;
        } else {
            // the spec names something else now
            let conditions = status.conditions;
            status = VmImageStatus { conditions, observed_generation: generation, ..Default::default() };
        }
    }
    if !kept {
        status.pinned = pinned(image).cloned();
    }
    let mut turn = Turn { status, image, fingerprint, kept, now };
    let lost = seen.stored.iter().find(|(_, fact)| **fact == Fact::Absent);
    if let Some((digest, _)) = lost.filter(|_| there) {
        return turn.lost(digest);
    }
    match newest {
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
struct Turn<'a> {
    status: VmImageStatus,
    image: &'a VmImage,
    fingerprint: String,
    /// Whether it is ready as it was imported before, while it is imported again because a person asks for that.
    kept: bool,
    now: Timestamp,
}

impl Turn<'_> {
    fn plan(&self, wake: Option<Duration>, why: &'static str) -> Plan {
        // whether the repository still has it matters as long as it is ready
        let wake = if self.kept { Some(wake.map_or(IMPORTED, |wake| wake.min(IMPORTED))) } else { wake };
        Plan { status: self.status.clone(), effects: vec![], note: None, wake, why }
    }

    fn show(&mut self, notice: Notice) {
        let notice = if self.kept { notice.kept() } else { notice };
        status::show(&mut self.status, &notice, self.now);
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

    /// What the repository no longer has is named no more. An import that is asked for goes on as it was; one that was
    /// refused is tried once more.
    fn lost(&mut self, digest: &str) -> Plan {
        let message = format!(
            "the repository no longer has {digest} as it was imported (it is gone, or was found damaged): importing \
             again; no job starts from it until then"
        );
        // another import has another importer
        let effects = if self.kept { vec![] } else { vec![Effect::RemoveImporter] };
        let old = std::mem::take(&mut self.status);
        let failed =
            |record: &ImportRecord| record.fingerprint == self.fingerprint && record.result == ImportResult::Failed;
        self.status = VmImageStatus {
            import: old.import.filter(failed),
            failures: old.failures,
            conditions: old.conditions,
            pinned: old.pinned,
            observed_generation: old.observed_generation,
            ..VmImageStatus::default()
        };
        self.kept = false;
        self.show(Notice::Importing(message.clone()));
        let note = Note { warning: true, reason: Reason::ImageImporting, message };
        Plan { effects, note: Some(note), ..self.plan(Some(WORKING), "gone from the repository") }
    }

    fn imported(&mut self, seen: &Seen) -> Plan {
        if seen.stored.values().any(|fact| matches!(fact, Fact::Unknown { .. })) {
            // it was there: silence of the repository takes nothing back
            return self.waits(Some(UNKNOWN), "imported; the repository does not answer");
        }
        self.show(Notice::Imported);
        self.plan(Some(IMPORTED), "imported")
    }

    /// What names stand for in this import; none of what they stood for in one before.
    fn take_pinned(&mut self) -> Option<Pinned> {
        self.status.pinned.take().filter(|pinned| pinned.fingerprint == self.fingerprint)
    }

    fn pin(&mut self, set: impl FnOnce(&mut Pinned)) {
        let mut pinned = self.take_pinned().unwrap_or_else(|| Pinned {
            fingerprint: self.fingerprint.clone(),
            content: content(self.image),
            environment: None,
            manifests: BTreeMap::new(),
        });
        set(&mut pinned);
        self.status.pinned = Some(pinned);
    }

    /// What the name of an environment stands for is written down before anything is made of it.
    fn looked_up(&mut self, looked: &Looked) -> Plan {
        match looked {
            Looked::Found(environment) => {
                self.pin(|pinned| pinned.environment = Some(environment.clone()));
                self.show(Notice::Importing("the environment has been looked up".into()));
                self.plan(Some(Duration::ZERO), "the environment is known")
            }
            Looked::Silent(why) => {
                self.show(Notice::Unknown(Reason::KadeployUnreachable, why.clone()));
                self.plan(Some(UNKNOWN), "the deployment server does not answer")
            }
            Looked::Wrong(trouble) => self.failed(trouble),
        }
    }

    fn importing(&mut self, seen: &Seen) -> Plan {
        if let Some(looked) = &seen.environment {
            return self.looked_up(looked);
        }
        if let Err(refused) = environment::read(self.image) {
            return self.failed(&refused);
        }
        match &seen.importer {
            Fact::Unknown { .. } => {
                self.show(Notice::Importing("waiting for the API server".into()));
                self.plan(Some(UNKNOWN), "the importer is unknown")
            }
            Fact::Absent if let Some(outcome) = &seen.present => {
                Plan { why: "the repository has it already", ..self.ended(outcome) }
            }
            Fact::Absent => match &seen.logins {
                Fact::Known(Ok(_)) => {
                    self.show(Notice::Importing("the importer is being started".into()));
                    Plan { effects: vec![Effect::StartImporter], ..self.plan(Some(WORKING), "start the importer") }
                }
                Fact::Known(Err(trouble)) => self.failed(trouble),
                Fact::Absent | Fact::Unknown { .. } => {
                    self.show(Notice::Importing("waiting for the API server".into()));
                    self.plan(Some(UNKNOWN), "the logins are unknown")
                }
            },
            Fact::Known(Importer::Working(waiting)) => {
                let words = match waiting {
                    None => "the importer fetches the image".into(),
                    Some(why) => format!("the importer waits: {why}"),
                };
                self.show(Notice::Importing(words));
                self.plan(Some(WORKING), "the importer works")
            }
            Fact::Known(Importer::Unfinished(why)) => {
                self.show(Notice::Importing(format!("the importer waits: {why}")));
                // as long as they are unknown or wrong, its Secret cannot be made
                let effects = match &seen.logins {
                    Fact::Known(Ok(_)) => vec![Effect::StartImporter],
                    Fact::Known(Err(_)) | Fact::Absent | Fact::Unknown { .. } => vec![],
                };
                Plan { effects, ..self.plan(Some(WORKING), "another operator has started the importer") }
            }
            Fact::Known(Importer::Ended(outcome)) => self.ended(outcome),
        }
    }

    fn ended(&mut self, outcome: &Outcome) -> Plan {
        match outcome {
            Outcome::Imported { disk, virtual_size, kernel, initrd, conversion, manifests } => {
                self.status.pinned = self.take_pinned();
                if !manifests.is_empty() {
                    self.pin(|pinned| pinned.manifests.clone_from(manifests));
                }
                self.status.digest = Some(disk.digest.clone());
                self.status.size = Some(crate::api::quantity::Bytes(disk.size));
                self.status.virtual_size = Some(crate::api::quantity::Bytes(*virtual_size));
                self.status.kernel = kernel.as_ref().map(|file| file.digest.clone());
                self.status.initrd = initrd.as_ref().map(|file| file.digest.clone());
                self.status.os = conversion.as_ref().and_then(|conversion| conversion.os.clone());
                let made = conversion.iter().map(|conversion| conversion.log.clone());
                let log: Vec<String> = environment::unused(self.image).into_iter().chain(made).collect();
                self.status.log = (!log.is_empty()).then(|| log.join("\n"));
                self.status.failures = 0;
                self.record(ImportResult::Imported);
                self.show(Notice::Imported);
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
        let again = if self.kept { "importing again failed: " } else { "" };
        let what = format!("{again}{}", trouble.message);
        let message = match wake {
            Some(wait) => format!("{what}; tried again in {} s", wait.as_secs()),
            None => what.clone(),
        };
        self.show(if trouble.again { Notice::Failed(reason, message) } else { Notice::Refused(reason, message) });
        // of what is ready people hear once, and not at each try
        let told = self.kept && trouble.again && self.status.failures > 1;
        // each time in the same words, so that it is counted
        let note = Note { warning: true, reason, message: what };
        Plan { note: (!told).then_some(note), ..self.plan(wake, why) }
    }

    fn record(&mut self, result: ImportResult) {
        let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now);
        self.status.import = Some(ImportRecord { fingerprint: self.fingerprint.clone(), result, at });
    }
}

#[cfg(test)]
#[path = "again_tests.rs"]
mod again;
#[cfg(test)]
#[path = "named_tests.rs"]
mod named;
#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
