//! Brings what is held for others to the repository, at kget's pace, however often that takes: nobody else has it.

use std::sync::Arc;

use super::{
    super::{
        Supervisor,
        upload::{AGAIN, KINDS, LOCAL_TRIES},
    },
    Held,
};
use crate::{
    driver::{
        agent::LeaseState,
        repository::{RepositoryError, carry::HeldFile},
    },
    names::{Generation, MemberIndex},
    store::{
        manifest::{FileKind, PartFile},
        pack::PackName,
        ticket,
    },
};

impl Supervisor {
    /// Sees to it that a part which is all here is brought, once it may.
    pub(super) fn bring_soon(self: &Arc<Self>, generation: Generation, member: MemberIndex) {
        let begin = self.of_held(generation, member, |held| {
            let begin = held.state.whole && !held.state.done && !held.underway;
            held.underway |= begin;
            begin
        });
        if begin != Some(true) {
            return;
        }
        let own = self.clone();
        tokio::spawn(async move {
            // nobody else has it: it is brought with the VM lost, too
            tokio::select! {
                () = own.view.until(|facts| facts.leaving.is_some() || facts.lease == LeaseState::Lost) => {}
                () = own.bring_part(generation, member) => {}
            }
        });
    }

    async fn bring_part(&self, generation: Generation, member: MemberIndex) {
        let mut files = Vec::new();
        for kind in KINDS {
            match self.bring_file(generation, member, kind).await {
                Ok(file) => files.push(file),
                Err(error) => {
                    tracing::warn!(%error, generation, member, "what is held for another member cannot be brought");
                    self.of_held(generation, member, |held| {
                        held.state.error = Some(error.to_string());
                        (held.state.waiting, held.underway) = (None, false);
                    });
                    return;
                }
            }
        }
        tracing::info!(generation, member, "the part of another member is in the repository");
        self.of_held(generation, member, |held| {
            held.state.part.files = files;
            (held.state.done, held.state.error, held.underway) = (true, None, false);
        });
    }

    /// Brings one file, however often that takes.
    async fn bring_file(
        &self,
        generation: Generation,
        member: MemberIndex,
        kind: FileKind,
    ) -> Result<PartFile, RepositoryError> {
        let (mut failures, mut local, mut missing) = (0, 0, 0);
        loop {
            let gone = || RepositoryError::NotFound("the part is not held any more".into());
            let left = |held: &mut Held| (held.pace.clone(), held.ticket.clone(), held.left(kind));
            let (pace, ticket, left) = self.of_held(generation, member, left).ok_or_else(gone)?;
            let (file, packs) = left.ok_or_else(gone)?;
            if pace.limit() == Some(0) {
                self.of_held(generation, member, |held| held.state.waiting = None);
            }
            pace.goes().await;
            let path = |name: PackName| self.held_path(generation, member, &format!("{kind}.{name}"));
            let held = HeldFile {
                file,
                recipe: self.held_path(generation, member, &format!("{kind}.recipe")),
                packs: packs.into_iter().map(|name| (name, path(name))).collect(),
            };
            let brought = |name: PackName| {
                self.of_held(generation, member, |held| {
                    held.brought.insert((kind, name));
                    held.state.waiting = None;
                });
            };
            let whose = (&self.config.job, generation, member);
            let sending = self.store.bring(&ticket, whose, &held, &pace, &brought);
            let sent = tokio::select! {
                biased;
                () = pace.stopped() => continue,
                sent = sending => sent,
            };
            let error = match sent {
                Ok(file) => return Ok(file),
                Err(error @ (RepositoryError::Unreachable(_) | RepositoryError::Full(_))) => error,
                Err(error @ RepositoryError::Local { .. }) if local + 1 < LOCAL_TRIES => {
                    local += 1;
                    error
                }
                // a pack that it had is gone: it may be one from here
                Err(error @ RepositoryError::NotFound(_)) if missing == 0 => {
                    missing += 1;
                    self.of_held(generation, member, |held| held.brought.clear());
                    error
                }
                Err(error) => return Err(error),
            };
            failures += 1;
            let wait = AGAIN.wait(failures, &mut rand::rng());
            if ticket::valid_until(&ticket).is_some_and(|until| self.view.now() + wait >= until) {
                return Err(error);
            }
            tracing::warn!(%error, generation, member, failures, "what is held is brought again");
            self.of_held(generation, member, |held| held.state.waiting = Some(error.to_string()));
            tokio::time::sleep(wait).await;
        }
    }
}

impl Held {
    /// A file that is here, and its packs that the repository has not got.
    fn left(&self, kind: FileKind) -> Option<(PartFile, Vec<PackName>)> {
        let packs = self.packs.get(&kind).into_iter().flatten();
        let left = packs.filter(|name| !self.brought.contains(&(kind, **name))).copied().collect();
        Some((self.files.get(&kind)?.clone(), left))
    }
}
