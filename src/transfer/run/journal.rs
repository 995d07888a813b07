//! Which ranges of a file are safely on the disk: a line each, after one that says of which file.
//!
//! A line is written once its range is synced, and is synced itself before anybody is told. So what it says holds
//! after every crash; a last line that is torn says nothing.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    ops::Range,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{spans::Spans, wire::Identity};
use crate::lock;

/// Of what the ranges are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Subject {
    pub(super) host: String,
    pub(super) path: String,
    pub(super) identity: Identity,
}

/// A journal that is open, and locked against others.
#[derive(Debug)]
pub(super) struct Journal(File);

impl Journal {
    /// What is known of this file; nothing if the journal is of another one, and then it begins anew.
    pub(super) fn open(path: &Path, subject: &Subject) -> io::Result<(Self, Spans)> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        lock::take(&file)
            .map_err(|_| io::Error::new(io::ErrorKind::ResourceBusy, "another process gathers into it"))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        if let Some((spans, valid)) = read(&text, subject) {
            file.set_len(valid as u64)?;
            file.seek(SeekFrom::End(0))?;
            return Ok((Self(file), spans));
        }
        file.set_len(0)?;
        file.rewind()?;
        let mut line = serde_json::to_vec(subject)?;
        line.push(b'\n');
        file.write_all(&line)?;
        file.sync_all()?;
        Ok((Self(file), Spans::default()))
    }

    /// What is known of this file, without a change and whoever has it open.
    pub(super) fn look(path: &Path, subject: &Subject) -> io::Result<Spans> {
        match std::fs::read(path) {
            Ok(text) => Ok(read(&text, subject).map(|(spans, _)| spans).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Spans::default()),
            Err(error) => Err(error),
        }
    }

    /// Notes ranges that are synced.
    pub(super) fn note(&mut self, ranges: &[Range<u64>]) -> io::Result<()> {
        let mut lines = Vec::new();
        for range in ranges {
            writeln!(lines, "{} {}", range.start, range.end)?;
        }
        let end = self.0.stream_position()?;
        if let Err(error) = self.0.write_all(&lines) {
            // the next line must not go on with half of this one
            self.0.set_len(end)?;
            self.0.seek(SeekFrom::Start(end))?;
            return Err(error);
        }
        self.0.sync_data()
    }
}

/// The ranges that whole lines name, and how many bytes of the text those are.
fn read(text: &[u8], subject: &Subject) -> Option<(Spans, usize)> {
    let mut lines = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let first = lines.next()?;
    if serde_json::from_slice::<Subject>(first).ok()? != *subject {
        return None;
    }
    let (mut spans, mut valid) = (Spans::default(), first.len());
    for line in lines {
        let Some(range) = range(line).filter(|range| range.end <= subject.identity.size) else { break };
        spans.insert(range);
        valid += line.len();
    }
    Some((spans, valid))
}

fn range(line: &[u8]) -> Option<Range<u64>> {
    let (start, end) = std::str::from_utf8(line).ok()?.trim_end().split_once(' ')?;
    let range = start.parse().ok()?..end.parse().ok()?;
    (range.start <= range.end).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(size: u64) -> Subject {
        let identity = Identity { size, seconds: 5, nanoseconds: 7 };
        Subject { host: "node-1".into(), path: "/data/a".into(), identity }
    }

    #[test]
    fn what_was_noted_is_known_after_every_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let (mut journal, none) = Journal::open(&path, &subject(100)).unwrap();
        assert!(none.is_empty());
        journal.note(&[0..10, 20..30]).unwrap();
        let first = std::fs::metadata(&path).unwrap().len();
        journal.note(std::slice::from_ref(&(30..45))).unwrap();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for cut in (1..=whole.len()).rev() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut journal, spans) = Journal::open(&path, &subject(100)).unwrap();
            let expected = if cut == whole.len() {
                35
            } else if cut as u64 >= first {
                20
            } else {
                spans.bytes()
            };
            assert_eq!(spans.bytes(), expected, "cut at {cut}");
            assert!(spans.bytes() == 0 || spans.bytes() >= 10);
            // what is noted afterwards stands on lines of its own
            journal.note(std::slice::from_ref(&(90..100))).unwrap();
            drop(journal);
            assert_eq!(Journal::open(&path, &subject(100)).unwrap().1.bytes(), expected + 10);
        }
    }

    #[test]
    fn a_journal_of_another_file_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        Journal::open(&path, &subject(100)).unwrap().0.note(std::slice::from_ref(&(0..10))).unwrap();
        assert_eq!(Journal::open(&path, &subject(100)).unwrap().1.bytes(), 10);
        assert!(Journal::open(&path, &subject(101)).unwrap().1.is_empty());
        assert!(Journal::open(&path, &subject(100)).unwrap().1.is_empty());
    }

    #[test]
    fn two_do_not_gather_into_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let _first = Journal::open(&path, &subject(1)).unwrap();
        assert_eq!(Journal::open(&path, &subject(1)).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    }
}
