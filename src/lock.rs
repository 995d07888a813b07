//! A lock on a file, which some have for a moment longer than they should.

use std::{fs::File, io, thread::sleep, time::Duration};

use rustix::fs::{FlockOperation, flock};

/// A lock is tried so often, with so much time between.
const TRIES: u32 = 20;
const PACE: Duration = Duration::from_millis(25);

/// Takes the lock for this process alone. Blocking: a child that is being started holds a copy for a moment, and a
/// process that is dying its own.
pub fn take(file: &File) -> io::Result<()> {
    let mut tries = 1;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(_) if tries < TRIES => tries += 1,
            taken => return Ok(taken?),
        }
        sleep(PACE);
    }
}

/// What comes to be there within 10 s: a child that another test starts has a copy of each lock until it has begun.
#[cfg(test)]
pub(crate) fn in_a_moment<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = std::time::Instant::now();
    loop {
        let found = look();
        if found.is_some() || begun.elapsed() > Duration::from_secs(10) {
            return found;
        }
        sleep(PACE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_is_held_for_a_moment_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let open = || File::create(directory.path().join("lock")).unwrap();
        let (first, second) = (open(), open());
        take(&first).unwrap();
        assert_eq!(take(&second).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let copy = first.try_clone().unwrap();
        drop(first);
        let child = std::thread::spawn(move || {
            sleep(2 * PACE);
            drop(copy);
        });
        // the thread may stand still for longer than one call waits
        assert!((0..20).any(|_| take(&second).is_ok()));
        child.join().unwrap();
    }
}
