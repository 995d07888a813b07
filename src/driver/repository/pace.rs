//! How fast parts leave this machine for the repository: as an order says, and another may say otherwise at any time.
//! A limit of 0 stops them.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

/// Bytes that leave at once without a limit.
const MOST: usize = 1 << 18;
/// With one, so many pieces leave in a second.
const PIECES: u64 = 8;
const LEAST: u64 = 1 << 12;

/// The pace of one machine's parts, and how many bytes have left so far.
#[derive(Debug)]
pub struct Pace {
    limit: watch::Sender<Option<u64>>,
    moved: AtomicU64,
    /// When the next byte may leave.
    next: Mutex<Instant>,
}

impl Default for Pace {
    /// Without a limit.
    fn default() -> Self {
        Self { limit: watch::Sender::new(None), moved: AtomicU64::new(0), next: Mutex::new(Instant::now()) }
    }
}

impl Pace {
    /// From now on so many bytes a second.
    pub fn set(&self, limit: Option<u64>) {
        self.limit.send_if_modified(|now| std::mem::replace(now, limit) != limit);
    }

    /// Bytes a second; none: as many as go.
    pub fn limit(&self) -> Option<u64> {
        *self.limit.borrow()
    }

    /// Bytes that have left.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Returns once nothing may leave.
    pub async fn stopped(&self) {
        self.until(|limit| limit == Some(0)).await;
    }

    /// Returns once something may.
    pub async fn goes(&self) {
        self.until(|limit| limit != Some(0)).await;
    }

    async fn until(&self, so: impl Fn(Option<u64>) -> bool) {
        // an error means that there is no sender: it is in here
        let _ = self.limit.subscribe().wait_for(|limit| so(*limit)).await;
    }

    /// Bytes that should leave together.
    pub(super) fn piece(&self) -> usize {
        let piece = |limit: u64| usize::try_from((limit / PIECES).max(LEAST)).unwrap_or(MOST).min(MOST);
        self.limit().map_or(MOST, piece)
    }

    /// Waits until so many bytes may leave.
    pub(super) async fn pass(&self, bytes: usize) {
        self.goes().await;
        if let Some(limit) = self.limit().filter(|limit| *limit > 0) {
            let takes = Duration::from_secs_f64(bytes as f64 / limit as f64);
            let at = {
                let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
                let at = (*next).max(Instant::now());
                *next = at + takes;
                at
            };
            tokio::time::sleep_until(at).await;
        }
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_bytes_leave_in_a_second_as_may() {
        let (pace, begun) = (Pace::default(), Instant::now());
        for _ in 0..100 {
            pace.pass(pace.piece()).await;
        }
        assert_eq!(begun.elapsed(), Duration::ZERO, "without a limit nothing waits");
        pace.set(Some(80_000));
        let before = pace.moved();
        while pace.moved() - before < 800_000 {
            assert!(pace.piece() <= 10_000);
            pace.pass(pace.piece()).await;
        }
        let took = begun.elapsed().as_secs_f64();
        assert!((9.5..10.5).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_leaves_while_it_is_stopped() {
        let pace = Arc::new(Pace::default());
        pace.set(Some(0));
        pace.stopped().await;
        let other = pace.clone();
        let sending = tokio::spawn(async move { other.pass(5).await });
        tokio::time::sleep(Duration::from_secs(1000)).await;
        assert_eq!(pace.moved(), 0);
        pace.set(None);
        sending.await.unwrap();
        assert_eq!(pace.moved(), 5);
    }
}
