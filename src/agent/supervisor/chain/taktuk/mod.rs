//! Images by the hold's TakTuk: the agent of the first node gives them in pieces, the others take those. Both meet the
//! hold in the lease's directory; the contract is written down there (`driver::oar::hold`). All in it are a stranger's
//! names.

mod give;
mod passage;
mod take;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OnceCell, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use self::passage::Directory;
pub(super) use self::take::take;
use super::Standing;
use crate::driver::agent::LeaseConfig;

/// Bytes of the pieces in which images are put.
const PIECE: u64 = 4 << 20;
/// So long the hold may take to come; then its images come another way.
const HOLD_LIMIT: Duration = Duration::from_secs(10);
/// By which an agent of the hold's node says that it gives none, and the word by which the hold tells the others.
const NO_IMAGES: &str = "no-images";
const NOTHING: &str = "none";
/// How often the lease's directory is looked at while something is to come.
const PACE: Duration = Duration::from_millis(20);

/// What an image is called there.
struct Names {
    want: String,
    wanted: String,
    inward: String,
    outward: String,
}

impl Names {
    /// None for a digest that is none.
    fn of(digest: &str) -> Option<Self> {
        let image = digest.strip_prefix("sha256:")?.get(..16)?;
        let is_hex = image.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        is_hex.then(|| Self {
            want: format!("want-{image}"),
            wanted: format!("wanted-{image}"),
            inward: format!("in-{image}"),
            outward: format!("out-{image}"),
        })
    }
}

/// An agent's part in it.
#[derive(Clone)]
pub(super) enum Place {
    /// It gives what the hold puts.
    Root(Arc<Directory>),
    /// It takes that.
    Node(Arc<Directory>),
}

/// The hold, as far as it puts images.
pub(super) struct Putting {
    lease: LeaseConfig,
    place: OnceCell<Option<Place>>,
    /// Images that were offered, and those that were to be taken: each once.
    offered: Mutex<BTreeSet<String>>,
    taken: Mutex<BTreeSet<String>>,
    stop: CancellationToken,
}

impl Putting {
    /// Until `stop`, through the directory of this lease.
    pub(super) fn of(lease: LeaseConfig, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self { lease, place: OnceCell::new(), offered: Mutex::default(), taken: Mutex::default(), stop })
    }

    /// What this agent is to do, once the hold has said so; none if it does not.
    pub(super) async fn place(&self) -> Option<Place> {
        self.place.get_or_init(|| self.wait()).await.clone()
    }

    /// Whether an image is to come this way: what did not is not waited for again.
    pub(super) fn is_to_be_taken(&self, digest: &str) -> bool {
        is_first(&self.taken, digest)
    }

    /// This agent has no images: if the hold is on its node, nobody is to wait for any.
    pub(super) fn gives_nothing(&self) {
        let said = Directory::open(&self.lease).map_err(io::Error::other).and_then(|there| there.say(NO_IMAGES));
        if let Err(error) = said {
            tracing::warn!(%error, "others may wait for images by TakTuk, of which this agent gives none");
        }
    }

    async fn wait(&self) -> Option<Place> {
        let directory = match Directory::open(&self.lease) {
            Ok(directory) => Arc::new(directory),
            Err(error) => {
                tracing::warn!(%error, "images do not come by TakTuk: there is no lease");
                return None;
            }
        };
        let begun = Instant::now();
        while begun.elapsed() < HOLD_LIMIT {
            // the hold says it before it takes the lock
            let locked = directory.has("lock");
            match directory.word("feed").as_deref() {
                Some("root") => return Some(Place::Root(directory)),
                Some("node") => return Some(Place::Node(directory)),
                Some(_) => break,
                None if locked => break,
                None => sleep(PACE).await,
            }
        }
        tracing::info!("the hold puts no images");
        None
    }

    /// Gives an image whenever others want it, if this agent is the one to do so.
    pub(super) fn offer(self: &Arc<Self>, digest: &str, image: watch::Receiver<Standing>) {
        let Some(names) = Names::of(digest) else { return };
        if !is_first(&self.offered, digest) {
            return;
        }
        let (own, stop) = (self.clone(), self.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            if let Some(Place::Root(directory)) = own.place().await {
                give::whenever_wanted(&directory, &names, image).await;
            }
        }));
    }
}

fn is_first(of: &Mutex<BTreeSet<String>>, digest: &str) -> bool {
    of.lock().unwrap_or_else(PoisonError::into_inner).insert(digest.into())
}
