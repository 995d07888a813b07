//! Images from agent to agent of a job, if not from a file system that all nodes see or by TakTuk: each fetches from
//! the one before it in the chain what that one has, also while it still receives, and serves those behind it alike.
//! Nobody is believed: a piece is compared with its name before it is written or passed on, and an image is one only
//! once its digest is right.

mod arriving;
mod receive;
mod serve;
mod shared;
mod taktuk;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fs::File, sync::Arc};

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use self::taktuk::Putting;
pub(super) use self::{
    arriving::{PARTIAL, Proven},
    serve::routes,
};

use crate::{
    driver::agent::{
        AgentAddress, AgentConfig, ChainPeer, SharedImages,
        peer::{Origin, Report},
    },
    names::MemberIndex,
};

/// So many others may fetch from here at a time: more would only share the link.
const MOST: usize = 8;

/// What others of the job get to see of an image.
#[derive(Clone, Debug)]
struct Standing {
    /// Its bytes, as far as they are here.
    file: Option<Arc<File>>,
    have: u64,
    /// Of the whole image, once that is known.
    size: Option<u64>,
    pace: Option<f64>,
    from: Origin,
    /// How far those before this agent are.
    known: Vec<Report>,
}

/// An agent's place among those of its job that pass images on.
pub(super) struct Chain {
    member: MemberIndex,
    /// Those before it, the nearest first.
    before: Vec<AgentAddress>,
    images: BTreeMap<String, watch::Sender<Standing>>,
    streams: Arc<Semaphore>,
    shared: Option<Arc<SharedImages>>,
    /// If images come by the hold's TakTuk.
    putting: Option<Arc<Putting>>,
}

impl Chain {
    /// As an agent is told; others are given images until `stop`.
    pub(super) fn of(config: &AgentConfig, stop: &CancellationToken) -> Self {
        let peer = |peer: &ChainPeer| AgentAddress {
            endpoint: peer.endpoint,
            job: config.job.clone(),
            member: peer.member,
            incarnation: config.incarnation,
        };
        let (image, standing) = (&config.image, Standing::new());
        let images = [Some(&image.disk), image.kernel.as_ref(), image.initrd.as_ref()].into_iter().flatten();
        Self {
            member: config.member,
            before: config.chain.iter().map(peer).collect(),
            images: images.map(|digest| (digest.clone(), watch::Sender::new(standing.clone()))).collect(),
            streams: Arc::new(Semaphore::new(MOST)),
            shared: config.shared_images.clone().map(Arc::new),
            putting: config.images_by_taktuk.then(|| Putting::of(config.lease.clone(), stop.clone())),
        }
    }

    /// All of an image is here.
    pub(super) fn has(&self, digest: &str, file: File) {
        let Ok(size) = file.metadata().map(|found| found.len()) else { return };
        self.show(digest, |standing| {
            (standing.file, standing.have, standing.size) = (Some(Arc::new(file)), size, Some(size));
        });
        if let (Some(putting), Some(image)) = (&self.putting, self.images.get(digest)) {
            putting.offer(digest, image.subscribe());
        }
    }

    /// Bytes of an image, once that is known.
    pub(super) fn size(&self, digest: &str) -> Option<u64> {
        self.images.get(digest).and_then(|image| image.borrow().size)
    }

    /// No image will be here: those that would wait for one by TakTuk are told.
    pub(super) fn gives_nothing(&self) {
        if let Some(putting) = &self.putting {
            putting.gives_nothing();
        }
    }

    fn show(&self, digest: &str, change: impl FnOnce(&mut Standing)) {
        if let Some(image) = self.images.get(digest) {
            image.send_modify(change);
        }
    }
}

impl Standing {
    fn new() -> Self {
        Self { file: None, have: 0, size: None, pace: None, from: Origin::Nobody, known: Vec::new() }
    }

    /// This agent's own, then what it has heard.
    fn reports(&self, member: MemberIndex) -> Vec<Report> {
        let own = Report { member, have: self.have, pace: self.pace, from: self.from };
        let others = self.known.iter().filter(|report| report.member != member).cloned();
        std::iter::once(own).chain(others).collect()
    }
}
