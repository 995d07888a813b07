use std::io::{self, Read};

use proptest::{prelude::*, sample::Index};
use rstest::rstest;

use super::{
    testing::{Synthetic, content, devices, placed, taken, written},
    *,
};

/// What a stream is refused for, and where.
fn refusal(stream: &[u8]) -> (u64, Refusal) {
    match taken(stream) {
        Err(StreamError::Refused { offset, what }) => (offset, what),
        other => panic!("not refused: {other:?}"),
    }
}

/// Reads, writes and reads again: nothing is changed, and what was written is written alike.
fn assert_canonical(stream: &[u8]) -> Result<Vec<u8>, StreamError> {
    let (skeleton, pages) = taken(stream)?;
    let canonical = written(&skeleton, &pages);
    assert!(placed(&skeleton, &pages) == canonical, "both ways of writing differ");
    let (again, same) = taken(&canonical)?;
    assert_eq!(again, skeleton);
    assert!(same == pages, "pages differ");
    assert!(written(&again, &same) == canonical, "the canonical stream is not written alike");
    Ok(canonical)
}

#[rstest]
#[case::stopped(Synthetic::stopped())]
#[case::stopped_with_a_command(Synthetic { command: true, ..Synthetic::stopped() })]
#[case::background(Synthetic::background())]
#[case::one_section(Synthetic { in_part: 100, ..Synthetic::background() })]
#[case::one_page(Synthetic::new(&[("pc.ram", 1)]))]
#[case::all_zero(Synthetic { pages: vec![None; 12], ..Synthetic::stopped() })]
#[case::long_names(Synthetic::new(&[("a".repeat(255).as_str(), 2), ("b".repeat(255).as_str(), 1)]))]
fn a_stream_is_taken_apart_and_written_again(#[case] stream: Synthetic) {
    let (skeleton, pages) = taken(&stream.bytes()).unwrap();
    assert!(pages == stream.pages);
    assert_eq!(skeleton.machine(), stream.machine);
    assert_eq!(skeleton.pages(), stream.pages.len() as u64);
    assert_eq!(skeleton.devices(), stream.devices);
    let blocks: Vec<(String, u64)> = skeleton.blocks().iter().map(|b| (b.name.clone(), b.length / 4096)).collect();
    assert_eq!(blocks, stream.blocks);
    assert_canonical(&stream.bytes()).unwrap();
}

#[test]
fn the_canonical_stream_is_one_section_in_order() {
    let background = Synthetic::background();
    let ordered = Synthetic { stopped: true, in_part: 12, order: (0..12).collect(), ..background.clone() };
    assert!(assert_canonical(&background.bytes()).unwrap() == ordered.bytes());
    let announced = Synthetic { command: true, ..Synthetic::stopped() };
    let ordered = Synthetic { in_part: 12, ..announced.clone() };
    assert!(assert_canonical(&announced.bytes()).unwrap() == ordered.bytes());
}

#[test]
fn a_page_of_zeros_is_zero_however_it_was_sent() {
    let mut stream = Synthetic::stopped();
    stream.pages[3] = Some(Box::new([0; PAGE]));
    let (_, pages) = taken(&stream.bytes()).unwrap();
    assert_eq!(pages[3], None);
    stream.pages[3] = Some(Box::new(std::array::from_fn(|at| u8::from(at == PAGE - 1))));
    assert!(taken(&stream.bytes()).unwrap().1 == stream.pages);
}

/// Puts bytes in place of others in the head.
fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut stream = Synthetic::stopped().bytes();
    stream[at..at + bytes.len()].copy_from_slice(bytes);
    stream
}

/// The first block is longer by what the second one is shorter.
fn odd_blocks() -> Vec<u8> {
    let mut stream = with(SIZES + 21, &[0x71]);
    stream[SIZES + 50] = 0x3f;
    stream
}

/// Where the machine's name, the RAM section and its sizes stand in `Synthetic::stopped`.
const NAME: usize = 13;
const START: usize = NAME + 11;
const SIZES: usize = START + 17;

#[rstest]
#[case::magic(with(0, b"q"), 0, Refusal::Magic)]
#[case::version(with(7, &[4]), 4, Refusal::Version(4))]
#[case::no_configuration(with(8, &[1]), 8, Refusal::Mark { found: 1, wanted: "the configuration" })]
#[case::long_machine(with(9, &[0xff]), 9, Refusal::Name)]
#[case::machine_without_text(with(NAME, &[0xff]), 9, Refusal::Name)]
#[case::subsection(with(START, &[5]), START as u64, Refusal::Mark { found: 5, wanted: "the RAM section" })]
#[case::command_in_front(with(START, &[8]), START as u64, Refusal::Mark { found: 8, wanted: "the RAM section" })]
#[case::other_section(with(START + 6, b"rom"), START as u64 + 5, Refusal::Section("rom".into()))]
#[case::instance(with(START + 12, &[1]), START as u64 + 9, Refusal::Version(1))]
#[case::ram_version(with(START + 16, &[5]), START as u64 + 13, Refusal::Version(5))]
#[case::no_sizes(with(SIZES + 7, &[0x40]), SIZES as u64, Refusal::Flags(0x40))]
#[case::huge(with(SIZES, &[0xff]), SIZES as u64 + 8, Refusal::Sizes(0xff00_0000_0000_c000))]
#[case::no_blocks(with(SIZES, &4_u64.to_be_bytes()), SIZES as u64, Refusal::Sizes(0))]
#[case::odd_blocks(odd_blocks(), SIZES as u64, Refusal::Sizes(0xc000))]
fn a_head_of_another_kind_is_refused(#[case] stream: Vec<u8>, #[case] at: u64, #[case] what: Refusal) {
    assert_eq!(refusal(&stream), (at, what));
}

#[test]
fn blocks_are_named_once_and_are_not_too_many() {
    let twice = Synthetic::new(&[("a", 1), ("a", 2)]);
    assert_eq!(refusal(&twice.bytes()).1, Refusal::BlockTwice("a".into()));
    let names: Vec<String> = (0..=MAX_BLOCKS).map(|number| number.to_string()).collect();
    let blocks: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    assert_eq!(refusal(&Synthetic::new(&blocks).bytes()).1, Refusal::Sizes(1025 * 4096));
    assert_canonical(&Synthetic::new(&blocks[1..]).bytes()).unwrap();
}

/// A stopped stream with one section of these bytes.
fn with_section(section: &[u8]) -> (Vec<u8>, u64) {
    let stream = Synthetic::stopped();
    let mut bytes = stream.head();
    let at = bytes.len() as u64;
    bytes.extend(section);
    bytes.extend([0; 2 * PAGE]);
    (bytes, at)
}

#[rstest]
#[case::another_id(b"\x02\0\0\0\x09", 1, Refusal::SectionId(9))]
#[case::start_of_another(b"\x01\0\0\0\x09\x05block", 0, Refusal::Mark { found: 1, wanted: "pages or the devices' state" })]
#[case::description(b"\x06\0\0\0\x09", 0, Refusal::Mark { found: 6, wanted: "pages or the devices' state" })]
#[case::other_command(b"\x08\0\x03\0\0", 1, Refusal::Command { number: 3, length: 0 })]
#[case::command_with_data(b"\x08\0\x0b\0\x01x", 1, Refusal::Command { number: 11, length: 1 })]
#[case::command_twice(b"\x08\0\x0b\0\0\x08", 5, Refusal::Mark { found: 8, wanted: "the last pages" })]
#[case::command_before_a_part(b"\x08\0\x0b\0\0\x02", 5, Refusal::Mark { found: 2, wanted: "the last pages" })]
#[case::xbzrle(b"\x02\0\0\0\x02\0\0\0\0\0\0\0\x40", 5, Refusal::Flags(0x40))]
#[case::hook(b"\x02\0\0\0\x02\0\0\0\0\0\0\0\x80", 5, Refusal::Flags(0x80))]
#[case::compressed(b"\x02\0\0\0\x02\0\0\0\0\0\0\x01\x00", 5, Refusal::Flags(0x100))]
#[case::multifd(b"\x02\0\0\0\x02\0\0\0\0\0\0\x02\x00", 5, Refusal::Flags(0x200))]
#[case::data_and_zero(b"\x02\0\0\0\x02\0\0\0\0\0\0\0\x0a", 5, Refusal::Flags(0x0a))]
#[case::end_with_a_place(b"\x02\0\0\0\x02\0\0\0\0\0\0\x10\x10", 5, Refusal::Flags(0x10))]
#[case::no_block_before(b"\x02\0\0\0\x02\0\0\0\0\0\0\0\x22", 5, Refusal::NoBlock)]
#[case::unknown_block(b"\x02\0\0\0\x02\0\0\0\0\0\0\0\x02\x03pc.", 5, Refusal::NoBlock)]
#[case::behind_the_end(b"\x02\0\0\0\x02\0\0\0\0\0\0\x10\x02\x06pc.rom", 5, Refusal::NoPage { block: "pc.rom".into(), page: 1 })]
#[case::filled(b"\x02\0\0\0\x02\0\0\0\0\0\0\0\x02\x06pc.rom\x55", 20, Refusal::Fill(0x55))]
#[case::no_footer(b"\x02\0\0\0\x02\0\0\0\0\0\0\0\x10\x02", 13, Refusal::Mark { found: 2, wanted: "the end of a section" })]
#[case::footer_of_another(b"\x02\0\0\0\x02\0\0\0\0\0\0\0\x10\x7e\0\0\0\x09", 14, Refusal::SectionId(9))]
#[case::pages_after_the_end(b"\x03\0\0\0\x02\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\x02", 18, Refusal::Mark { found: 2, wanted: "the devices' state" })]
fn a_section_of_another_kind_is_refused(#[case] section: &[u8], #[case] at: u64, #[case] what: Refusal) {
    let (stream, start) = with_section(section);
    assert_eq!(refusal(&stream), (start + at, what));
}

#[test]
fn b2_pages_of_different_cuts_are_refused() {
    let mut twice = Synthetic::stopped();
    twice.order.push(4);
    assert_eq!(refusal(&twice.bytes()).1, Refusal::PageTwice(4));
    let mut missing = Synthetic::background();
    missing.order.retain(|page| *page != 11 && *page != 2);
    assert_eq!(refusal(&missing.bytes()).1, Refusal::Missing { missing: 2, pages: 12 });
}

#[test]
fn a_stream_that_is_cut_off_anywhere_is_refused() {
    let stream = Synthetic { command: true, ..Synthetic::stopped() };
    let (bytes, pages) = (stream.bytes(), stream.bytes().len() - stream.devices.len());
    // all of them outside of pages, some within
    for length in (0..bytes.len()).filter(|at| *at > pages || at % 7 == 0 || *at < 200) {
        let (_, what) = refusal(&bytes[..length]);
        assert_eq!(what, if length > pages { Refusal::Devices } else { Refusal::Truncated }, "at {length}");
    }
    let longer = [&bytes[..], b"\0"].concat();
    assert_eq!(refusal(&longer), (pages as u64, Refusal::Devices));
}

/// Gives at most so many bytes at once, and counts them.
struct Dribble<R> {
    input: R,
    most: usize,
    given: u64,
}

impl<R: Read> Read for Dribble<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.most.min(buffer.len());
        let count = self.input.read(&mut buffer[..most])?;
        self.given += count as u64;
        Ok(count)
    }
}

#[rstest]
#[case(1)]
#[case(4097)]
fn pieces_may_be_of_any_size(#[case] most: usize) {
    let stream = Synthetic::background();
    let bytes = stream.bytes();
    let mut count = 0;
    let skeleton = read(Dribble { input: &bytes[..], most, given: 0 }, |_| {
        count += 1;
        Ok::<(), StreamError>(())
    });
    assert_eq!((skeleton.unwrap().pages(), count), (12, 12));
}

/// An input that cannot be read.
struct Fails;
impl Read for Fails {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the disk"))
    }
}

/// An error of whoever takes the pages.
#[derive(Debug)]
struct Full(u64);
impl From<StreamError> for Full {
    fn from(error: StreamError) -> Self {
        panic!("{error}")
    }
}

#[test]
fn errors_of_both_sides_end_the_reading() {
    let stream = Synthetic::stopped();
    let head = stream.head();
    let error = read((&head[..]).chain(Fails), |_| Ok::<(), StreamError>(())).unwrap_err();
    assert!(matches!(error, StreamError::Input { offset, .. } if offset == head.len() as u64), "{error}");
    let whole = stream.bytes();
    let before_devices = &whole[..=whole.len() - stream.devices.len()];
    let error = read(before_devices.chain(Fails), |_| Ok::<(), StreamError>(())).unwrap_err();
    assert!(matches!(error, StreamError::Input { offset, .. } if offset == before_devices.len() as u64), "{error}");

    let error = read(&whole[..], |found| if found.page == 3 { Err(Full(found.page)) } else { Ok(()) });
    assert_eq!(error.unwrap_err().0, 3);
}

#[test]
fn d3_a_stream_without_end_is_given_up() {
    let stream = Synthetic::stopped();
    let bytes = stream.bytes();
    let mut endless = Dribble { input: (&bytes[..]).chain(io::repeat(b'x')), most: usize::MAX, given: 0 };
    let error = read(&mut endless, |_| Ok::<(), StreamError>(())).unwrap_err();
    assert!(matches!(error, StreamError::Refused { what: Refusal::Devices, .. }), "{error}");
    assert!(endless.given <= (bytes.len() + MAX_DEVICES) as u64 + 1, "{} bytes were read", endless.given);
}

#[test]
fn a_skeleton_is_kept_and_checked_when_it_comes_back() {
    let (skeleton, _) = taken(&Synthetic { command: true, ..Synthetic::stopped() }.bytes()).unwrap();
    let value = serde_json::to_value(&skeleton).unwrap();
    assert_eq!(serde_json::from_value::<Skeleton>(value.clone()).unwrap(), skeleton);
    let refused = |path: &str, to: serde_json::Value| {
        let mut value = value.clone();
        *value.pointer_mut(path).unwrap() = to;
        serde_json::from_value::<Skeleton>(value).unwrap_err().to_string()
    };
    assert!(refused("/machine", "".into()).contains("a name"));
    assert!(refused("/blocks/0/name", "x".repeat(256).into()).contains("a name"));
    assert!(refused("/blocks/0/name", "pc.rom".into()).contains("twice"));
    assert!(refused("/blocks/0/length", 4097.into()).contains("whole pages"));
    assert!(refused("/blocks/0/length", u64::MAX.into()).contains("whole pages"));
    assert!(refused("/blocks", serde_json::json!([])).contains("whole pages"));
    assert!(refused("/devices", serde_json::json!([4, 0, 0])).contains("devices"));
}

#[test]
fn pages_are_given_once_each_and_in_order() {
    let (skeleton, pages) = taken(&Synthetic::stopped().bytes()).unwrap();
    let mut writer = Writer::new(&skeleton, Vec::new()).unwrap();
    for _ in 0..11 {
        writer.zero().unwrap();
    }
    assert!(matches!(writer.finish(), Err(WriteError::Pages { given: 11, pages: 12 })));
    let mut writer = Writer::new(&skeleton, Vec::new()).unwrap();
    for _ in 0..12 {
        writer.data(&content(1)).unwrap();
    }
    assert!(matches!(writer.zero(), Err(WriteError::Pages { given: 13, pages: 12 })));
    assert_eq!(pages.len(), 12);
}

#[rstest]
#[case::a_gap(&[(0, 4), (5, 7)], 4)]
#[case::twice(&[(0, 4), (3, 9)], 3)]
#[case::too_few(&[(0, 4), (4, 7)], 11)]
#[case::too_many(&[(0, 4), (4, 9)], 4)]
#[case::endless(&[(0, u64::MAX)], 0)]
#[case::none(&[], 0)]
fn runs_cover_every_page_once(#[case] runs: &[(u64, u64)], #[case] page: u64) {
    let (skeleton, _) = taken(&Synthetic::stopped().bytes()).unwrap();
    let runs = runs.iter().map(|(first, count)| Run { first: *first, count: *count, data: true });
    assert_eq!(Positions::new(&skeleton, runs).err(), Some(RunError { page, pages: 12 }));
}

#[test]
fn positions_in_a_large_guest_are_computed() {
    let (skeleton, _) = taken(&Synthetic::new(&[("pc.ram", 3)]).bytes()).unwrap();
    let mut value = serde_json::to_value(&skeleton).unwrap();
    value["blocks"] =
        serde_json::json!([{"name": "pc.ram", "length": 8_u64 << 30}, {"name": "pc.rom", "length": 4096}]);
    let skeleton: Skeleton = serde_json::from_value(value).unwrap();
    let half = 1 << 20;
    let run = |first, count, data| Run { first, count, data };
    let positions = Positions::new(&skeleton, [run(0, half, false), run(half, half, true), run(2 * half, 1, true)]);
    let positions = positions.unwrap();
    let begin = positions.offset(0);
    assert_eq!(positions.offset(half), begin + 7 + half * 9);
    assert_eq!(positions.offset(2 * half), begin + 7 + half * 9 + half * 4104);
    assert_eq!(positions.offset(2 * half + 1), begin + 14 + half * 9 + (half + 1) * 4104);
    assert_eq!(&positions.header(2 * half - 1).unwrap()[..], 0x1_ffff_f028_u64.to_be_bytes());
    assert_eq!(&positions.header(2 * half).unwrap()[..], b"\0\0\0\0\0\0\0\x08\x06pc.rom");
    assert!(positions.header(2 * half + 1).is_none());
}

prop_compose! {
    fn any_stream()(
        sizes in prop::collection::vec(1..9_u64, 1..5),
        command in any::<bool>(),
        stopped in any::<bool>(),
        in_part in 1..9_usize,
        section in any::<u32>(),
        state in prop::collection::vec(any::<u8>(), 0..40),
    )(
        kinds in prop::collection::vec(any::<bool>(), sizes.iter().sum::<u64>() as usize),
        order in Just((0..sizes.iter().sum()).collect::<Vec<u64>>()).prop_shuffle(),
        sizes in Just(sizes), command in Just(command), stopped in Just(stopped), in_part in Just(in_part),
        section in Just(section), state in Just(state),
    ) -> Synthetic {
        let names: Vec<String> = (0..sizes.len()).map(|block| format!("block-{block}")).collect();
        let blocks: Vec<(&str, u64)> = names.iter().map(String::as_str).zip(sizes).collect();
        let pages = kinds.iter().enumerate().map(|(page, data)| data.then(|| content(page as u64))).collect();
        let devices = devices(&state);
        Synthetic { command, stopped, in_part, section, pages, order, devices, ..Synthetic::new(&blocks) }
    }
}

/// What happens to a stream on its way.
#[derive(Clone, Debug)]
enum Harm {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Copy(Index, Index, usize),
    CutOff(Index),
}

fn harm() -> impl Strategy<Value = Harm> {
    let at = any::<Index>;
    prop_oneof![
        (at(), prop_oneof![0..17_u8, any::<u8>()]).prop_map(|(at, to)| Harm::Set(at, to)),
        (at(), 0..8_u8).prop_map(|(at, bit)| Harm::Flip(at, 1 << bit)),
        (at(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Harm::Insert(at, bytes)),
        (at(), 1..20_usize).prop_map(|(at, count)| Harm::Remove(at, count)),
        (at(), at(), 1..64_usize).prop_map(|(from, to, count)| Harm::Copy(from, to, count)),
        at().prop_map(Harm::CutOff),
    ]
}

impl Harm {
    /// Does it.
    fn apply(&self, bytes: &mut Vec<u8>) {
        let length = bytes.len();
        if length == 0 {
            return;
        }
        match self {
            Self::Set(at, to) => bytes[at.index(length)] = *to,
            Self::Flip(at, bit) => bytes[at.index(length)] ^= bit,
            Self::Insert(at, more) => drop(bytes.splice(at.index(length)..at.index(length), more.iter().copied())),
            Self::Remove(at, count) => drop(bytes.drain(at.index(length)..(at.index(length) + count).min(length))),
            Self::Copy(from, to, count) => {
                let from = from.index(length);
                let piece = bytes[from..(from + count).min(length)].to_vec();
                drop(bytes.splice(to.index(length)..to.index(length), piece));
            }
            Self::CutOff(at) => bytes.truncate(at.index(length)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_order_pages_come_in_they_are_written_in_theirs(stream in any_stream()) {
        let (_, pages) = taken(&stream.bytes()).unwrap();
        prop_assert!(pages == stream.pages);
        let canonical = assert_canonical(&stream.bytes()).unwrap();
        let count = stream.pages.len();
        let ordered = Synthetic { order: (0..count as u64).collect(), in_part: count, stopped: true, ..stream.clone() };
        // a command is only sent before an END section
        let ordered = Synthetic { command: stream.command && stream.stopped, ..ordered };
        prop_assert!(canonical == ordered.bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn d3_a_harmed_stream_is_refused_or_written_again_alike(
        command in any::<bool>(),
        stopped in any::<bool>(),
        harms in prop::collection::vec(harm(), 1..4),
    ) {
        // one page has content, so that most bytes are the stream's own
        let mut stream = Synthetic { command, stopped, in_part: 5, ..Synthetic::background() };
        stream.pages = vec![None; 12];
        stream.pages[6] = Some(content(6));
        let mut bytes = stream.bytes();
        let body = content(6);
        let page = bytes.windows(PAGE).position(|window| window == &body[..]).unwrap();
        // keep the page out of the way of harm, and bring it back
        let tail = bytes.split_off(page + PAGE);
        bytes.truncate(page);
        bytes.extend(tail);
        for harm in &harms {
            harm.apply(&mut bytes);
        }
        let place = page.min(bytes.len());
        bytes.splice(place..place, body.iter().copied());
        // either it is refused, or nothing is lost
        let _ = assert_canonical(&bytes);
    }

    #[test]
    fn d3_bytes_of_any_kind_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..300), head in 0..80_usize) {
        let whole = Synthetic::stopped().head();
        let mut stream = whole[..head.min(whole.len())].to_vec();
        stream.append(&mut bytes);
        prop_assert!(taken(&stream).is_err());
    }
}
