//! Bodies on their way in: at most one for each thing that is being sent, so that what is not yet in
//! its place is bounded like what is. The newest counts: its sender may have lost the one before.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// All bodies that are being received, by what they are.
#[derive(Clone, Debug, Default)]
pub struct Arrivals(Arc<Mutex<HashMap<String, (u64, CancellationToken)>>>);

/// One body; its end is its removal.
#[derive(Debug)]
pub(super) struct Arrival {
    all: Arrivals,
    what: String,
    number: u64,
    /// Cancelled when the same is sent again.
    pub(super) overtaken: CancellationToken,
}

impl Arrivals {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (u64, CancellationToken)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one and ends the one that was under way.
    pub(super) fn begin(&self, what: String) -> Arrival {
        let overtaken = CancellationToken::new();
        let mut all = self.lock();
        let number = all.get(&what).map_or(0, |(number, _)| number + 1);
        if let Some((_, before)) = all.insert(what.clone(), (number, overtaken.clone())) {
            before.cancel();
        }
        Arrival { all: self.clone(), what, number, overtaken }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if all.get(&self.what).is_some_and(|(number, _)| *number == self.number) {
            all.remove(&self.what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d2_the_same_is_received_once_at_a_time() {
        let all = Arrivals::default();
        let first = all.begin("a".into());
        let other = all.begin("b".into());
        let second = all.begin("a".into());
        assert!(first.overtaken.is_cancelled());
        assert!(!second.overtaken.is_cancelled() && !other.overtaken.is_cancelled());
        drop(first);
        let third = all.begin("a".into());
        assert!(second.overtaken.is_cancelled());
        drop((second, third, other));
        assert!(all.lock().is_empty());
    }
}
