//! Reading a stream, once and from its beginning: pages as they come, then the skeleton.

use std::{collections::BTreeMap, io::Read};

use super::{
    MAGIC, MAX_BLOCKS, MAX_DEVICES, MAX_NAME, MAX_RAM, PAGE, PAGE_BYTES, RAM, RAM_VERSION, Refusal, SWITCHOVER_START,
    Skeleton, StreamError, VERSION,
    bitmap::Bitmap,
    flag, mark,
    skeleton::{Block, Parts, check_name, number_pages},
    source::Source,
};

/// What is in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page<'a> {
    /// Nothing but zeros.
    Zero,
    /// Something.
    Data {
        /// Where in the stream these bytes are.
        offset: u64,
        /// The page's bytes.
        bytes: &'a [u8; PAGE],
    },
}

/// A page that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// Its number over all blocks.
    pub page: u64,
    /// What is in it.
    pub content: Page<'a>,
}

/// Takes a stream apart: every page is told once, in the order of the stream, and then what there is
/// besides. An error of `page` ends it. Until it has ended well, nothing it told may be relied on.
pub fn read<E: From<StreamError>>(
    input: impl Read,
    mut page: impl FnMut(Found<'_>) -> Result<(), E>,
) -> Result<Skeleton, E> {
    let mut source = Source::new(input);
    let (machine, mut ram) = read_head(&mut source)?;
    let mut switchover = false;
    let first = loop {
        let offset = source.offset();
        let found = source.byte()?;
        match found {
            mark::PART if !switchover => ram.read_section(&mut source, &mut page)?,
            mark::COMMAND if !switchover => {
                read_command(&mut source)?;
                switchover = true;
            }
            mark::END => {
                ram.read_section(&mut source, &mut page)?;
                break expect(&mut source, mark::FULL, "the devices' state")?;
            }
            mark::FULL if !switchover => break found,
            _ if switchover => {
                return Err(refused(offset, Refusal::Mark { found, wanted: "the last pages" }).into());
            }
            _ => {
                return Err(refused(offset, Refusal::Mark { found, wanted: "pages or the devices' state" }).into());
            }
        }
    };
    let offset = source.offset() - 1;
    ram.check_complete().map_err(|what| refused(offset, what))?;
    let Ram { section, blocks, .. } = ram;
    let devices = source.rest(first, MAX_DEVICES)?;
    let parts = Parts { machine, section, blocks, switchover, devices };
    Ok(Skeleton::try_from(parts).map_err(|what| refused(offset, what))?)
}

fn refused(offset: u64, what: Refusal) -> StreamError {
    StreamError::Refused { offset, what }
}

fn expect(source: &mut Source<impl Read>, mark: u8, wanted: &'static str) -> Result<u8, StreamError> {
    let offset = source.offset();
    match source.byte()? {
        found if found == mark => Ok(found),
        found => Err(refused(offset, Refusal::Mark { found, wanted })),
    }
}

fn expect_version(source: &mut Source<impl Read>, version: u32) -> Result<(), StreamError> {
    let offset = source.offset();
    match source.u32()? {
        found if found == version => Ok(()),
        found => Err(refused(offset, Refusal::Version(found))),
    }
}

fn expect_footer(source: &mut Source<impl Read>, section: u32) -> Result<(), StreamError> {
    expect(source, mark::FOOTER, "the end of a section")?;
    expect_section(source, section)
}

fn expect_section(source: &mut Source<impl Read>, section: u32) -> Result<(), StreamError> {
    let offset = source.offset();
    match source.u32()? {
        found if found == section => Ok(()),
        found => Err(refused(offset, Refusal::SectionId(found))),
    }
}

/// The bytes of a name whose length stands before it in one byte.
fn short_name(source: &mut Source<impl Read>) -> Result<&[u8], StreamError> {
    let length = source.byte()?;
    source.take(length.into())
}

/// Everything before the first page: the machine's name and the RAM that is to come.
fn read_head(source: &mut Source<impl Read>) -> Result<(String, Ram), StreamError> {
    if source.u32()? != MAGIC {
        return Err(refused(0, Refusal::Magic));
    }
    expect_version(source, VERSION)?;
    expect(source, mark::CONFIGURATION, "the configuration")?;
    let offset = source.offset();
    let length = usize::try_from(source.u32()?).ok().filter(|length| *length <= MAX_NAME);
    let name = source.take(length.ok_or_else(|| refused(offset, Refusal::Name))?)?;
    let machine = check_name(name).map_err(|what| refused(offset, what))?.to_owned();

    expect(source, mark::START, "the RAM section")?;
    let section = source.u32()?;
    let offset = source.offset();
    let name = short_name(source)?;
    if name != RAM {
        return Err(refused(offset, Refusal::Section(String::from_utf8_lossy(name).into_owned())));
    }
    expect_version(source, 0)?;
    expect_version(source, RAM_VERSION)?;
    let ram = Ram::new(section, read_blocks(source)?)?;
    let offset = source.offset();
    match source.u64()? {
        flag::END => expect_footer(source, section)?,
        found => return Err(refused(offset, Refusal::Flags(found & flag::ALL))),
    }
    Ok((machine, ram))
}

/// The blocks of RAM, and where they are told.
fn read_blocks(source: &mut Source<impl Read>) -> Result<(u64, Vec<Block>), StreamError> {
    let start = source.offset();
    let record = source.u64()?;
    if record & flag::ALL != flag::SIZES {
        return Err(refused(start, Refusal::Flags(record & flag::ALL)));
    }
    let total = record & !flag::ALL;
    let mut left = total;
    let mut blocks = Vec::new();
    while left > 0 {
        let offset = source.offset();
        let name = check_name(short_name(source)?).map_err(|what| refused(offset, what))?.to_owned();
        let length = source.u64()?;
        match left.checked_sub(length) {
            Some(rest) if length > 0 && total <= MAX_RAM && blocks.len() < MAX_BLOCKS => left = rest,
            _ => return Err(refused(offset, Refusal::Sizes(total))),
        }
        blocks.push(Block { name, length });
    }
    Ok((start, blocks))
}

/// The one command that is known where it may be.
fn read_command(source: &mut Source<impl Read>) -> Result<(), StreamError> {
    let offset = source.offset();
    match (source.u16()?, source.u16()?) {
        (SWITCHOVER_START, 0) => Ok(()),
        (number, length) => Err(refused(offset, Refusal::Command { number, length })),
    }
}

/// The RAM section while it is read.
struct Ram {
    section: u32,
    blocks: Vec<Block>,
    /// The first page of each block, and how many there are.
    firsts: Vec<u64>,
    by_name: BTreeMap<Vec<u8>, usize>,
    /// The block of the last record.
    current: Option<usize>,
    seen: Bitmap,
}

impl Ram {
    fn new(section: u32, (offset, blocks): (u64, Vec<Block>)) -> Result<Self, StreamError> {
        let firsts = number_pages(&blocks).map_err(|what| refused(offset, what))?;
        let by_name = blocks.iter().enumerate().map(|(at, block)| (block.name.clone().into_bytes(), at)).collect();
        let seen = Bitmap::new(firsts.last().copied().unwrap_or_default());
        Ok(Self { section, blocks, firsts, by_name, current: None, seen })
    }

    /// The rest of a section behind its first byte.
    fn read_section<E: From<StreamError>>(
        &mut self,
        source: &mut Source<impl Read>,
        page: &mut impl FnMut(Found<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        expect_section(source, self.section)?;
        loop {
            let start = source.offset();
            let record = source.u64()?;
            if record == flag::END {
                return Ok(expect_footer(source, self.section)?);
            }
            let flags = record & flag::ALL;
            let kind = flags & !flag::SAME_BLOCK;
            if kind != flag::DATA && kind != flag::ZERO {
                return Err(refused(start, Refusal::Flags(flags)).into());
            }
            if flags & flag::SAME_BLOCK == 0 {
                self.current = self.by_name.get(short_name(source)?).copied();
            }
            let number = self.number(record & !flag::ALL).map_err(|what| refused(start, what))?;
            let content = if kind == flag::ZERO {
                let offset = source.offset();
                match source.byte()? {
                    0 => Page::Zero,
                    fill => return Err(refused(offset, Refusal::Fill(fill)).into()),
                }
            } else {
                let offset = source.offset();
                let bytes = source.array::<PAGE>()?;
                if is_zero(bytes) { Page::Zero } else { Page::Data { offset, bytes } }
            };
            page(Found { page: number, content })?;
        }
    }

    /// The number of a page that has not been seen, by its offset in the current block.
    fn number(&mut self, offset: u64) -> Result<u64, Refusal> {
        let at = self.current.ok_or(Refusal::NoBlock)?;
        let (Some(block), Some(first)) = (self.blocks.get(at), self.firsts.get(at)) else {
            return Err(Refusal::NoBlock);
        };
        if offset >= block.length {
            return Err(Refusal::NoPage { block: block.name.clone(), page: offset / PAGE_BYTES });
        }
        let number = first + offset / PAGE_BYTES;
        if self.seen.set(number) { Ok(number) } else { Err(Refusal::PageTwice(number)) }
    }

    /// Whether every page has been seen.
    fn check_complete(&self) -> Result<(), Refusal> {
        match self.seen.unset() {
            0 => Ok(()),
            missing => Err(Refusal::Missing { missing, pages: missing + self.seen.are_set() }),
        }
    }
}

/// Whether a page has nothing but zeros.
fn is_zero(bytes: &[u8; PAGE]) -> bool {
    const ZERO: [u8; PAGE] = [0; PAGE];
    bytes[0] == 0 && *bytes == ZERO
}
