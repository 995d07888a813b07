//! What a stream says besides its pages.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{MAX_BLOCKS, MAX_DEVICES, MAX_NAME, MAX_RAM, PAGE_BYTES, Refusal, mark};

/// A block of RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Its name: part of how the VM is defined.
    pub name: String,
    /// Bytes, a multiple of a page's.
    pub length: u64,
}

/// All that is needed besides the pages to write a stream again. Always one that can be written: what is
/// made or deserialized is checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub struct Skeleton {
    parts: Parts,
    /// The number of the first page of each block, and behind the last one that of all pages.
    firsts: Vec<u64>,
}

/// What a [`Skeleton`] is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Parts {
    pub(super) machine: String,
    pub(super) section: u32,
    pub(super) blocks: Vec<Block>,
    pub(super) switchover: bool,
    pub(super) devices: Vec<u8>,
}

impl Skeleton {
    /// The versioned name of the machine, for example `pc-q35-7.2`.
    pub fn machine(&self) -> &str {
        &self.parts.machine
    }

    /// The blocks, in the order in which their pages are numbered.
    pub fn blocks(&self) -> &[Block] {
        &self.parts.blocks
    }

    /// How many pages there are in all blocks.
    pub fn pages(&self) -> u64 {
        self.firsts.last().copied().unwrap_or_default()
    }

    /// The state of the devices: everything behind the pages.
    pub fn devices(&self) -> &[u8] {
        &self.parts.devices
    }

    /// Number of the RAM section.
    pub(super) fn section(&self) -> u32 {
        self.parts.section
    }

    /// Whether the switchover is announced before the last pages.
    pub(super) fn switchover(&self) -> bool {
        self.parts.switchover
    }

    /// Where a page is: the block, its position among all, and the number of its first page.
    pub(super) fn place(&self, page: u64) -> Option<(usize, &Block, u64)> {
        let at = self.firsts.partition_point(|first| *first <= page).checked_sub(1)?;
        Some((at, self.parts.blocks.get(at)?, *self.firsts.get(at)?))
    }
}

impl TryFrom<Parts> for Skeleton {
    type Error = Refusal;

    fn try_from(parts: Parts) -> Result<Self, Refusal> {
        check_name(parts.machine.as_bytes())?;
        check_devices(&parts.devices)?;
        let firsts = number_pages(&parts.blocks)?;
        Ok(Self { parts, firsts })
    }
}

impl From<Skeleton> for Parts {
    fn from(skeleton: Skeleton) -> Self {
        skeleton.parts
    }
}

/// A name as text, if it can be one.
pub(super) fn check_name(name: &[u8]) -> Result<&str, Refusal> {
    match std::str::from_utf8(name) {
        Ok(text) if !text.is_empty() && text.len() <= MAX_NAME => Ok(text),
        _ => Err(Refusal::Name),
    }
}

/// Numbers the pages of all blocks: the first of each, and how many there are.
pub(super) fn number_pages(blocks: &[Block]) -> Result<Vec<u64>, Refusal> {
    let total = blocks.iter().fold(0_u64, |sum, block| sum.saturating_add(block.length));
    let whole = blocks.iter().all(|block| block.length > 0 && block.length % PAGE_BYTES == 0);
    if !(1..=MAX_BLOCKS).contains(&blocks.len()) || total > MAX_RAM || !whole {
        return Err(Refusal::Sizes(total));
    }
    let (mut names, mut firsts, mut pages) = (BTreeSet::new(), vec![0], 0);
    for block in blocks {
        check_name(block.name.as_bytes())?;
        if !names.insert(&block.name) {
            return Err(Refusal::BlockTwice(block.name.clone()));
        }
        pages += block.length / PAGE_BYTES;
        firsts.push(pages);
    }
    Ok(firsts)
}

/// Checks that the devices' state begins with a section and ends with its description, which QEMU writes
/// last: without it the stream may have been cut off.
fn check_devices(devices: &[u8]) -> Result<(), Refusal> {
    let ends_here = |text: usize| {
        let length = u32::try_from(devices.len() - text).unwrap_or(u32::MAX).to_be_bytes();
        let [a, b, c, d] = length;
        text >= 6 && devices[text - 6..text] == [mark::END_OF_SECTIONS, mark::DESCRIPTION, a, b, c, d]
    };
    let mut braces = (0..devices.len()).rev().filter(|at| devices[*at] == b'{');
    let whole = devices.first() == Some(&mark::FULL) && devices.last() == Some(&b'}') && braces.any(ends_here);
    if whole && devices.len() <= MAX_DEVICES { Ok(()) } else { Err(Refusal::Devices) }
}
