//! Images that the hold puts to its nodes: the agents' parts are played by writing their files.

use std::{collections::BTreeSet, os::unix::fs::MetadataExt as _};

use super::*;

const IMAGE: &str = "0123456789abcdef";
const PIECE: usize = 4 << 20;

/// Starts a hold that puts images.
fn feeding(nodes: &'static [&'static str], connector: &str) -> Option<Hold> {
    hold_that(nodes, 60, connector, false, Extras { puts_images: true, ..Extras::default() }).map(Hold::started)
}

fn piece(number: usize) -> Vec<u8> {
    let mut bytes = vec![0; PIECE];
    blake3::Hasher::new().update(&number.to_be_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

impl Hold {
    fn wants(&self, node: &str) {
        fs::create_dir(self.file(node, &format!("in-{IMAGE}"))).unwrap();
        self.agent_writes(node, &format!("want-{IMAGE}"), "");
    }

    fn wanted(&self) -> bool {
        self.file(self.nodes[0], &format!("wanted-{IMAGE}")).exists()
    }

    fn out(&self, number: usize) -> PathBuf {
        self.file(self.nodes[0], &format!("out-{IMAGE}/{number}"))
    }

    fn gives(&self, number: usize) {
        let new = self.file(self.nodes[0], "new");
        fs::write(&new, piece(number)).unwrap();
        fs::rename(new, self.out(number)).unwrap();
    }

    fn came(&self, node: &str, number: usize) -> Option<Vec<u8>> {
        fs::read(self.file(node, &format!("in-{IMAGE}/{number}"))).ok()
    }

    /// Writes pieces as the agent of the first node does, and takes them as the others do.
    fn spread(&self, pieces: usize, to: &[&str]) {
        for number in 0..pieces {
            if number >= 2 {
                assert!(within(15, || !self.out(number - 2).exists()), "piece {} is not through", number - 2);
            }
            self.gives(number);
            if number >= 2 {
                self.taken(number - 2, to);
            }
        }
        for number in pieces.saturating_sub(2)..pieces {
            assert!(within(15, || !self.out(number).exists()), "piece {number} is not through");
            self.taken(number, to);
        }
    }

    fn taken(&self, number: usize, to: &[&str]) {
        for node in to {
            assert!(self.came(node, number).is_some_and(|bytes| bytes == piece(number)), "{node} {number}");
            fs::remove_file(self.file(node, &format!("in-{IMAGE}/{number}"))).unwrap();
        }
    }

    /// Processes that name this hold's directory, or are below one that does.
    pub(super) fn processes(&self) -> BTreeSet<i32> {
        let mark = self.folder.path().to_str().unwrap();
        running(|words| words.contains(mark))
    }

    /// The TakTuk that puts.
    fn putting(&self) -> Option<i32> {
        let mark = self.folder.path().to_str().unwrap();
        running(|words| words.contains(mark) && words.contains("taktuk -s -d 2")).pop_first()
    }
}

fn running(which: impl Fn(&str) -> bool) -> BTreeSet<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let words = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        which(&String::from_utf8_lossy(&words).replace('\0', " "))
    };
    pids.filter(words).collect()
}

/// Most memory that a process has had, in MiB.
fn peak(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

#[test]
fn pieces_come_to_all_who_want_them_and_cost_the_root_little_memory() {
    let Some(hold) = feeding(&["a", "b", "c", "d", "e"], LOCAL) else { return };
    let said = |node: &str| fs::read_to_string(hold.file(node, "feed")).unwrap();
    assert_eq!(["a", "b", "e"].map(said), ["root\n", "node\n", "node\n"]);
    assert_eq!(hold.putting(), None);
    // "c" has the image
    for node in ["b", "d", "e"] {
        hold.wants(node);
    }
    assert!(within(60, || hold.wanted()), "{}", hold.log());
    assert!(!hold.file("b", &format!("want-{IMAGE}")).exists());
    fs::create_dir(hold.file("a", &format!("out-{IMAGE}"))).unwrap();
    // 64 MiB
    hold.spread(16, &["b", "d", "e"]);
    let peak = peak(hold.putting().unwrap());
    println!("the root of TakTuk had {peak} MiB at most");
    assert!(peak < 48, "{peak} MiB");
    assert!(!hold.file("c", &format!("in-{IMAGE}")).exists());
    let own = fs::metadata(hold.lease("a")).unwrap().uid();
    assert_eq!(own, rustix::process::geteuid().as_raw());
    // who gave it says that it is through, and it can be wanted again
    fs::remove_dir(hold.file("a", &format!("out-{IMAGE}"))).unwrap();
    fs::remove_file(hold.file("a", &format!("wanted-{IMAGE}"))).unwrap();
    assert!(within(30, || hold.putting().is_none()), "it stays for nothing");
    hold.wants("c");
    assert!(within(60, || hold.wanted()), "{}", hold.log());
    fs::create_dir(hold.file("a", &format!("out-{IMAGE}"))).unwrap();
    hold.spread(3, &["c"]);
}

#[test]
fn a_node_that_takes_no_more_does_not_hinder_the_others_and_what_nobody_takes_is_not_put() {
    let Some(hold) = feeding(&["a", "b", "c", "d", "e"], LOCAL) else { return };
    for node in ["b", "c", "d", "e"] {
        hold.wants(node);
    }
    assert!(within(60, || hold.wanted()), "{}", hold.log());
    fs::create_dir(hold.file("a", &format!("out-{IMAGE}"))).unwrap();
    hold.gives(0);
    assert!(within(10, || !hold.out(0).exists()));
    // one of them passes pieces on
    for node in ["b", "c"] {
        fs::remove_dir_all(hold.file(node, &format!("in-{IMAGE}"))).unwrap();
    }
    hold.gives(1);
    assert!(within(10, || !hold.out(1).exists()));
    for node in ["d", "e"] {
        assert!(hold.came(node, 1).is_some_and(|bytes| bytes == piece(1)), "{node}");
        fs::remove_dir_all(hold.file(node, &format!("in-{IMAGE}"))).unwrap();
    }
    assert!(hold.wanted());
    hold.gives(2);
    assert!(within(10, || !hold.wanted() && !hold.out(2).exists()));
}

#[test]
fn a3_nothing_is_left_of_a_hold_that_is_killed_while_it_puts() {
    let Some(mut hold) = feeding(&["a", "b", "c"], LOCAL) else { return };
    for node in ["b", "c"] {
        hold.wants(node);
    }
    assert!(within(60, || hold.wanted()), "{}", hold.log());
    fs::create_dir(hold.file("a", &format!("out-{IMAGE}"))).unwrap();
    for number in 0..2 {
        hold.gives(number);
    }
    assert!(hold.putting().is_some());
    hold.signal(Signal::KILL);
    assert_eq!(hold.ends(5), None);
    assert!(within(5, || hold.nodes.iter().all(|node| hold.free(node))), "the leases outlive the hold");
    assert!(within(10, || hold.processes().is_empty()), "{:?}", hold.processes());
    assert!(within(5, || !hold.wanted() && !hold.out(0).exists() && !hold.out(1).exists()));
    assert_eq!(temporary(&hold), 0);
}

fn temporary(hold: &Hold) -> usize {
    let names = fs::read_dir(hold.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("tmp.")).count()
}

#[test]
fn a_slow_put_delays_no_beat_and_no_notice_and_is_given_up() {
    // the second connection to "c" takes what it is given, and stands still for long
    let connector = format!(
        "#!/bin/sh\nhere=${{0%/*}}\nif [ \"$1\" = c ]; then if [ -e $here/second ]; then exec sleep 120; fi; \
         touch $here/second; fi\n{}",
        &LOCAL[10..]
    );
    let Some(hold) = feeding(&["a", "b", "c"], &connector) else { return };
    for node in ["b", "c"] {
        hold.wants(node);
    }
    assert!(within(10, || hold.putting().is_some()));
    let (mut last, mut changed, mut longest) = (hold.beat("b"), Instant::now(), Duration::ZERO);
    let mut look = || {
        let beat = hold.beat("b");
        if beat != last {
            longest = longest.max(changed.elapsed());
            (last, changed) = (beat, Instant::now());
        }
    };
    hold.signal(Signal::USR2);
    let noticed = within(3, || {
        look();
        hold.file("c", "notice").exists()
    });
    assert!(noticed);
    // as long as connecting may take, and more
    within(14, || {
        look();
        false
    });
    assert!(longest < Duration::from_secs(3), "{longest:?} between two beats");
    // "b" has what is put, all the same
    assert!(within(10, || hold.wanted()));
    fs::create_dir(hold.file("a", &format!("out-{IMAGE}"))).unwrap();
    hold.gives(0);
    assert!(within(10, || hold.came("b", 0).is_some_and(|bytes| bytes == piece(0))), "{}", hold.log());
    assert!(within(10, || !hold.out(0).exists()));
    assert!(!hold.free("c"));
}

#[test]
fn a_node_that_is_lost_ends_the_putting_and_nothing_else() {
    let noting = "#!/bin/sh\necho $$ >> \"${0%/*}/connection-$1\"; shift; unset TAKTUK_HOSTNAME TAKTUK_POSITION; \
        exec sh -c \"$*\"\n";
    let Some(hold) = feeding(&["a", "b", "c"], noting) else { return };
    for node in ["b", "c"] {
        hold.wants(node);
    }
    assert!(within(60, || hold.wanted()), "{}", hold.log());
    fs::create_dir(hold.file("a", &format!("out-{IMAGE}"))).unwrap();
    let pids = fs::read_to_string(hold.folder.path().join("connection-c")).unwrap();
    let second: i32 = pids.lines().nth(1).unwrap().parse().unwrap();
    kill_process(Pid::from_raw(second).unwrap(), Signal::STOP).unwrap();
    hold.gives(0);
    assert!(within(20, || !hold.wanted() && !hold.out(0).exists()), "it waits for a node that says nothing");
    assert!(within(5, || hold.putting().is_none()), "its TakTuk stays");
    let _ = kill_process(Pid::from_raw(second).unwrap(), Signal::KILL);
    for node in ["a", "b", "c"] {
        let before = hold.beat(node);
        assert!(within(5, || hold.beat(node) > before) && !hold.free(node), "{node}");
    }
    // and it is not tried again
    hold.agent_writes("b", &format!("want-{IMAGE}"), "");
    std::thread::sleep(Duration::from_secs(3));
    assert!(!hold.wanted() && hold.putting().is_none());
}

#[test]
fn all_are_told_once_that_the_first_node_gives_nothing() {
    let Some(hold) = feeding(&["a", "b", "c"], LOCAL) else { return };
    let said = |node: &str| fs::read_to_string(hold.file(node, "feed")).unwrap();
    // an agent that has one without the images does not speak for the first
    hold.agent_writes("b", "no-images", "");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(["a", "b", "c"].map(said), ["root\n", "node\n", "node\n"]);
    hold.agent_writes("a", "no-images", "");
    assert!(within(6, || ["a", "b", "c"].iter().all(|node| said(node) == "none\n")), "{}", hold.log());
    // what is wanted all the same raises nothing
    hold.wants("c");
    assert!(within(5, || !hold.file("c", &format!("want-{IMAGE}")).exists()));
    std::thread::sleep(Duration::from_secs(3));
    assert!(!hold.wanted() && hold.putting().is_none(), "{}", hold.log());
    for node in ["a", "b", "c"] {
        let before = hold.beat(node);
        assert!(within(5, || hold.beat(node) > before) && !hold.free(node), "{node}");
    }
}

#[test]
fn nothing_of_it_is_there_in_other_holds() {
    let Some(hold) = hold(&["a", "b"], 60, LOCAL) else { return };
    let hold = hold.started();
    hold.wants("b");
    std::thread::sleep(Duration::from_secs(3));
    assert!(!hold.wanted() && hold.putting().is_none() && !hold.file("a", "feed").exists());
    let text = fs::read_to_string(hold.folder.path().join("hold")).unwrap();
    assert!(!text.contains("broadcast put") && !text.contains("want-"), "{text}");
}
