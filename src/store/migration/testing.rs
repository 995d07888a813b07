//! Synthetic streams for tests, written independently of what the module itself writes.

use super::{PAGE, Page, Positions, Run, Skeleton, StreamError, Writer, read};

/// The content of a page, or zeros.
pub(crate) type Content = Option<Box<[u8; PAGE]>>;

/// A stream as QEMU would send it.
#[derive(Clone, Debug)]
pub(crate) struct Synthetic {
    pub(crate) machine: String,
    pub(crate) section: u32,
    /// Name and pages of each block.
    pub(crate) blocks: Vec<(String, u64)>,
    /// By number.
    pub(crate) pages: Vec<Content>,
    /// In which order they are sent.
    pub(crate) order: Vec<u64>,
    /// How many in each part.
    pub(crate) in_part: usize,
    /// A guest that stands: the last pages are in an END section.
    pub(crate) stopped: bool,
    /// The command that QEMU 10 sends before it.
    pub(crate) command: bool,
    pub(crate) devices: Vec<u8>,
}

impl Synthetic {
    /// These blocks, filled so that about a third of the pages is zero; all sent in order.
    pub(crate) fn new(blocks: &[(&str, u64)]) -> Self {
        let count: u64 = blocks.iter().map(|(_, pages)| pages).sum();
        Self {
            machine: "pc-q35-10.0".into(),
            section: 2,
            blocks: blocks.iter().map(|(name, pages)| ((*name).to_owned(), *pages)).collect(),
            pages: (0..count).map(|page| (page % 3 != 1).then(|| content(page))).collect(),
            order: (0..count).collect(),
            in_part: 4,
            stopped: true,
            command: false,
            devices: devices(b"\x01\x02\x03"),
        }
    }

    /// Three blocks and twelve pages, as a stopped guest sends them.
    pub(crate) fn stopped() -> Self {
        Self::new(&[("pc.ram", 7), ("/rom@etc/acpi/tables", 4), ("pc.rom", 1)])
    }

    /// The same of a guest that runs on: pages jump the queue.
    pub(crate) fn background() -> Self {
        let order = vec![9, 0, 1, 11, 2, 8, 3, 7, 10, 6, 5, 4];
        Self { stopped: false, order, ..Self::stopped() }
    }

    /// What comes before the first page.
    pub(crate) fn head(&self) -> Vec<u8> {
        let mut out = b"QEVM\0\0\0\x03\x07".to_vec();
        out.extend((self.machine.len() as u32).to_be_bytes());
        out.extend(self.machine.as_bytes());
        out.push(1);
        out.extend(self.section.to_be_bytes());
        out.extend(b"\x03ram\0\0\0\0\0\0\0\x04");
        let total: u64 = self.blocks.iter().map(|(_, pages)| pages * 4096).sum();
        out.extend((total | 4).to_be_bytes());
        for (name, pages) in &self.blocks {
            out.push(name.len() as u8);
            out.extend(name.as_bytes());
            out.extend((pages * 4096).to_be_bytes());
        }
        self.end_section(&mut out);
        out
    }

    /// The whole stream.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = self.head();
        let mut last = None;
        let parts: Vec<&[u64]> = self.order.chunks(self.in_part.max(1)).collect();
        for (index, part) in parts.iter().enumerate() {
            let end = self.stopped && index + 1 == parts.len();
            if end && self.command {
                out.extend([8, 0, 11, 0, 0]);
            }
            out.push(if end { 3 } else { 2 });
            out.extend(self.section.to_be_bytes());
            for page in *part {
                self.record(&mut out, *page, &mut last);
            }
            self.end_section(&mut out);
        }
        out.extend(&self.devices);
        out
    }

    fn record(&self, out: &mut Vec<u8>, page: u64, last: &mut Option<usize>) {
        let (mut block, mut place) = (0, page);
        while place >= self.blocks[block].1 {
            place -= self.blocks[block].1;
            block += 1;
        }
        let content = &self.pages[page as usize];
        let kind = if content.is_some() { 8 } else { 2 };
        let same = last.replace(block) == Some(block);
        out.extend((place * 4096 + kind + if same { 0x20 } else { 0 }).to_be_bytes());
        if !same {
            let name = &self.blocks[block].0;
            out.push(name.len() as u8);
            out.extend(name.as_bytes());
        }
        out.extend(content.as_ref().map_or(&[0][..], |bytes| &bytes[..]));
    }

    fn end_section(&self, out: &mut Vec<u8>) {
        out.extend(16_u64.to_be_bytes());
        out.push(0x7e);
        out.extend(self.section.to_be_bytes());
    }
}

/// A page's bytes that no other page has.
pub(crate) fn content(page: u64) -> Box<[u8; PAGE]> {
    let mut bytes = Box::new([0; PAGE]);
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = (page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (at % 57)) as u8 ^ at as u8;
    }
    bytes
}

/// The state of one device with these bytes, and the description of it.
pub(crate) fn devices(state: &[u8]) -> Vec<u8> {
    let text = br#"{"page_size": 4096, "devices": [{"name": "timer", "fields": []}]}"#;
    let mut out = b"\x04\0\0\0\x03\x05timer\0\0\0\0\0\0\0\x02".to_vec();
    out.extend(state);
    out.extend(b"\x7e\0\0\0\x03\0\x06");
    out.extend((text.len() as u32).to_be_bytes());
    out.extend(text);
    out
}

/// Reads a stream, and sees to it that offsets are right.
pub(crate) fn taken(stream: &[u8]) -> Result<(Skeleton, Vec<Content>), StreamError> {
    let mut pages = std::collections::BTreeMap::new();
    let skeleton = read(stream, |found| {
        let content = match found.content {
            Page::Zero => None,
            Page::Data { offset, bytes } => {
                assert_eq!(&stream[offset as usize..][..PAGE], bytes);
                Some(Box::new(*bytes))
            }
        };
        assert!(pages.insert(found.page, content).is_none());
        Ok::<(), StreamError>(())
    })?;
    assert!(pages.keys().copied().eq(0..skeleton.pages()));
    Ok((skeleton, pages.into_values().collect()))
}

/// The canonical stream, written from its beginning to its end.
pub(crate) fn written(skeleton: &Skeleton, pages: &[Content]) -> Vec<u8> {
    let mut writer = Writer::new(skeleton, Vec::new()).unwrap();
    for page in pages {
        match page {
            None => writer.zero().unwrap(),
            Some(bytes) => writer.data(bytes).unwrap(),
        }
    }
    writer.finish().unwrap()
}

/// The canonical stream, written page by page from the last; every byte of it once.
pub(crate) fn placed(skeleton: &Skeleton, pages: &[Content]) -> Vec<u8> {
    let single = |(page, content): (usize, &Content)| Run { first: page as u64, count: 1, data: content.is_some() };
    let positions = Positions::new(skeleton, pages.iter().enumerate().map(single)).unwrap();
    let mut bytes = vec![0; positions.length() as usize];
    let mut ranges = std::collections::BTreeMap::new();
    let mut put = |offset: u64, piece: &[u8]| {
        let range = offset as usize..offset as usize + piece.len();
        bytes[range.clone()].copy_from_slice(piece);
        assert_eq!(ranges.insert(range.start, range.end), None, "byte {offset} is written twice");
        Ok::<(), ()>(())
    };
    for (page, content) in pages.iter().enumerate().rev() {
        let Some(content) = content else { continue };
        let (offset, header) = (positions.offset(page as u64), positions.header(page as u64).unwrap());
        put(offset, &header).unwrap();
        put(offset + header.len() as u64, &content[..]).unwrap();
    }
    positions.frame(put).unwrap();
    let end = ranges.iter().fold(0, |end, (from, to)| if *from == end { *to } else { panic!("{from} behind {end}") });
    assert_eq!(end, bytes.len());
    bytes
}
