//! Packs of a job on the disk: in, promised, read again, and set aside when they are damaged. Blocking.
//!
//! All but the reading happens under the job's lock, which a sweep takes too (safety B10).

use std::{
    collections::{BTreeSet, HashMap},
    fs::{File, FileTimes},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    time::SystemTime,
};

use jiff::{SignedDuration, Timestamp};
use rustix::io::Errno;

use super::{
    blocks::Entry,
    durable::disk_error,
    files::{FileIdentity, Opened},
    indices::Held,
    receive::Received,
    recipes::Needs,
    room::Most,
    store::{Outcome, Store, refused},
    uploads::Origin,
};
use crate::{
    driver::repository::RepositoryError,
    names::JobUid,
    store::{
        layout::{self, DAMAGED, PartName},
        pack::{BlockName, Index, MAX_STORED, PackError, PackName, PackRef, TRAILER, index_length},
        recipe::{Located, Place},
    },
};

/// A promise is written to the disk when the last one is older.
const PROMISED: SignedDuration = SignedDuration::from_mins(10);
/// A pack that changes while it is being judged is looked at again so often.
const LOOKS: u32 = 3;
const _: () = assert!(MAX_STORED < u32::MAX as usize);

/// What is wrong with a pack on the disk.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// The disk.
    #[error(transparent)]
    Disk(#[from] io::Error),
    /// It is not what its name says.
    #[error(transparent)]
    Damaged(#[from] PackError),
}

impl Trouble {
    /// Whether there is no such file.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Self::Disk(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// What an error while a pack's bytes are read says: a file system that knows them to be lost will not find them
/// again, and a pack that stays for ever unread can neither be given up nor sent again.
fn unreadable(error: io::Error) -> Trouble {
    let lost = [Errno::IO, Errno::UCLEAN, Errno::BADMSG].map(Errno::raw_os_error);
    match error.raw_os_error() {
        Some(code) if lost.contains(&code) => PackError::Format("its bytes cannot be read from the disk").into(),
        _ => error.into(),
    }
}

fn pack_of(name: PackName, length: u64, index: usize) -> Result<PackRef, PackError> {
    let too_large = |_| PackError::Format("it is too large");
    let stored = u32::try_from(length).map_err(too_large)?;
    Ok(PackRef { name, stored, index: u32::try_from(index).map_err(too_large)? })
}

/// Reads what a pack says of itself, and nothing else of it.
pub(super) fn read_index(file: &mut Opened, name: PackName) -> Result<(PackRef, Index), Trouble> {
    let short = PackError::Format("it is too short");
    let length = file.length()?;
    let mut trailer = [0; TRAILER];
    file.seek(SeekFrom::Start(length.checked_sub(TRAILER as u64).ok_or(short.clone())?))?;
    file.read_exact(&mut trailer).map_err(unreadable)?;
    let pack = pack_of(name, length, index_length(&trailer)?)?;
    if pack.index > pack.stored {
        return Err(short.into());
    }
    let mut tail = vec![0; pack.index as usize];
    file.seek(SeekFrom::Start(pack.index_range().start))?;
    file.read_exact(&mut tail).map_err(unreadable)?;
    let index = pack.read_index(&tail)?;
    Ok((pack, index))
}

/// Reads a pack and compares its frames with their hashes; `blocks`: each block with its name, too.
pub(super) fn check_pack(
    opened: io::Result<Opened>,
    name: PackName,
    blocks: bool,
) -> Result<(PackRef, Index), Trouble> {
    let mut file = opened?;
    let (pack, index) = read_index(&mut file, name)?;
    if !pack.is_sane() {
        return Err(PackError::Format("it is too large").into());
    }
    let frames = read_frames(file, &index)?;
    if frames.len() as u64 != index.frames_end() {
        return Err(PackError::Format("it is too short").into());
    }
    for frame in index.split(0, &frames) {
        let (number, stored) = frame?;
        index.check(number, stored)?;
        if blocks {
            index.unpack(number, stored)?;
        }
    }
    Ok((pack, index))
}

fn read_frames(mut file: Opened, index: &Index) -> Result<Vec<u8>, Trouble> {
    let mut frames = Vec::new();
    file.rewind()?;
    file.take(index.frames_end()).read_to_end(&mut frames).map_err(unreadable)?;
    Ok(frames)
}

/// The frames of a pack that are not what its index says; none if nothing of it can be used.
pub(super) fn bad_frames(mut file: Opened, name: PackName) -> Result<Option<BTreeSet<usize>>, Trouble> {
    let read = read_index(&mut file, name).and_then(|(_, index)| {
        let frames = read_frames(file, &index)?;
        Ok((index, frames))
    });
    let (index, frames) = match read {
        Err(Trouble::Damaged(_)) => return Ok(None),
        read => read?,
    };
    let mut bad: BTreeSet<usize> = (0..index.frames()).collect();
    for (number, stored) in index.split(0, &frames).flatten() {
        if index.check(number, stored).is_ok() {
            bad.remove(&number);
        }
    }
    Ok(Some(bad))
}

/// Where a damaged pack is put.
pub(super) fn damaged_pack(job: &JobUid, name: PackName) -> Outcome<PathBuf> {
    Ok(layout::pack(job, name)?.with_extension(DAMAGED))
}

pub(super) fn absent(name: PackName) -> RepositoryError {
    RepositoryError::NotFound(format!("pack {name}"))
}

impl Store {
    /// The length of a pack, and when it was written or promised.
    fn pack_on_disk(&self, job: &JobUid, name: PackName) -> Outcome<Option<(u64, SystemTime)>> {
        let found = self.root.found(&layout::pack(job, name)?).map_err(|e| disk_error(&e))?;
        found.map(|found| Ok((found.len(), found.modified().map_err(|e| disk_error(&e))?))).transpose()
    }

    /// What a pack says of itself.
    pub(super) fn index_of(&self, job: &JobUid, name: PackName) -> Result<(PackRef, Index), Trouble> {
        let path = layout::pack(job, name).map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
        read_index(&mut self.root.open(&path)?, name)
    }

    /// Whether a pack is there as others refer to it.
    pub(super) fn has_pack(&self, job: &JobUid, pack: &PackRef) -> Outcome<bool> {
        Ok(self.pack_on_disk(job, pack.name)?.is_some_and(|(length, _)| length == u64::from(pack.stored)))
    }

    /// Which of these blocks the job has; their packs stay until the file is published or void.
    pub fn find_blocks(&self, job: &JobUid, origin: Origin, names: &[BlockName], now: Timestamp) -> Outcome<Located> {
        self.with_index(job, |index| self.find_in(index, job, origin, names, now))
    }

    fn find_in(
        &self,
        index: &Held<'_>,
        job: &JobUid,
        origin: Origin,
        names: &[BlockName],
        now: Timestamp,
    ) -> Outcome<Located> {
        self.record(job)?.with_part(origin.generation, origin.incarnation).map_err(refused)?;
        let rows = index.ask(|index| index.find(names))?;
        let mut found = Located::default();
        let mut numbers: HashMap<PackName, Option<u32>> = HashMap::new();
        for row in rows {
            let Some((pack, slot)) = row else {
                found.places.push(None);
                continue;
            };
            let number = match numbers.get(&pack.name) {
                Some(number) => *number,
                None => {
                    let there = self.promise(job, &pack, now)?;
                    let number = u32::try_from(found.packs.len()).ok().filter(|_| there);
                    if number.is_some() {
                        found.packs.push(pack);
                    }
                    *numbers.entry(pack.name).or_insert(number)
                }
            };
            found.places.push(number.map(|pack| Place { pack, slot }));
        }
        self.uploads.promise(job, origin, found.packs.iter().map(|pack| pack.name));
        Ok(found)
    }

    /// Keeps a pack from being swept, if it is there.
    fn promise(&self, job: &JobUid, pack: &PackRef, now: Timestamp) -> Outcome<bool> {
        let Some((length, written)) = self.pack_on_disk(job, pack.name)? else {
            return Ok(false);
        };
        if length != u64::from(pack.stored) {
            return Ok(false);
        }
        let written = Timestamp::try_from(written).unwrap_or(Timestamp::UNIX_EPOCH);
        if now.duration_since(written) > PROMISED {
            let path = layout::pack(job, pack.name)?;
            self.root.touch(&path, FileTimes::new().set_modified(now.into())).map_err(|e| disk_error(&e))?;
        }
        Ok(true)
    }

    /// Gives a received pack its name, once it was read back, unless what it came for is void.
    pub(super) fn keep_pack(
        &self,
        job: &JobUid,
        origin: Origin,
        name: PackName,
        received: &Received,
        most: Most,
        now: Timestamp,
    ) -> Outcome<()> {
        let checked = check_pack(File::open(received.staged.path()).map(Opened::Here), name, true);
        let (pack, index) = checked.map_err(|trouble| match trouble {
            Trouble::Disk(error) => disk_error(&error),
            Trouble::Damaged(error) => RepositoryError::Damaged(format!("pack {name}: {error}")),
        })?;
        self.record(job)?.with_part(origin.generation, origin.incarnation).map_err(refused)?;
        // nothing removes it from now on, also where it is there already
        self.uploads.promise(job, origin, [name]);
        self.root.send(&received.staged, &layout::pack(job, name)?).map_err(|e| disk_error(&e))?;
        let read = self.root.arrival_proves_storage().then_some(now);
        let mut placed = false;
        self.with_index(job, |held| {
            if !placed {
                self.place_pack(held, job, origin, pack, received, most)?;
                placed = true;
            }
            held.ask(|known| known.add(&Entry::of(pack, &index, read), index.blocks()))
        })
    }

    fn place_pack(
        &self,
        held: &Held<'_>,
        job: &JobUid,
        origin: Origin,
        pack: PackRef,
        received: &Received,
        most: Most,
    ) -> Outcome<()> {
        let Origin { generation, incarnation, member, kind } = origin;
        self.record(job)?.with_part(generation, incarnation).map_err(refused)?;
        let is_new = !self.has_pack(job, &pack)?;
        if is_new {
            if self.published(job, generation)?.is_some() {
                return Err(RepositoryError::Refused(format!("generation {generation} is published without it")));
            }
            let noted = layout::generation(job, generation)?.join(PartName::Record { incarnation, member }.to_string());
            if self.root.at(&noted).exists() {
                return Err(RepositoryError::Refused("the member's part was noted without it".into()));
            }
            if received.length > self.room_in_part(job, generation, (incarnation, member, kind), most.part)? {
                return Err(RepositoryError::TooLarge(format!("the member's part is more than {} bytes", most.part)));
            }
            if held.ask(|known| Ok(known.bytes()))?.saturating_add(received.length) > most.job {
                return Err(RepositoryError::TooLarge(format!("the job's packs are more than {} bytes", most.job)));
            }
        }
        // one that is there already may be damaged, and this one is not
        self.root.directory(&layout::packs(job)?).map_err(|e| disk_error(&e))?;
        self.root.place(&received.staged, &layout::pack(job, pack.name)?).map_err(|e| disk_error(&e))?;
        if is_new {
            self.uploads.arrived(job, origin, pack);
            self.damage.changed(job, Some(pack.name));
        } else {
            self.uploads.promise(job, origin, [pack.name]);
        }
        self.root.discard(&damaged_pack(job, pack.name)?).map_err(|e| disk_error(&e))
    }

    /// Whether all is there that a recipe needs.
    pub(super) fn check_needs(&self, held: &Held<'_>, job: &JobUid, needs: &Needs) -> Outcome<()> {
        let names: Vec<PackName> = needs.packs.iter().map(|(pack, _)| pack.name).collect();
        let known = held.ask(|index| index.entries(&names))?;
        for (pack, slots) in &needs.packs {
            let entry = known.get(&pack.name).filter(|entry| entry.pack == *pack).ok_or_else(|| absent(pack.name))?;
            if !self.has_pack(job, pack)? {
                return Err(absent(pack.name));
            }
            if entry.block_size != needs.block_size || entry.slots < *slots {
                return Err(RepositoryError::Refused(format!("pack {} has no such blocks", pack.name)));
            }
        }
        Ok(())
    }

    /// Opens a pack, set aside or not: whoever restores checks each frame that it needs, and the others may be
    /// what is damaged.
    pub(super) fn open_pack(&self, job: &JobUid, name: PackName) -> Outcome<Opened> {
        let (path, aside) = (layout::pack(job, name)?, damaged_pack(job, name)?);
        // it may be put back meanwhile
        for path in [&path, &aside, &path] {
            match self.root.whole(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => return opened.map_err(|e| disk_error(&e)),
            }
        }
        if [&path, &aside].into_iter().any(|path| self.root.at(path).exists()) {
            // its name is there, and the bucket has it no more: it is not to be offered to anybody
            self.doubt_pack(job, name)?;
        }
        Err(absent(name))
    }

    /// Somebody doubts a pack: reads it again, and sets it aside if it is damaged, so that its blocks are sent
    /// again. One that was set aside and reads right is put back. Whether it is damaged or gone.
    ///
    /// It is read outside the job's lock; under it, it must still be what was read.
    pub(super) fn doubt_pack(&self, job: &JobUid, name: PackName) -> Outcome<bool> {
        if !self.root.at(&layout::packs(job)?).exists() {
            return Ok(true);
        }
        for _ in 0..LOOKS {
            let (path, aside) = (layout::pack(job, name)?, damaged_pack(job, name)?);
            self.root.doubt(&path).map_err(|e| disk_error(&e))?;
            let (there, apart) = (self.look(&path, name)?, self.look(&aside, name)?);
            let decided = self.with_index(job, |held| {
                if (there.identity, apart.identity) != (self.identity(&path)?, self.identity(&aside)?) {
                    return Ok(None);
                }
                match (&there.found, &apart.found) {
                    (Some(Ok(_)), _) => return Ok(Some(false)),
                    (Some(Err(error)), _) => {
                        tracing::error!(%job, pack = %name, %error, "a pack is damaged and is set aside");
                        self.root.set_aside(&path, &aside).map_err(|e| disk_error(&e))?;
                    }
                    (None, Some(Ok((pack, index)))) => {
                        tracing::warn!(%job, pack = %name, "a pack that was set aside reads right and is put back");
                        self.root.set_aside(&aside, &path).map_err(|e| disk_error(&e))?;
                        self.damage.changed(job, None);
                        held.ask(|known| known.add(&Entry::of(*pack, index, None), index.blocks()))?;
                        return Ok(Some(false));
                    }
                    // somebody has removed it from the bucket
                    (None, _) if there.identity.is_some() => self.root.discard(&path).map_err(|e| disk_error(&e))?,
                    (None, Some(Err(_)) | None) => {}
                }
                self.damage.changed(job, None);
                held.ask(|index| index.remove(name, &[]))?;
                Ok(Some(true))
            })?;
            if let Some(damaged) = decided {
                return Ok(damaged);
            }
        }
        Err(RepositoryError::Unreachable(format!("pack {name} changes while it is read")))
    }

    fn identity(&self, below: &Path) -> Outcome<Option<FileIdentity>> {
        self.root.identity(below).map_err(|e| disk_error(&e))
    }

    fn look(&self, below: &Path, name: PackName) -> Outcome<Look> {
        let identity = self.identity(below)?;
        let found = match check_pack(self.root.original(below).map(|(opened, _)| opened), name, false) {
            Ok(found) => Some(Ok(found)),
            Err(trouble) if trouble.is_absence() => None,
            Err(Trouble::Disk(error)) => return Err(disk_error(&error)),
            Err(Trouble::Damaged(error)) => Some(Err(error)),
        };
        Ok(Look { identity, found })
    }
}

/// What a look at a pack has shown.
struct Look {
    identity: Option<FileIdentity>,
    found: Option<Result<(PackRef, Index), PackError>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b7_bytes_that_the_disk_has_lost_are_damage_and_a_disk_that_is_away_is_not() {
        for code in [Errno::IO, Errno::UCLEAN, Errno::BADMSG] {
            assert!(matches!(unreadable(code.into()), Trouble::Damaged(_)), "{code}");
        }
        for code in [Errno::STALE, Errno::ACCESS, Errno::TIMEDOUT, Errno::NOENT] {
            assert!(matches!(unreadable(code.into()), Trouble::Disk(_)), "{code}");
        }
    }
}
