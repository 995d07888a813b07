//! Who waits for an index that is being made again, and who does not.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{durable::Steps, packs_tests::*};
use crate::store::{layout, manifest::FileKind, pack::BlockName};

/// A disk that stops when the blocks of a pack are noted, until it is let go.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<(bool, bool)>, Condvar)>);

impl Steps for Gate {
    fn next(&self, what: &'static str) -> io::Result<()> {
        if what == "note the blocks of a pack" {
            let (state, changed) = &*self.0;
            let mut state = state.lock().unwrap();
            state.0 = true;
            changed.notify_all();
            while !state.1 {
                state = changed.wait(state).unwrap();
            }
        }
        Ok(())
    }
}

impl Gate {
    fn wait_until_reached(&self) {
        let (state, changed) = &*self.0;
        let state = state.lock().unwrap();
        let (state, late) = changed.wait_timeout_while(state, Duration::from_secs(60), |state| !state.0).unwrap();
        assert!(state.0 && !late.timed_out());
    }

    fn let_go(&self) {
        let (state, changed) = &*self.0;
        state.lock().unwrap().1 = true;
        changed.notify_all();
    }
}

/// A store with a generation whose index is gone; making it again stops at the gate.
fn without_index() -> (Bench, Gate) {
    let bench = Bench::new();
    store_generation(&bench.store, 1, &[1, 2, 3], now());
    std::fs::remove_file(bench.at(layout::blocks(&job()).unwrap())).unwrap();
    let Bench { directory, store } = bench;
    drop(store);
    let gate = Gate::default();
    let store = Bench::open(directory.path(), gate.clone());
    (Bench { directory, store }, gate)
}

#[test]
fn b1_a_fence_waits_for_no_index_that_is_made_again() {
    let (Bench { directory: _directory, store }, gate) = without_index();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let names = [BlockName::of(&content(2))];
            let found = store.find_blocks(&job(), origin(2, 1, 0, FileKind::Disk), &names, now());
            is_over.store(true, Ordering::SeqCst);
            found
        });
        gate.wait_until_reached();
        // both are answered while the index is not there
        store.fence(&job(), 2).unwrap();
        assert_eq!(store.content(&job()).unwrap().fence, 2);
        assert!(!is_over.load(Ordering::SeqCst));
        gate.let_go();
        // what was asked for in the older incarnation's name is refused after it
        assert!(asking.join().unwrap().is_err());
    });
    let names = [BlockName::of(&content(2))];
    let found = store.find_blocks(&job(), origin(2, 2, 0, FileKind::Disk), &names, now()).unwrap();
    assert!(found.places[0].is_some());
}

#[test]
fn b1_a_job_that_is_removed_while_its_index_is_made_again_leaves_nothing() {
    let (Bench { directory: _directory, store }, gate) = without_index();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| store.find_blocks(&job(), origin(2, 1, 0, FileKind::Disk), &[], now()));
        gate.wait_until_reached();
        store.remove_job(&job(), now()).unwrap();
        gate.let_go();
        assert!(asking.join().unwrap().is_err());
    });
    assert_eq!(store.root.list(&layout::job(&job()).unwrap()).unwrap(), ["record.json"]);
}

#[test]
fn more_jobs_than_indices_stay_open_are_served_at_once() {
    let bench = Bench::new();
    std::thread::scope(|scope| {
        for number in 0..24_u32 {
            let store = &bench.store;
            scope.spawn(move || {
                let uid = crate::names::JobUid(format!("job-{}", number % 12));
                for generation in 1..6 {
                    store.admit_part(&uid, generation, 1).unwrap();
                    let own = origin(generation, 1, number, FileKind::Disk);
                    let found = store.find_blocks(&uid, own, &[BlockName::of(&content(1))], now()).unwrap();
                    assert_eq!(found.places, [None]);
                }
            });
        }
    });
}
