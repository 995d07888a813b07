//! Whose the bucket is: an object with an epoch, which each repository that starts raises, and which only the one that
//! wrote it last can write again. What decides something (records of jobs, manifests) is announced in it first, and is
//! then put only if what is there is what was there before.
//!
//! So an old repository that is only cut off, or stands still for however long between any two of its requests, can
//! publish nothing any more (safety A9, B1), as long as what its successor wrote there stays: either its announcement
//! comes too late; or its successor finds the announcement, and writes in that one place, before it looks at anything
//! else, so that the late request is refused. Removals are asked for only shortly after the object was seen; the
//! successor waits for as long as they may last, and whom it waits for stands in the object until that is over: whoever
//! comes after a successor that has ended waits too.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use object_store::{PutMode, UpdateVersion};
use serde::{Deserialize, Serialize};

use super::{
    error::{error, unconditional},
    moment::Moment,
    note::{Stamp, note, stamp_of, stamped},
    objects::Objects,
};

/// Its name.
const OWNER: &str = "owner.json";
/// Who was the owner so shortly ago may still remove something.
pub(super) const SEEN: Duration = Duration::from_secs(2);
/// The object is written again so often when others write it at the same time.
const TRIES: u32 = 4;
/// What to do where a place is not this repository's alone.
const ANOTHER_PREFIX: &str = "give this one another prefix (repository.s3.prefix)";

/// Two want the same place.
fn contended(objects: &Objects, what: &str) -> io::Error {
    error(format!("{what} in {}: stop the other repository, or {ANOTHER_PREFIX}", objects.name()))
}

/// What is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    /// Tells the bucket from others.
    #[serde(default)]
    id: String,
    /// Raised by each repository that starts.
    epoch: u64,
    /// The process of the owner; none if it has ended and nothing of it is under way.
    holder: Option<String>,
    /// Of whom something may still be under way: the owner waits for that before it does anything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    /// What the owner is about to write.
    pending: Option<PathBuf>,
    /// Counts the owner's writings.
    number: u64,
}

impl Record {
    fn read(bytes: &Bytes) -> io::Result<Self> {
        serde_json::from_slice(bytes)
            .map_err(|e| error(format!("{OWNER} in the bucket is not a repository's ({e}): {ANOTHER_PREFIX}")))
    }

    fn bytes(&self) -> Bytes {
        // a plain structure is always written
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

fn unique() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// Which bucket it was, and how often it had been taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    id: String,
    epoch: u64,
}

impl Seen {
    /// An error unless what is in the bucket comes from what was there: all that is lost would count as removed.
    pub(super) fn check(&self, objects: &Objects, cache: &Path) -> io::Result<()> {
        let found = objects.get(Path::new(OWNER))?.map(|(bytes, _)| Record::read(&bytes)).transpose()?;
        let why = match found {
            None => "has nothing of it",
            Some(found) if !found.id.is_empty() && found.id != self.id => "is another one",
            Some(found) if found.epoch < self.epoch => "has an older state",
            Some(_) => return Ok(()),
        };
        let (name, cache) = (objects.name(), cache.display());
        Err(error(format!(
            "{cache} is the cache of a bucket, and {name} {why}: correct the bucket, its prefix and its endpoint; only if \
             what is there now is to be served, empty {cache}"
        )))
    }
}

/// A process that takes buckets.
#[derive(Debug)]
pub(super) struct Holder {
    id: String,
    /// Another one came while it waited: it would be no use to take the bucket back and forth.
    out: OnceLock<String>,
}

impl Holder {
    /// One that there was never before.
    pub(super) fn new() -> Self {
        Self { id: unique(), out: OnceLock::new() }
    }

    /// This one.
    pub(super) fn this() -> &'static Self {
        static THIS: LazyLock<Holder> = LazyLock::new(Holder::new);
        &THIS
    }
}

/// The owner.
#[derive(Debug)]
pub(super) struct Owner {
    objects: Arc<Objects>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    record: Record,
    version: UpdateVersion,
    /// When it was certain last.
    seen: Moment,
    /// Another one has taken its place.
    lost: Option<String>,
    /// Of this it is not known whether it was written.
    outstanding: Option<PathBuf>,
    /// What there is now of notes that are written again.
    versions: HashMap<PathBuf, UpdateVersion>,
}

impl Owner {
    /// Makes this process the owner. `handover`: as long as requests of another one may last.
    pub(super) fn take(objects: &Arc<Objects>, holder: &Holder, handover: Duration) -> io::Result<Self> {
        if let Some(why) = holder.out.get() {
            return Err(error(why.clone()));
        }
        for _ in 0..TRIES {
            let found = objects.get(Path::new(OWNER))?;
            let old = found.as_ref().map(|(bytes, _)| Record::read(bytes)).transpose()?;
            let before = old.as_ref().and_then(|old| {
                let another = old.holder.as_ref().filter(|before| **before != holder.id);
                another.or(old.after.as_ref()).cloned()
            });
            let known = old.as_ref().map(|old| old.id.clone()).filter(|id| !id.is_empty());
            let record = Record {
                id: known.unwrap_or_else(unique),
                epoch: old.as_ref().map_or(1, |old| old.epoch + 1),
                holder: Some(holder.id.clone()),
                after: before,
                pending: old.and_then(|old| old.pending),
                number: 0,
            };
            let mode = found.map_or(PutMode::Create, |(_, version)| PutMode::Update(version));
            let seen = Moment::now();
            let Some(version) = objects.put_if(Path::new(OWNER), &record.bytes(), mode)? else { continue };
            check_conditions(objects, &record)?;
            let versions = HashMap::new();
            let mut state = State { record, version, seen, lost: None, outstanding: None, versions };
            wait(objects, &mut state, holder, handover)?;
            if let Some(pending) = state.record.pending.clone() {
                settle(objects, &mut state, &pending)?;
            }
            return Ok(Self { objects: objects.clone(), state: Mutex::new(state) });
        }
        Err(contended(objects, &format!("others write {OWNER} at the same time")))
    }

    /// What it has taken.
    pub(super) fn seen(&self) -> Seen {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Seen { id: state.record.id.clone(), epoch: state.record.epoch }
    }

    fn lock(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &state.lost {
            None => Ok(state),
            Some(why) => Err(error(why.clone())),
        }
    }

    /// An error unless it still is the owner, as far as was certain a moment ago.
    pub(super) fn confirm(&self) -> io::Result<()> {
        if self.lock()?.seen.elapsed() < SEEN {
            return Ok(());
        }
        let asked = Moment::now();
        // others need not wait for the reply
        let found = self.objects.get(Path::new(OWNER))?;
        let mut state = self.lock()?;
        match found {
            // the version may be an older one by now
            Some((bytes, _)) if is_own(&state, &bytes)? => {
                state.seen = state.seen.max(asked);
                Ok(())
            }
            found => Err(lose(&self.objects, &mut state, found.is_some())),
        }
    }

    /// What there is of a note.
    pub(super) fn know(&self, below: PathBuf, version: UpdateVersion) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.versions.insert(below, version);
    }

    /// What is below a path is gone.
    pub(super) fn forget(&self, below: &Path) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.versions.retain(|path, _| !path.starts_with(below));
    }

    /// Writes a note that decides something. After an error it may have been written or not, until the next is.
    pub(super) fn commit(&self, below: &Path, content: &[u8]) -> io::Result<()> {
        let mut state = self.lock()?;
        if let Some(before) = state.outstanding.clone() {
            settle(&self.objects, &mut state, &before)?;
            state.outstanding = None;
        }
        for _ in 0..TRIES {
            // also before another try: what is there may be another one's
            self.announce(&mut state, below)?;
            let stamp = Stamp { epoch: state.record.epoch, number: state.record.number, void: false };
            let bytes = stamped(stamp, content);
            state.outstanding = Some(below.to_owned());
            let known = state.versions.get(below).cloned();
            let mode = known.map_or(PutMode::Create, PutMode::Update);
            if let Some(version) = self.objects.put_if(below, &bytes, mode)? {
                state.versions.insert(below.to_owned(), version);
                state.outstanding = None;
                return Ok(());
            }
            match self.objects.get(below)? {
                None => drop(state.versions.remove(below)),
                // one that this one has followed has written again what was there
                Some((found, version)) if stamp_of(&found).is_some_and(|found| found.epoch <= stamp.epoch) => {
                    state.versions.insert(below.to_owned(), version);
                }
                Some(_) => break,
            }
        }
        state.outstanding = None;
        Err(contended(&self.objects, &format!("{} was changed by somebody else", below.display())))
    }

    fn announce(&self, state: &mut State, below: &Path) -> io::Result<()> {
        for _ in 0..TRIES {
            let pending = Some(below.to_owned());
            let new = Record { pending, number: state.record.number + 1, ..state.record.clone() };
            let asked = Moment::now();
            // also where this fails, no number is used twice
            state.record.number = new.number;
            if let Some(version) =
                self.objects.put_if(Path::new(OWNER), &new.bytes(), PutMode::Update(state.version.clone()))?
            {
                (state.record, state.version, state.seen) = (new, version, asked);
                return Ok(());
            }
            // one of its own of which the reply was lost
            match self.objects.get(Path::new(OWNER))? {
                Some((bytes, version)) if is_own(state, &bytes)? => state.version = version,
                found => return Err(lose(&self.objects, state, found.is_some())),
            }
        }
        Err(contended(&self.objects, &format!("{OWNER} changes again and again")))
    }

    /// Nothing of it is under way any more: whoever comes next need not wait.
    pub(super) fn resign(&self) -> io::Result<()> {
        let mut state = self.lock()?;
        let new = Record { holder: None, number: state.record.number + 1, ..state.record.clone() };
        let update = PutMode::Update(state.version.clone());
        self.objects.put_if(Path::new(OWNER), &new.bytes(), update)?;
        state.lost = Some("this repository has ended".into());
        Ok(())
    }
}

fn is_own(state: &State, bytes: &Bytes) -> io::Result<bool> {
    let found = Record::read(bytes)?;
    Ok((found.epoch, &found.holder) == (state.record.epoch, &state.record.holder))
}

fn lose(objects: &Objects, state: &mut State, is_taken: bool) -> io::Error {
    let name = objects.name();
    let why = if is_taken {
        format!(
            "another repository has taken {name} over: stop the other one and start this one again, or {ANOTHER_PREFIX}"
        )
    } else {
        format!(
            "{OWNER} was removed from {name}: nothing is written any more; if the rest of it is whole, empty the volume and \
             start the repository again"
        )
    };
    tracing::error!(why, "this repository is not the owner of its bucket any more");
    state.lost = Some(why.clone());
    error(why)
}

/// Waits for what another one may have begun, if there is one.
fn wait(objects: &Objects, state: &mut State, holder: &Holder, handover: Duration) -> io::Result<()> {
    let Some(other) = &state.record.after else { return Ok(()) };
    tracing::info!(other, seconds = handover.as_secs(), "waiting for what another repository may have begun");
    objects.pause(handover)?;
    let record = Record { after: None, number: state.record.number + 1, ..state.record.clone() };
    let asked = Moment::now();
    let Some(version) = objects.put_if(Path::new(OWNER), &record.bytes(), PutMode::Update(state.version.clone()))?
    else {
        let why = format!(
            "another repository has taken {} over while this one waited: stop the other one and start this one again, or \
             {ANOTHER_PREFIX}",
            objects.name()
        );
        return Err(error(holder.out.get_or_init(|| why).clone()));
    };
    (state.record, state.version, state.seen) = (record, version, asked);
    Ok(())
}

/// Makes certain that a request which may still be under way changes nothing any more in this place.
fn settle(objects: &Objects, state: &mut State, below: &Path) -> io::Result<()> {
    for _ in 0..TRIES {
        state.record.number += 1;
        let stamp = Stamp { epoch: state.record.epoch, number: state.record.number, void: false };
        let (bytes, mode) = match objects.get(below)? {
            None => (stamped(Stamp { void: true, ..stamp }, &[]), PutMode::Create),
            Some((found, version)) => match note(&found) {
                None => (stamped(Stamp { void: true, ..stamp }, &[]), PutMode::Update(version)),
                Some(content) => (stamped(stamp, &content), PutMode::Update(version)),
            },
        };
        if let Some(version) = objects.put_if(below, &bytes, mode)? {
            state.versions.insert(below.to_owned(), version);
            return Ok(());
        }
    }
    Err(contended(objects, &format!("{} changes again and again", below.display())))
}

/// A store that does not look at conditions accepts what must be refused.
fn check_conditions(objects: &Objects, own: &Record) -> io::Result<()> {
    let another = UpdateVersion { e_tag: Some(format!("\"{}\"", "0".repeat(32))), version: None };
    for (header, mode) in [("If-None-Match", PutMode::Create), ("If-Match", PutMode::Update(another))] {
        if objects.try_put(Path::new(OWNER), &own.bytes(), mode)?.is_some() {
            return Err(unconditional(&format!("it ignores {header}")));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "owner_tests.rs"]
mod tests;
