//! Who gives the binary to the next node that lacks it: nodes that have it, each to one at a time, so that their number
//! doubles. From here it goes to the first only.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Somebody who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Here,
    Node { address: SocketAddr, token: String },
}

#[derive(Debug, Default)]
struct Idle {
    nodes: Vec<Source>,
    /// Whether any node has it.
    any: bool,
    /// Whether it is given from here now.
    busy: bool,
}

/// All that have it.
#[derive(Debug, Default)]
pub(super) struct Spread {
    idle: Mutex<Idle>,
    changed: Notify,
}

/// One that gives it; idle again once this is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) source: Source,
    spread: Arc<Spread>,
}

impl Spread {
    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node has it.
    pub(super) fn add(&self, address: SocketAddr, token: &str) {
        let mut idle = self.idle();
        idle.nodes.push(Source::Node { address, token: token.to_owned() });
        idle.any = true;
        drop(idle);
        self.changed.notify_waiters();
    }

    /// Waits for one that is idle.
    pub(super) async fn take(self: &Arc<Self>) -> Taken {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(source) = self.one() {
                return Taken { source, spread: self.clone() };
            }
            changed.await;
        }
    }

    fn one(&self) -> Option<Source> {
        let mut idle = self.idle();
        if let Some(node) = idle.nodes.pop() {
            return Some(node);
        }
        if idle.any || idle.busy {
            return None;
        }
        idle.busy = true;
        Some(Source::Here)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut idle = self.spread.idle();
        match self.source.clone() {
            Source::Here => idle.busy = false,
            node @ Source::Node { .. } => idle.nodes.push(node),
        }
        drop(idle);
        self.spread.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_first_is_given_it_from_here() {
        let spread = Arc::new(Spread::default());
        let first = spread.take().await;
        assert_eq!(first.source, Source::Here);
        let waits = tokio::spawn({
            let spread = spread.clone();
            async move { spread.take().await }
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished(), "one at a time");
        let address = "192.0.2.1:5".parse().unwrap();
        spread.add(address, "secret");
        drop(first);
        let second = waits.await.unwrap();
        assert!(matches!(second.source, Source::Node { .. }));
        assert!(spread.one().is_none(), "the node gives it to one at a time, and nobody is given it from here");
        drop(second);
        assert!(spread.one().is_some());
    }
}
