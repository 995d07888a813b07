//! A file that is put together here: beside its final name until it is whole.

use std::{
    fs::{self, File, FileTimes, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, UNIX_EPOCH},
};

use super::{
    journal::{Journal, Subject},
    spans::Spans,
    wire::Identity,
};

/// A file with its journal.
#[derive(Debug)]
pub(super) struct Part {
    file: File,
    journal: Mutex<Journal>,
    whole: PathBuf,
    unfinished: PathBuf,
    noted: PathBuf,
    identity: Identity,
}

/// What is there of a file.
#[derive(Debug)]
pub(super) enum Begun {
    /// All of it, from an earlier run.
    Whole,
    /// These ranges.
    Part(Part, Spans),
}

impl Part {
    /// Goes on with what an earlier run has left, or begins.
    pub(super) fn open(whole: &Path, subject: &Subject) -> io::Result<Begun> {
        let identity = subject.identity;
        let Beside { directory, unfinished, noted } = Beside::of(whole)?;
        if is_whole(whole, identity) {
            // of a run that ended between the two
            let _ = fs::remove_file(noted);
            return Ok(Begun::Whole);
        }
        fs::create_dir_all(directory)?;
        let (mut journal, mut stored) = Journal::open(&noted, subject)?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&unfinished)?;
        if file.metadata()?.len() < end(&stored) {
            // somebody has cut it
            drop(journal);
            fs::remove_file(&noted)?;
            (journal, stored) = Journal::open(&noted, subject)?;
        }
        if stored.is_empty() {
            file.set_len(0)?;
        }
        let journal = Mutex::new(journal);
        Ok(Begun::Part(Self { file, journal, whole: whole.to_owned(), unfinished, noted, identity }, stored))
    }

    /// What an earlier run has left; nothing is changed. None: all of it.
    pub(super) fn look(whole: &Path, subject: &Subject) -> io::Result<Option<Spans>> {
        if is_whole(whole, subject.identity) {
            return Ok(None);
        }
        let Beside { unfinished, noted, .. } = Beside::of(whole)?;
        let stored = Journal::look(&noted, subject)?;
        let written = fs::metadata(unfinished).map_or(0, |known| known.len());
        Ok(Some(if end(&stored) > written { Spans::default() } else { stored }))
    }

    pub(super) fn write(&self, start: u64, bytes: &[u8]) -> io::Result<()> {
        if start.saturating_add(bytes.len() as u64) > self.identity.size {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more than the file had"));
        }
        self.file.write_all_at(bytes, start)
    }

    /// Once this is done, the ranges are there after every crash.
    pub(super) fn sync(&self, ranges: &[Range<u64>]) -> io::Result<()> {
        self.file.sync_data()?;
        self.journal.lock().map_err(|_| io::ErrorKind::Other)?.note(ranges)
    }

    /// All ranges are there: gives it its name. Afterwards it is as old as what it was copied from, by which the next
    /// run knows it.
    pub(super) fn finish(&self) -> io::Result<()> {
        let since = Duration::new(self.identity.seconds.unsigned_abs(), self.identity.nanoseconds as u32);
        let modified = if self.identity.seconds < 0 { UNIX_EPOCH - since } else { UNIX_EPOCH + since };
        self.file.set_len(self.identity.size)?;
        self.file.set_times(FileTimes::new().set_modified(modified))?;
        self.file.sync_all()?;
        fs::rename(&self.unfinished, &self.whole)?;
        if let Some(directory) = self.whole.parent() {
            File::open(directory)?.sync_all()?;
        }
        fs::remove_file(&self.noted)
    }

    /// Nothing of it is of any use.
    pub(super) fn discard(&self) {
        // the journal first: without it the rest means nothing
        let _ = fs::remove_file(&self.noted);
        let _ = fs::remove_file(&self.unfinished);
    }
}

/// Where a file is until it is whole.
struct Beside<'a> {
    directory: &'a Path,
    unfinished: PathBuf,
    noted: PathBuf,
}

impl<'a> Beside<'a> {
    fn of(whole: &'a Path) -> io::Result<Self> {
        let (directory, name) = whole.parent().zip(whole.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
        let name = name.to_string_lossy();
        let (unfinished, noted) =
            (directory.join(format!(".{name}.part")), directory.join(format!(".{name}.part.journal")));
        Ok(Self { directory, unfinished, noted })
    }
}

fn is_whole(path: &Path, identity: Identity) -> bool {
    fs::metadata(path).is_ok_and(|known| known.is_file() && Identity::from(&known) == identity)
}

/// Where the last of these ranges ends.
fn end(stored: &Spans) -> u64 {
    stored.iter().last().map_or(0, |last| last.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(size: u64) -> Subject {
        let identity = Identity { size, seconds: 1_700_000_000, nanoseconds: 123_456_789 };
        Subject { host: "n1".into(), path: "/a".into(), identity }
    }

    fn part(begun: Begun) -> (Part, Spans) {
        match begun {
            Begun::Part(part, stored) => (part, stored),
            Begun::Whole => panic!("it is whole"),
        }
    }

    #[test]
    fn it_has_its_name_once_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let whole = directory.path().join("d/n1");
        assert_eq!(Part::look(&whole, &subject(6)).unwrap(), Some(Spans::default()));
        assert!(!directory.path().join("d").exists(), "who looks makes nothing");
        let (begun, stored) = part(Part::open(&whole, &subject(6)).unwrap());
        assert!(stored.is_empty());
        begun.write(3, b"def").unwrap();
        begun.sync(std::slice::from_ref(&(3..6))).unwrap();
        assert!(begun.write(4, b"xyz").is_err());
        drop(begun);
        let (begun, stored) = part(Part::open(&whole, &subject(6)).unwrap());
        assert_eq!(stored, Spans::of(3..6));
        assert_eq!(Part::look(&whole, &subject(6)).unwrap(), Some(stored));
        assert!(!whole.exists());
        begun.write(0, b"abc").unwrap();
        begun.sync(std::slice::from_ref(&(0..3))).unwrap();
        begun.finish().unwrap();
        assert_eq!(fs::read(&whole).unwrap(), b"abcdef");
        assert!(matches!(Part::open(&whole, &subject(6)).unwrap(), Begun::Whole));
        assert_eq!(Part::look(&whole, &subject(6)).unwrap(), None);
        assert_eq!(fs::read_dir(directory.path().join("d")).unwrap().count(), 1);
        // another file by the same name
        let (_, stored) = part(Part::open(&whole, &subject(7)).unwrap());
        assert!(stored.is_empty());
    }

    #[test]
    fn a_part_that_was_cut_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let whole = directory.path().join("n1");
        let (begun, _) = part(Part::open(&whole, &subject(6)).unwrap());
        begun.write(0, b"abcdef").unwrap();
        begun.sync(std::slice::from_ref(&(0..6))).unwrap();
        drop(begun);
        OpenOptions::new().write(true).open(directory.path().join(".n1.part")).unwrap().set_len(2).unwrap();
        assert_eq!(Part::look(&whole, &subject(6)).unwrap(), Some(Spans::default()));
        assert!(part(Part::open(&whole, &subject(6)).unwrap()).1.is_empty());
    }
}
