//! Which bytes of a file: ranges that neither touch nor overlap. Pure.

use std::{collections::BTreeMap, ops::Range};

/// Ranges of bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spans(BTreeMap<u64, u64>);

impl Spans {
    /// One range.
    pub(super) fn of(range: Range<u64>) -> Self {
        let mut spans = Self::default();
        spans.insert(range);
        spans
    }

    /// Adds a range; parts of it may be there.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        let near = self.0.range(..=end).rev().take_while(|(_, to)| **to >= start);
        for from in near.map(|(from, _)| *from).collect::<Vec<_>>() {
            if let Some(to) = self.0.remove(&from) {
                start = start.min(from);
                end = end.max(to);
            }
        }
        self.0.insert(start, end);
    }

    /// Takes a range out; parts of it may be missing.
    pub(super) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let within = self.0.range(..range.end).rev().take_while(|(_, to)| **to > range.start);
        for from in within.map(|(from, _)| *from).collect::<Vec<_>>() {
            if let Some(to) = self.0.remove(&from) {
                if from < range.start {
                    self.0.insert(from, range.start);
                }
                if to > range.end {
                    self.0.insert(range.end, to);
                }
            }
        }
    }

    /// Takes so many bytes out, from the beginning on.
    pub(super) fn take(&mut self, most: u64) -> Vec<Range<u64>> {
        let (mut taken, mut left) = (Vec::new(), most);
        while left > 0
            && let Some((start, end)) = self.0.pop_first()
        {
            let cut = end.min(start.saturating_add(left));
            if cut < end {
                self.0.insert(cut, end);
            }
            left -= cut - start;
            taken.push(start..cut);
        }
        taken
    }

    /// What is not there of a file of this size.
    pub(super) fn missing(&self, size: u64) -> Self {
        let mut missing = Self::of(0..size);
        for range in self.iter() {
            missing.remove(range);
        }
        missing
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(start, end)| *start..*end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn spans_are_sets_of_bytes(steps in prop::collection::vec((any::<bool>(), 0u64..40, 0u64..12), 0..30), most in 0u64..50) {
            let (mut spans, mut bytes) = (Spans::default(), std::collections::BTreeSet::new());
            for (adds, start, length) in steps {
                let range = start..start + length;
                if adds {
                    spans.insert(range.clone());
                    bytes.extend(range);
                } else {
                    spans.remove(range.clone());
                    bytes.retain(|byte| !range.contains(byte));
                }
            }
            prop_assert!(spans.iter().flatten().eq(bytes.iter().copied()));
            prop_assert_eq!(spans.bytes(), bytes.len() as u64);
            prop_assert_eq!(spans.missing(60).bytes(), 60 - bytes.len() as u64);
            let ranges: Vec<_> = spans.iter().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", ranges);
            let taken: Vec<u64> = spans.take(most).into_iter().flatten().collect();
            prop_assert!(taken.iter().eq(bytes.iter().take(most as usize)));
            prop_assert_eq!(spans.bytes() + taken.len() as u64, bytes.len() as u64);
        }
    }
}
