//! Bytes that are kept are read again: what a recipe that comes needs, what is published, and by and by
//! everything (`scrub`). Blocking; outside the job's lock, which is taken for moments to note what was found.

use std::{fs::File, io, time::Instant};

use jiff::{SignedDuration, Timestamp};

use super::{
    durable::{Staged, disk_error},
    packs::{Trouble, absent, check_pack},
    recipes::{self, Needs},
    store::{Outcome, Store, guard, refused},
};
use crate::{
    driver::repository::RepositoryError,
    names::JobUid,
    store::{
        layout,
        pack::{Index, PackName, PackRef},
        recipe::Sum,
    },
};

/// A pack that was read within this time is not read again for a publication.
pub(super) const TRUSTED: SignedDuration = SignedDuration::from_hours(24);
/// So many packs are noted as read at once: a publication that is tried again goes on from there.
const NOTED_TOGETHER: usize = 16;

impl Store {
    /// Reads a recipe that has come, compares it with its packs, and reads back what was not read lately: what has
    /// rotted is sent again while its sender still has it, and at the publication it would be too late. How many
    /// packs are left to read at `until`: what was read until then need not be read again.
    pub(super) fn read_needs_back(
        &self,
        job: &JobUid,
        staged: &Staged,
        now: Timestamp,
        until: Option<Instant>,
    ) -> Outcome<usize> {
        let packs: Vec<PackRef> = {
            let _reading = guard(&self.reading);
            let mut needs = recipes::read(File::open(staged.path())).map_err(refused)?;
            self.check_places(job, &mut needs)?;
            needs.packs.iter().map(|(pack, _)| *pack).collect()
        };
        self.read_packs_back(job, &packs, TRUSTED, now, until).map_err(|error| match error {
            RepositoryError::Damaged(what) => RepositoryError::NotFound(what),
            other => other,
        })
    }

    /// Whether the blocks that a recipe finds at its places are those that it is of. The index of blocks may be
    /// wrong, and nobody would know before a restore.
    fn check_places(&self, job: &JobUid, needs: &mut Needs) -> Outcome<()> {
        let mut sum = Sum::default();
        let mut places = std::mem::take(&mut needs.places);
        places.sort_unstable();
        for same in places.chunk_by(|one, other| one.pack == other.pack) {
            let pack = same.first().and_then(|place| needs.packs.get(place.pack as usize));
            let Some((pack, _)) = pack else { return Err(refused("a place is in no pack")) };
            let (_, index) = match self.index_of(job, pack.name) {
                Ok(found) => found,
                Err(trouble) if trouble.is_absence() => {
                    self.doubt_pack(job, pack.name)?;
                    return Err(absent(pack.name));
                }
                Err(Trouble::Disk(error)) => return Err(disk_error(&error)),
                Err(Trouble::Damaged(error)) => {
                    self.doubt_pack(job, pack.name)?;
                    return Err(RepositoryError::NotFound(format!("pack {}: {error}", pack.name)));
                }
            };
            for place in same {
                let slot = place.slot as usize;
                let names = index.blocks().get(slot..slot + place.count as usize);
                let names = names.ok_or_else(|| refused(format!("pack {} has no such blocks", pack.name)))?;
                (place.block..).zip(names).for_each(|(number, name)| sum.add(number, name));
            }
        }
        if sum == needs.sum {
            return Ok(());
        }
        let lock = self.lock(job);
        let _held = guard(&lock);
        self.forget_index(job, "a recipe is not of the blocks that it names")?;
        Err(RepositoryError::NotFound("the blocks are not where the index of blocks says".into()))
    }

    /// Reads back the packs that were not read for so long, and sets aside the damaged ones. How many are left to
    /// read at `until`.
    pub(super) fn read_packs_back(
        &self,
        job: &JobUid,
        packs: &[PackRef],
        trusted: SignedDuration,
        now: Timestamp,
        until: Option<Instant>,
    ) -> Outcome<usize> {
        let names: Vec<PackName> = packs.iter().map(|pack| pack.name).collect();
        let known = self.with_index(job, |held| held.ask(|index| index.entries(&names)))?;
        let trusted = trusted * self.root.trusted_times();
        // a time to come is no time it was read at: the clock was wrong
        let lately = now.as_second().saturating_sub(trusted.as_secs())..=now.as_second();
        let old: Vec<PackName> = names
            .into_iter()
            .filter(|name| !known.get(name).is_some_and(|entry| lately.contains(&entry.verified)))
            .collect();
        let (mut worst, mut left) = (Ok(0), old.len());
        for some in old.chunks(NOTED_TOGETHER) {
            // some are read each time, so that it comes to an end
            if left < old.len() && until.is_some_and(|until| Instant::now() >= until) {
                break;
            }
            let mut good = Vec::new();
            for (name, checked) in some.iter().zip(self.check_packs(job, some)?) {
                match checked {
                    Ok(_) => good.push(*name),
                    // all are looked at: the next try finds none of the bad ones
                    Err(trouble) if trouble.is_absence() => {
                        self.doubt_pack(job, *name)?;
                        worst = worst.and(Err(absent(*name)));
                    }
                    Err(Trouble::Disk(error)) => return Err(disk_error(&error)),
                    Err(Trouble::Damaged(error)) => {
                        self.doubt_pack(job, *name)?;
                        worst = worst.and(Err(RepositoryError::Damaged(format!("pack {name}: {error}"))));
                    }
                }
            }
            left -= some.len();
            self.with_index(job, |held| held.ask(|index| index.note_verified(&good, now)))?;
        }
        worst.map(|_: usize| left)
    }

    /// Reads packs back from where they are kept.
    fn check_packs(&self, job: &JobUid, names: &[PackName]) -> Outcome<Vec<Result<(PackRef, Index), Trouble>>> {
        let directory = layout::packs(job)?;
        let check = |name: PackName| {
            check_pack(self.root.original(&directory.join(name.to_string())).map(|(opened, _)| opened), name, false)
        };
        let mut checked = Vec::new();
        for some in names.chunks(self.root.parallel_reads()) {
            if let [one] = some {
                checked.push(check(*one));
                continue;
            }
            std::thread::scope(|scope| {
                let check = &check;
                let reading: Vec<_> = some.iter().map(|name| scope.spawn(move || check(*name))).collect();
                let failed = |_| Err(io::Error::other("reading it has failed").into());
                checked.extend(reading.into_iter().map(|one| one.join().unwrap_or_else(failed)));
            });
        }
        Ok(checked)
    }
}
