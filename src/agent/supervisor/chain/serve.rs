//! Where others of the job fetch images: only they, and only images of the job. What is not here yet is sent as soon as
//! it is; meanwhile it is said each second how far this agent is.

use std::{convert::Infallible, os::unix::fs::FileExt as _, sync::Arc};

use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{Path as At, Query, State},
    response::{IntoResponse as _, Response},
    routing::get,
};
use futures::{Stream, StreamExt as _, stream};
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::{Interval, MissedTickBehavior, interval},
};

use super::{
    super::{
        Supervisor,
        server::{From, refusal},
    },
    Standing,
};
use crate::{
    driver::agent::{
        AgentError,
        peer::{self, BEAT, PORTION},
    },
    names::{Identity, MemberIndex},
    tls::{Peer, forbidden},
};

/// The addresses.
pub(in super::super) fn routes() -> Router<Arc<Supervisor>> {
    Router::new().route("/v1/images/{digest}", get(send))
}

async fn send(
    State(own): State<Arc<Supervisor>>,
    Extension(Peer(peer)): Extension<Peer>,
    At(digest): At<String>,
    Query(From { from }): Query<From>,
) -> Response {
    let (job, incarnation) = (&own.config.job, own.config.incarnation);
    let known =
        matches!(&peer, Identity::Agent { job: theirs, incarnation: of, .. } if theirs == job && *of == incarnation);
    if !known {
        return forbidden("images are for the agents of this job");
    }
    let refused = |why: &str| refusal(&AgentError::Refused(why.into()));
    let Some(image) = own.chain.images.get(&digest) else { return refused("it is no image of this job") };
    let Ok(permit) = own.chain.streams.clone().try_acquire_owned() else {
        return refused("as many as may fetch from here");
    };
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let sending = Sending { member: own.chain.member, image: image.subscribe(), at: from, beat, _permit: permit };
    let frames = sending.frames().take_until(own.stop.clone().cancelled_owned());
    Body::from_stream(frames.map(Ok::<_, Infallible>)).into_response()
}

/// An image on its way to another agent.
struct Sending {
    member: MemberIndex,
    image: watch::Receiver<Standing>,
    at: u64,
    beat: Interval,
    _permit: OwnedSemaphorePermit,
}

impl Sending {
    fn frames(self) -> impl Stream<Item = Bytes> + Send + 'static {
        stream::unfold(self, |mut sending| async move { Some((sending.next().await?, sending)) })
    }

    /// The next frame; none at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let standing = self.image.borrow_and_update().clone();
            if standing.size.is_some_and(|size| self.at >= size) {
                return None;
            }
            let portion = self.portion(&standing);
            tokio::select! {
                biased;
                _ = self.beat.tick() => return Some(peer::reports(&standing.reports(self.member))),
                portion = portion, if standing.have > self.at => {
                    let portion = portion?;
                    self.at += portion.len() as u64;
                    return Some(peer::part(&portion));
                }
                changed = self.image.changed() => changed.ok()?,
            }
        }
    }

    /// The next bytes that are here; none if they cannot be read.
    fn portion(&self, standing: &Standing) -> impl Future<Output = Option<Vec<u8>>> + Send + 'static {
        let (file, at, have) = (standing.file.clone(), self.at, standing.have);
        async move {
            let file = file?;
            let length = usize::try_from(have.saturating_sub(at)).map_or(PORTION, |left| left.min(PORTION));
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, at).map(|()| bytes)
            });
            match read.await.map_err(std::io::Error::other).flatten() {
                Ok(bytes) => Some(bytes),
                Err(error) => {
                    tracing::warn!(%error, "an image cannot be passed on");
                    None
                }
            }
        }
    }
}
