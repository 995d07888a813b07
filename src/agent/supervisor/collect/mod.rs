//! Takes the part of another member, whose node is wanted before its turn at the repository comes, holds it, and brings
//! it there in its own turn: by kget's order alone (safety D1). What is said to be held here is on the disk and was
//! compared with its hashes.

mod bring;
mod room;
mod shelf;

pub(super) use shelf::routes;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{Supervisor, vm::remove};
use crate::{
    driver::{
        agent::{AgentError, CollectOrder, HeldPart},
        repository::pace::Pace,
    },
    names::{Generation, MemberIndex},
    store::{
        manifest::{FileKind, PartFile},
        pack::PackName,
    },
};

/// The repository has this long to say whether a part may come from here: kget waits for the answer.
const ASKED: Duration = Duration::from_secs(2);

/// Another member's part.
pub(super) struct Held {
    state: HeldPart,
    ticket: String,
    /// How fast it is brought.
    pace: Arc<Pace>,
    /// Bytes that it may take here.
    reserved: u64,
    /// Packs that are here, by the file that they came for.
    packs: BTreeMap<FileKind, BTreeSet<PackName>>,
    /// What was acknowledged of each file.
    files: BTreeMap<FileKind, PartFile>,
    /// Packs that the repository has got from here.
    brought: BTreeSet<(FileKind, PackName)>,
    /// Somebody brings it.
    underway: bool,
}

impl Held {
    /// As others see it.
    pub(super) fn shown(&self) -> HeldPart {
        HeldPart { limit: self.pace.limit(), moved: self.pace.moved(), ..self.state.clone() }
    }

    fn is(&self, generation: Generation, member: MemberIndex) -> bool {
        self.state.generation == generation && self.state.part.index == member
    }

    /// The ends of the names of its files.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.files.keys().map(|kind| format!("{kind}.recipe")).collect();
        for (kind, packs) in &self.packs {
            names.extend(packs.iter().map(|pack| format!("{kind}.{pack}")));
        }
        names
    }

    /// Bytes that may come still.
    fn to_come(&self) -> u64 {
        if self.state.whole { 0 } else { self.reserved.saturating_sub(self.state.stored) }
    }
}

/// Bytes that are free where this directory is.
fn free(directory: &Path) -> std::io::Result<u64> {
    let disk = rustix::fs::statvfs(directory)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

impl Supervisor {
    /// Reads or changes what is held of a part, if anything is.
    fn of_held<T>(
        &self,
        generation: Generation,
        member: MemberIndex,
        change: impl FnOnce(&mut Held) -> T,
    ) -> Option<T> {
        self.view.change(|facts| facts.held.iter_mut().find(|held| held.is(generation, member)).map(change))
    }

    fn held_path(&self, generation: Generation, member: MemberIndex, name: &str) -> PathBuf {
        self.paths.held().join(format!("{generation}.{member}.{name}"))
    }

    /// Makes room for a part, or says how fast one goes on to the repository.
    pub(super) async fn start_collect(self: &Arc<Self>, order: &CollectOrder) -> Result<(), AgentError> {
        let (generation, member) = (order.generation, order.part.index);
        self.view.quietly(|facts| facts.barrier.admit_kget(order.epoch, order.incarnation))?;
        let known = self.of_held(generation, member, |held| {
            held.ticket.clone_from(&order.ticket);
            held.pace.set(order.limit);
        });
        if known.is_none() {
            self.take_in(order).await?;
        }
        self.bring_soon(generation, member);
        Ok(())
    }

    /// Forgets parts of other generations than this one, which is being captured: whoever is captured again is still
    /// where it was, with all that it has given away.
    pub(super) async fn forget_held(&self, generation: Generation) {
        let is_other = |held: &Held| held.state.generation != generation;
        if !self.view.read(|facts| facts.held.iter().any(is_other)) {
            return;
        }
        let forgotten = self.view.change(|facts| facts.held.extract_if(.., |held| is_other(held)).collect::<Vec<_>>());
        for held in forgotten {
            for name in held.names() {
                remove(&self.held_path(held.state.generation, held.state.part.index, &name)).await;
            }
        }
    }

    async fn take_in(&self, order: &CollectOrder) -> Result<(), AgentError> {
        let (generation, member) = (order.generation, order.part.index);
        if member == self.config.member {
            return Err(AgentError::Refused("its own part needs no collector".into()));
        }
        let captured = self.view.read(|facts| facts.captured.iter().any(|part| part.generation == generation));
        if !captured {
            return Err(AgentError::Refused(format!("generation {generation} is not captured here")));
        }
        // nobody leaves its node for what the repository would not take from here
        let asked = self.store.may_bring(&order.ticket, &self.config.job, generation, member);
        let asked = tokio::time::timeout(ASKED, asked).await;
        asked
            .map_err(|_| AgentError::Refused("the repository does not answer it".into()))?
            .map_err(|error| AgentError::Refused(error.to_string()))?;
        let directory = self.paths.held();
        let made = tokio::fs::create_dir_all(&directory).await.and_then(|()| free(&directory));
        let free = made.map_err(|error| AgentError::Failed(format!("{}: {error}", directory.display())))?;
        let reserved = room::wanted(order.bytes);
        let pace = Arc::<Pace>::default();
        pace.set(order.limit);
        let held = Held {
            state: HeldPart::from(order),
            ticket: order.ticket.clone(),
            pace,
            reserved,
            packs: BTreeMap::new(),
            files: BTreeMap::new(),
            brought: BTreeSet::new(),
            underway: false,
        };
        self.view.change(|facts| {
            if facts.ends() {
                return Err(AgentError::Refused("it leaves its node, or has lost its VM".into()));
            }
            // two orders at once
            if facts.held.iter().any(|held| held.is(generation, member)) {
                return Ok(());
            }
            let own: u64 = facts.captured.iter().map(|part| part.bytes).sum();
            let coming = facts.held.iter().map(Held::to_come).fold(0, u64::saturating_add);
            room::check(free, coming, own, reserved).map_err(AgentError::Refused)?;
            facts.held.push(held);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
