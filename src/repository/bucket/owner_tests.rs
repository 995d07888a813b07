use std::{collections::BTreeMap, time::Instant};

use object_store::memory::InMemory;
use proptest::prelude::*;

use super::{
    super::testing::{Mood, Moody, objects},
    *,
};

const MANIFEST: &str = "jobs/a/generations/7/manifest.json";
const RECORD: &str = "jobs/a/record.json";

fn take(objects: &Arc<Objects>) -> Owner {
    Owner::take(objects, &Holder::new(), Duration::ZERO).unwrap()
}

fn read(objects: &Objects, below: &str) -> Option<String> {
    let (found, _) = objects.get(Path::new(below)).unwrap()?;
    note(&found).map(|content| String::from_utf8(content.to_vec()).unwrap())
}

#[test]
fn b1_an_old_repository_commits_nothing_once_another_one_has_the_bucket() {
    let objects = Arc::new(objects(Arc::<InMemory>::default()));
    let old = take(&objects);
    old.commit(Path::new(RECORD), b"fence 1").unwrap();
    let new = take(&objects);
    let refused = old.commit(Path::new(MANIFEST), b"late").unwrap_err();
    assert!(refused.to_string().contains("another repository"), "{refused}");
    // it does not try again, and removes nothing
    assert!(old.confirm().is_err() && old.commit(Path::new(RECORD), b"fence 0").is_err());
    assert_eq!((read(&objects, MANIFEST), read(&objects, RECORD)), (None, Some("fence 1".into())));
    let found = objects.get(Path::new(RECORD)).unwrap().unwrap();
    new.know(RECORD.into(), found.1);
    new.commit(Path::new(RECORD), b"fence 2").unwrap();
    new.commit(Path::new(MANIFEST), b"new").unwrap();
    new.confirm().unwrap();
    assert_eq!((read(&objects, MANIFEST), read(&objects, RECORD)), (Some("new".into()), Some("fence 2".into())));
}

#[test]
fn b1_what_an_old_repository_has_announced_and_puts_late_is_refused() {
    for (below, before) in [(MANIFEST, None), (RECORD, None), (RECORD, Some("fence 1"))] {
        let objects = Arc::new(objects(Arc::<InMemory>::default()));
        let old = take(&objects);
        if let Some(before) = before {
            old.commit(Path::new(below), before.as_bytes()).unwrap();
        }
        let mut state = old.state.lock().unwrap();
        old.announce(&mut state, Path::new(below)).unwrap();
        let late = stamped(Stamp { epoch: 1, number: state.record.number, void: false }, b"late");
        let mode = state.versions.get(Path::new(below)).cloned().map_or(PutMode::Create, PutMode::Update);
        // it stands still here, and another one comes
        let new = take(&objects);
        assert_eq!(objects.put_if(Path::new(below), &late, mode).unwrap(), None, "{below}");
        assert_eq!(read(&objects, below).as_deref(), before);
        new.commit(Path::new(below), b"new").unwrap();
        assert_eq!(read(&objects, below).as_deref(), Some("new"));
    }
}

#[test]
fn b1_what_came_just_in_time_is_there_for_the_next_one() {
    let objects = Arc::new(objects(Arc::<InMemory>::default()));
    let old = take(&objects);
    old.commit(Path::new(MANIFEST), b"whole").unwrap();
    let _new = take(&objects);
    assert_eq!(read(&objects, MANIFEST).as_deref(), Some("whole"));
}

#[test]
fn who_has_resigned_is_not_waited_for_and_commits_nothing_more() {
    let objects = Arc::new(objects(Arc::<InMemory>::default()));
    let first = take(&objects);
    first.resign().unwrap();
    assert!(first.confirm().is_err() && first.commit(Path::new(RECORD), b"late").is_err());
    let begun = Instant::now();
    let process = Holder::new();
    drop(Owner::take(&objects, &process, Duration::from_secs(3600)).unwrap());
    // nor is what the same process has begun before
    Owner::take(&objects, &process, Duration::from_secs(3600)).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[test]
fn b1_who_stops_while_it_waits_for_another_ones_requests_leaves_the_whole_wait_to_the_next() {
    let (memory, stop) = (Arc::<InMemory>::default(), tokio_util::sync::CancellationToken::new());
    let calm = Arc::new(objects(memory.clone()));
    let old = take(&calm);
    stop.cancel();
    let begun = Instant::now();
    let process = Holder::new();
    let stopped = Owner::take(&Arc::new(objects(memory).until(stop)), &process, Duration::from_secs(3600));
    assert!(stopped.unwrap_err().to_string().contains("told to stop") && begun.elapsed() < Duration::from_secs(60));
    assert!(old.commit(Path::new(RECORD), b"late").is_err());
    // also if it is the same process
    let (begun, handover) = (Instant::now(), Duration::from_millis(300));
    let new = Owner::take(&calm, &process, handover).unwrap();
    assert!(begun.elapsed() >= handover);
    new.commit(Path::new(RECORD), b"new").unwrap();
    // now nothing of the first one is under way any more
    Owner::take(&calm, &process, Duration::from_secs(3600)).unwrap();
}

#[test]
fn b1_a_store_that_looks_at_no_conditions_is_refused_in_clear_words() {
    let moody = Moody::new(&Arc::default(), |_| Mood::Overlooks);
    let refused = Owner::take(&Arc::new(objects(moody)), &Holder::new(), Duration::ZERO).unwrap_err();
    assert!(refused.to_string().contains("does not do conditional puts"), "{refused}");
}

/// Requests fail from the second change on.
fn fails_after_the_first(memory: &Arc<InMemory>) -> Arc<Objects> {
    let moody = Moody::new(memory, |n| if n == 0 { Mood::Does } else { Mood::Refuses });
    Arc::new(objects(moody))
}

#[test]
fn b1_whoever_comes_after_one_that_has_not_waited_to_the_end_waits() {
    const HANDOVER: Duration = Duration::from_millis(300);
    let memory = Arc::<InMemory>::default();
    let calm = Arc::new(objects(memory.clone()));
    let _old = take(&calm);
    let process = Holder::new();
    assert!(Owner::take(&fails_after_the_first(&memory), &process, Duration::ZERO).is_err());
    // the same process, and one of the same volume
    for next in [process, Holder::new()] {
        assert!(Owner::take(&fails_after_the_first(&memory), &next, Duration::ZERO).is_err());
        let begun = Instant::now();
        drop(Owner::take(&calm, &next, HANDOVER).unwrap());
        assert!(begun.elapsed() >= HANDOVER);
        let begun = Instant::now();
        Owner::take(&calm, &next, Duration::from_secs(3600)).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
}

#[test]
fn b1_who_is_superseded_while_it_waits_writes_nothing_and_stays_out() {
    let objects = Arc::new(objects(Arc::<InMemory>::default()));
    let first = take(&objects);
    first.commit(Path::new(RECORD), b"fence 1").unwrap();
    let slow = Holder::new();
    let waiting = std::thread::spawn({
        let objects = objects.clone();
        move || {
            let taken = Owner::take(&objects, &slow, Duration::from_secs(10)).map(drop);
            (taken, Owner::take(&objects, &slow, Duration::ZERO).map(drop))
        }
    });
    while objects.get(Path::new(OWNER)).unwrap().is_none_or(|(bytes, _)| Record::read(&bytes).unwrap().epoch < 2) {
        std::thread::yield_now();
    }
    let last = take(&objects);
    let before = objects.get(Path::new(RECORD)).unwrap().unwrap();
    let (taken, again) = waiting.join().unwrap();
    assert!(taken.unwrap_err().to_string().contains("while this one waited") && again.is_err());
    assert_eq!(objects.get(Path::new(RECORD)).unwrap().unwrap(), before);
    last.confirm().unwrap();
}

#[test]
fn what_a_superseded_repository_has_only_written_again_is_replaced() {
    let objects = Arc::new(objects(Arc::<InMemory>::default()));
    let old = take(&objects);
    old.commit(Path::new(RECORD), b"fence 1").unwrap();
    let new = take(&objects);
    new.commit(Path::new(RECORD), b"fence 2").unwrap();
    settle(&objects, &mut old.state.lock().unwrap(), Path::new(RECORD)).unwrap();
    assert_eq!(read(&objects, RECORD).as_deref(), Some("fence 2"));
    new.commit(Path::new(RECORD), b"fence 3").unwrap();
    assert_eq!(read(&objects, RECORD).as_deref(), Some("fence 3"));
}

#[test]
fn b1_what_a_newer_repository_keeps_out_is_not_put_in_its_place() {
    let memory = Arc::<InMemory>::default();
    let calm = Arc::new(objects(memory.clone()));
    let old = take(&calm);
    let others = calm.clone();
    // it stands still between its announcement and its put
    let moody = Moody::new(&memory, move |n| {
        if n == 1 {
            take(&others);
        }
        Mood::Does
    });
    let late = Owner { objects: Arc::new(objects(moody)), state: old.state };
    assert!(late.commit(Path::new(MANIFEST), b"late").is_err());
    assert_eq!(read(&calm, MANIFEST), None);
}

#[test]
fn what_is_not_a_repositorys_is_left_alone() {
    let objects = Arc::new(objects(Arc::<InMemory>::default()));
    objects.put(Path::new(OWNER), b"somebody's notes".to_vec()).unwrap();
    let refused = Owner::take(&objects, &Holder::new(), Duration::ZERO).unwrap_err();
    assert!(refused.to_string().contains("another prefix"), "{refused}");
    assert_eq!(objects.get(Path::new(OWNER)).unwrap().unwrap().0, "somebody's notes");
}

proptest! {
    /// Requests fail before or after they are done, and processes end and others begin.
    #[test]
    fn b1_what_was_acknowledged_is_there_and_nothing_older_comes_back(
        moods in prop::collection::vec(0u8..10, 1..60),
        orders in prop::collection::vec((0usize..3, any::<bool>()), 1..25),
    ) {
        let memory = Arc::<InMemory>::default();
        let calm = Arc::new(objects(memory.clone()));
        let moody = Moody::new(&memory, move |n| match moods[n as usize % moods.len()] {
            0 => Mood::Refuses,
            1 => Mood::IsNotHeard,
            _ => Mood::Does,
        });
        let moody = Arc::new(objects(moody));
        let names = [RECORD, MANIFEST, "jobs/b/record.json"];
        let mut acknowledged: BTreeMap<&str, usize> = BTreeMap::new();
        let mut owner = take(&calm);
        owner.objects = moody.clone();
        for (number, (name, ends)) in orders.into_iter().enumerate() {
            let number = number + 1;
            if ends {
                // the next one begins, in quiet times, with what the bucket has
                owner = take(&calm);
                for name in names {
                    if let Some((_, version)) = calm.get(Path::new(name)).unwrap() {
                        owner.know(name.into(), version);
                    }
                }
                owner.objects = moody.clone();
            }
            if owner.commit(Path::new(names[name]), number.to_string().as_bytes()).is_ok() {
                acknowledged.insert(names[name], number);
            }
            for (name, last) in &acknowledged {
                let there = read(&calm, name).and_then(|text| text.parse::<usize>().ok());
                prop_assert!(there.is_some_and(|there| there >= *last), "{name}: {there:?} after {last}");
            }
        }
    }
}
