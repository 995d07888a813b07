//! Holds that start something on their nodes before the holders: they knock at nodes that are deployed, give them their
//! tokens, and start launchers.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use rustix::process::Signal;
use sha2::{Digest as _, Sha256};

use super::{Extras, Hold, JOB, Launch, hold_of, hold_that, within};
use crate::driver::{
    cluster::joins::BootstrapToken,
    launcher::LaunchKey,
    oar::hold::{NO_AGENT, NO_LAUNCH_KEY, NO_LAUNCHER},
};

/// Until its agent has come, a node that is deployed first is another system, and then none at all.
const DEPLOYED: &str = "#!/bin/sh\nhere=${0%/*}; node=$1; shift\n\
    if [ \"${1%% *}\" = test ]; then echo $node >> $here/knocks; exec test -f $here/$node/3f2b8a10-7/nonce; fi\n\
    [ -e $here/$node ] || exit 255\nunset TAKTUK_HOSTNAME TAKTUK_POSITION; exec sh -c \"$*\"\n";

#[test]
fn a12_a_hold_knocks_at_nodes_that_are_deployed_until_their_agents_have_come() {
    // more than TakTuk reaches at a time, and all from the frontend
    let nodes: &[&str] = &["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    let Some(mut hold) = hold_of(nodes, 120, DEPLOYED, true) else { return };
    let knocks = |hold: &Hold| fs::read_to_string(hold.folder.path().join("knocks")).unwrap_or_default();
    // longer than two rounds in which no node is heard
    let both = |hold: &Hold| nodes.iter().all(|node| knocks(hold).lines().filter(|line| line == node).count() > 11);
    assert!(within(50, || both(&hold)), "{} {}", knocks(&hold), hold.log());
    assert_eq!(hold.child.try_wait().unwrap(), None, "{}", hold.log());
    hold.signal(Signal::USR2);
    let hold = &mut hold.started();
    assert!(within(5, || hold.file("l", "notice").exists()), "a notice is not lost");
    hold.signal(Signal::KILL);
    assert!(within(10, || nodes.iter().all(|node| hold.free(node))), "the leases outlive the hold");
}

#[test]
fn a12_a_hold_that_is_killed_knocks_no_more_and_one_without_agents_ends() {
    let Some(mut hold) = hold_of(&["a"], 120, DEPLOYED, true) else { return };
    let knocks =
        |hold: &Hold| fs::read_to_string(hold.folder.path().join("knocks")).unwrap_or_default().lines().count();
    assert!(within(60, || knocks(&hold) > 0), "{}", hold.log());
    hold.signal(Signal::KILL);
    assert_eq!(hold.ends(5), None);
    assert!(within(10, || hold.processes().is_empty()), "{:?}", hold.processes());
    let before = knocks(&hold);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(knocks(&hold), before);

    let Some(mut hold) = hold_of(&["a", "b"], 6, DEPLOYED, true) else { return };
    hold.agent_comes("a");
    assert_eq!(hold.ends(20), Some(NO_AGENT), "{}", hold.log());
}

/// Whether a process has this text among its arguments.
fn is_argument(text: &str) -> bool {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let mut lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.any(|line| String::from_utf8_lossy(&line).contains(text))
}

/// A node that is deployed first, whose system of now, if it has one, may know what a token is for.
const JOINING: &str = "#!/bin/sh\nhere=${0%/*}; node=$1; shift\n\
    echo \"$*\" >> $here/arguments\n\
    case \"$1\" in test*|umask*) echo $node >> $here/knocks\n\
    cat > $here/heard-$node.new; cat $here/heard-$node.new >> $here/heard-$node\n\
    exec sh -c \"$(echo \"$*\" | sed \"s|$here/joins|$here/joins-$node|g; s|$here/3f2b|$here/$node/3f2b|\")\" < $here/heard-$node.new ;; esac\n\
    [ -e $here/$node ] || exit 255\nunset TAKTUK_HOSTNAME TAKTUK_POSITION; exec sh -c \"$*\"\n";

#[test]
fn a12_each_node_that_is_deployed_gets_a_token_of_its_own_once_it_knows_what_that_is_for() {
    let launch = Launch { text: "", key: Some(KEY), mode: 0o600 };
    let Some(hold) = hold_that(&["a", "b"], 180, JOINING, true, launching(launch)) else { return };
    let directory = |node: &str| hold.folder.path().join(format!("joins-{node}"));
    let knocked = || fs::read_to_string(hold.folder.path().join("knocks")).unwrap_or_default().lines().count() > 3;
    assert!(within(60, knocked), "{}", hold.log());
    let token = |node: &str| fs::read_to_string(directory(node).join("token")).ok();
    assert_eq!((token("a"), token("b")), (None, None), "the system before does not get it");
    let heard = |node: &str| fs::read_to_string(hold.folder.path().join(format!("heard-{node}"))).unwrap();
    assert_eq!((heard("a").as_str(), heard("b").as_str()), ("", ""), "it is told to whoever answers");
    fs::create_dir(directory("a")).unwrap();
    fs::create_dir(directory("b")).unwrap();
    assert!(within(60, || token("a").is_some() && token("b").is_some()), "{}", hold.log());
    let key = LaunchKey::read(KEY).unwrap().of_slot(&JOB.into());
    for node in ["a", "b"] {
        let expected = BootstrapToken::of_node(&format!("3f2b8a10-{JOB}"), &key, node);
        assert_eq!(token(node).unwrap(), format!("{}\n", expected.text()));
        assert_eq!(fs::metadata(directory(node).join("token")).unwrap().permissions().mode() & 0o777, 0o600);
        let arguments = fs::read_to_string(hold.folder.path().join("arguments")).unwrap();
        assert!(arguments.contains("umask") && !arguments.contains(&expected.secret), "others see it: {arguments}");
    }
    assert!(!is_argument(KEY) && !is_argument(&format!("{:x}", Sha256::digest(format!("{KEY} {JOB}")))));
    // once is enough
    let told = heard("a");
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(heard("a"), told);
    hold.signal(Signal::KILL);
}

#[test]
fn without_a_key_no_node_is_waited_for_that_is_to_join_by_it() {
    let launch = Launch { text: "", key: None, mode: 0o600 };
    let Some(mut hold) = hold_that(&["a"], 60, JOINING, true, launching(launch)) else { return };
    assert_eq!(hold.ends(20), Some(NO_LAUNCH_KEY), "{}", hold.log());
}

/// Writes down what it is told, for as long as it is told something.
const LAUNCHER: &str = "#!/bin/sh\nhere=${0%/*}/launcher-$TAKTUK_RANK; echo \"$*\" > $here\n\
    while read -r line; do echo $line >> $here; done; echo end >> $here\n";
/// Leaves launchers the rank, by which they are told apart.
const RANKED: &str = "#!/bin/sh\nshift; unset TAKTUK_HOSTNAME TAKTUK_POSITION; exec sh -c \"$*\"\n";
const KEY: &str = "0123456789abcdef0123456789abcdef";

fn launching(launch: Launch) -> Extras {
    Extras { launch: Some(launch), ..Extras::default() }
}

#[test]
fn a3_launchers_get_the_key_first_and_end_with_the_hold() {
    let launch = Launch { text: LAUNCHER, key: Some(KEY), mode: 0o600 };
    let Some(hold) = hold_that(&["a", "b"], 60, RANKED, false, launching(launch)) else { return };
    let hold = hold.started();
    let said = |rank: u32| fs::read_to_string(hold.folder.path().join(format!("launcher-{rank}"))).unwrap_or_default();
    for rank in [1, 2] {
        let of_slot = format!("{:x}", Sha256::digest(format!("{KEY} {JOB}")));
        let expected = format!("launcher --port 1\n{of_slot}\n");
        assert!(within(10, || said(rank).starts_with(&expected) && said(rank).lines().count() > 4), "{}", said(rank));
    }
    let of_slot = format!("{:x}", Sha256::digest(format!("{KEY} {JOB}")));
    assert!(!is_argument(KEY) && !is_argument(&of_slot), "other users see the key");
    assert!(!hold.free("a") && !hold.free("b"), "the key is no beat of a holder's");
    hold.signal(Signal::KILL);
    assert!(within(10, || [1, 2].iter().all(|rank| said(*rank).ends_with("end\n"))), "{}{}", said(1), said(2));
}

#[test]
fn without_a_key_and_without_its_launchers_a_hold_ends() {
    for key in [None, Some("a key; with more"), Some(&KEY[1..])] {
        let launch = Launch { text: LAUNCHER, key, mode: 0o600 };
        let Some(mut hold) = hold_that(&["a", "b"], 60, RANKED, false, launching(launch)) else { return };
        assert_eq!(hold.ends(20), Some(NO_LAUNCH_KEY), "{}", hold.log());
        assert!(hold.log().contains("there is no launch key in"), "{}", hold.log());
    }
    let launch = Launch { text: LAUNCHER, key: Some(KEY), mode: 0o644 };
    let Some(mut hold) = hold_that(&["a"], 60, RANKED, false, launching(launch)) else { return };
    assert_eq!(hold.ends(20), Some(NO_LAUNCH_KEY), "{}", hold.log());
    assert!(hold.log().contains("others may read"), "{}", hold.log());
    let launch = Launch { text: "#!/bin/sh\nread -r line; echo it cannot >&2; exit 1\n", key: Some(KEY), mode: 0o600 };
    let Some(mut hold) = hold_that(&["a", "b"], 60, RANKED, false, launching(launch)) else { return };
    assert_eq!(hold.ends(20), Some(NO_LAUNCHER), "{}", hold.log());
    assert!(hold.log().contains("has ended"), "{}", hold.log());
    let words = fs::read_to_string(hold.folder.path().join(".vmdeploy-launcher.log")).unwrap();
    assert!(words.contains("OAR job 7") && words.contains("it cannot"), "{words}");
}
