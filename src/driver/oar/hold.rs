//! The hold: the script that an OAR job runs, and the contract of the lease between it and the agents.
//!
//! This module renders the script and knows its exit codes; it runs nothing. The text may be read by
//! every user of the site, so no secret goes into it.
//!
//! # The file
//!
//! OAR's API keeps the script in a file of the user's, which the jobs of an array share. Each of them leaves a marker
//! beside it when it begins, and the last one removes all of it. Markers stay when their jobs end, for they are
//! counted. An array of which some jobs never run leaves its file and markers: a later hold removes them. A file
//! without a marker is of jobs that may wait in the queue still, however old it is.
//!
//! # The lease
//!
//! For each slot and node there is one directory, `<lease root>/<uid8>-<slot id>` (see
//! [`crate::names::lease_directory`]), on the node's own disk. The **agent makes it**: owner is the
//! site's user, mode 0700. It holds these files:
//!
//! | file | written by | content |
//! |---|---|---|
//! | `agent` | agent, by a rename, readable by the user | its nonce; it has `LOCK_EX` on it for as long as it lives |
//! | `nonce` | agent, by a rename, readable by the user | one line `[A-Za-z0-9]+`, new for each start of an agent |
//! | `lock` | holder, see below | one line `<slot id> <nonce> <beat>`; the beat is a decimal number of ten digits |
//! | `notice` | holder | exists once the scheduler has signalled the hold; the content says nothing |
//! | `release` | agent, by a rename | one line: `done`, `saved` or `lost` |
//!
//! **What the holder does.** It waits, a bounded time, for the directory (owned by the user, no link)
//! and its `nonce`. If a `lock` file exists already it ends: a lease that was lost is never taken up
//! again. It makes `lock` with `O_EXCL`, takes `LOCK_EX` with `flock`, and only then writes the line.
//! From then on, at each beat (every 2 s) it reads `nonce` again and rewrites the line in place. It
//! ends, and the lock drops, at the first of: its connection to the hold is cut, no beat for 20 s,
//! the OAR job is killed, a `release` file. No process but the holder itself has the lock's descriptor.
//!
//! **A hold that is forgotten.** OAR cannot end the processes of a job on a node that it does not reach at the time. So
//! holders say in each round whether an agent has its lock on `agent`, and once none has had it on any node for longer
//! than the operator ever lets a slot wait for its next incarnation ([`HoldScript::forgotten`]) the hold ends.
//!
//! **What the agent does.** It opens `lock` with `O_NOFOLLOW` and checks that it is a regular file of the site's user.
//! It is armed when the line names its slot and its own nonce, which the holder can only have read at a beat since this
//! agent came, and a non-blocking `LOCK_SH` is then refused; it must not try the lock before the line is there, or it
//! would hinder the holder. Afterwards it waits for `LOCK_SH` and reads the beat; the lease is lost when it gets the
//! lock or the beat stands still for 15 s of its own monotonic clock. A line that is read half written is read again.
//!
//! **An agent that follows another on the same slot** (a new incarnation, the slot was kept) finds
//! the directory, checks owner and mode, keeps `lock`, and replaces `nonce`; its nonce appears in the
//! lock's line at the next beat. So the directory is removed only after `release` or a lost lease.
//! What a node's crash leaves is removed by a later agent there: nobody locks it and it was not written to for a day.
//!
//! **Nodes that are deployed first.** OAR runs the hold of a deploy job on its frontend, and ends nothing on the nodes.
//! There the connector logs in as an administrator of the system that was put on the node, who then is the site's user
//! of the text above. It knocks at each node until an agent has written its `nonce`; what is on the node before is
//! another system. From then on all is the same: a hold that is killed cuts its connections, and the holders end. A
//! hold's end proves no death there: only an agent's word, its container's end, or its silence does. Where the site
//! says so a system that has the token's directory and no token in it is given the one by which the node may join the
//! cluster ([`crate::driver::cluster::joins::BootstrapToken`]), with mode 0600.
//!
//! **Nodes without a kubelet.** There the hold starts a launcher on each node, through the same TakTuk and before the
//! holders ([`crate::launcher`]): it gets the slot's launch key as the first line of its input, which nobody else sees,
//! and then what the holders get. A launcher that ends takes its agents along: its node then counts as lost, and the
//! hold leaves the last words of that launcher in a file of the site's user.
//!
//! **Leaving.** `release` is written when the VM and its files are gone. The holder of that node then
//! drops its lock, which the agent expects. When all holders have ended the hold ends, with
//! [`DONE`] if all said `done`, with [`SAVED`] if some said `saved`. An agent that gave its lease up
//! because of a still beat writes `lost`, so that a holder which comes back gives the node back.
//! Whether a slot is wanted back can be read from `notice`; every node of the job gets it.
//!
//! # Images by TakTuk
//!
//! Of a job with `distribution: TakTuk` the hold also puts images to its nodes, by a TakTuk of its own (arity 2,
//! `put.sh`) in a process that ends with it. It believes no agent and no agent believes it: pieces are compared with
//! their names by who takes them, and whoever misses anything for some seconds has the rest as with `Broadcast`. An
//! image is called by the first 16 hexadecimal digits of its digest here, `<image>`; it is put in pieces of 4 MiB,
//! numbered from 0.
//!
//! | name | written by | content |
//! |---|---|---|
//! | `feed` | holder, before `lock` | `root` on the job's first node, where the hold runs, else `node`; later `none` |
//! | `no-images` | agent of the first node that has no guest, so no images, as a master on its own node | nothing |
//! | `want-<image>` | agent of another node; removed by the holder, who tells the hold | nothing |
//! | `in-<image>/` | agent of another node, before `want-<image>` and until it takes no more | `<n>`, made by TakTuk |
//! | `wanted-<image>` | hold, on the first node; removed by either side once it has no part in it any more | nothing |
//! | `out-<image>/` | agent of the first node, as long as the image is wanted | `<n>`, by a rename, two at most |
//!
//! Where the hold puts nothing there is no `feed`; it is `none` on all nodes once nothing is to come.
//!
//! The hold waits some seconds for others to want an image as well, and then for `<n>` in turn, from 0. It removes each
//! once every node has answered for it, as an agent does with those that it has taken. A node without `in-<image>/` has
//! refused it, which is no harm; a piece that all refuse ends the image. One that is not answered for, a connection
//! that is lost or a piece that cannot be read ends all of it for as long as the hold lives. The root of a tree has two
//! pieces for two children in its memory, however large the image is.

use std::time::Duration;

use crate::driver::launcher::LEAST_KEY;

/// Exit code of the hold: every agent said `done`.
pub const DONE: i32 = 43;
/// Exit code of the hold: every agent said `saved` or `done`.
pub const SAVED: i32 = 44;
/// Exit code of the hold: on some node no agent came in time.
pub const NO_AGENT: i32 = 45;
/// Exit code of the hold: a node could not be reached or was lost, and the others have left.
pub const LOST_HOLDER: i32 = 46;
/// Exit code of the hold: it could not start, or was told to end.
pub const FAILED: i32 = 47;
/// Exit code of the hold: what was to start agents on a node could not, or has ended.
pub const NO_LAUNCHER: i32 = 48;
/// Exit code of the hold: the site's user has no key for those.
pub const NO_LAUNCH_KEY: i32 = 49;
/// In the home directory of the site's user: what launchers that ended have said last.
const LAUNCHER_LOG: &str = ".vmdeploy-launcher.log";

/// What the exit code of a hold that ended by itself means, for people; none if it was killed.
pub(super) fn said(code: Option<i32>) -> String {
    match code {
        Some(NO_AGENT) => "no agent came to a node of it in time (sites.*.agentWait): the agents' pods in the \
                           operator's namespace say why"
            .into(),
        Some(LOST_HOLDER) => "a node of it could not be reached, or was lost: sites.*.connector must lead from the \
                              slot's first node to the others (sites.*.kadeploy.connector from the frontend to \
                              deployed ones), and TakTuk and perl must be there; or no agent came back to any of its \
                              nodes for many minutes"
            .into(),
        Some(NO_LAUNCHER) => format!(
            "the launcher on a node of it could not start, or has ended: {LAUNCHER_LOG} in the home directory of the \
             site's user says why"
        ),
        Some(NO_LAUNCH_KEY) => format!(
            "the site's user has no launch key: put {LEAST_KEY} or more letters and digits (openssl rand -hex 32) into \
             the file that keyFile of the site's configuration names, mode 0600, and the same into the Secret"
        ),
        Some(FAILED) => "its hold could not start, or was told to end".into(),
        Some(code) => format!("its hold ended with code {code}"),
        None => "its hold was killed".into(),
    }
}

/// What a connector may hold besides letters and digits.
pub const CONNECTOR: &str = "._/- =";
/// A node that answers is reached within this time.
const CONNECT: Duration = Duration::from_secs(30);
/// The same for images, which need not come this way.
const PUT_CONNECT: Duration = Duration::from_secs(10);
/// Time between two looks whether an agent has come to a node that is deployed first.
const KNOCK: Duration = Duration::from_secs(3);

/// Exit code of a knock at a system that lacks its token.
const NO_TOKEN: i32 = 9;

/// Rounds of this many beats: a node not heard of in a whole one is lost.
const ROUND: u32 = 15;
/// Jobs of an array that has begun are waited for no longer than this, and what their agents take.
const ARRAY_OVER: Duration = Duration::from_secs(24 * 3600);
/// Children of a node in the tree by which images are put.
const ARITY: u32 = 2;
/// What puts images counts time in these.
const TICK: Duration = Duration::from_millis(200);
/// Once a node wants an image, others have so long to want it as well.
const GATHER: Duration = Duration::from_secs(3);
/// Nothing may happen for so long while pieces are on their way.
const PUT_LIMIT: Duration = Duration::from_secs(10);
/// When nothing is to be put, its TakTuk stays for so long.
const PUT_IDLE: Duration = Duration::from_secs(20);
/// What holders and launchers complain of reaches the hold as lines of its own.
const ERRORS: &str = r#"'error="L|$host|$line\n"'"#;
/// What a holder does before it takes the lock: it tells the agent whether the hold runs on its node.
const MARK: &str =
    r#"if test "$TAKTUK_HOSTNAME" = '"$first"'; then echo root > $d/feed; else echo node > $d/feed; fi;"#;
/// What it does at each beat: it tells the agent once that nothing comes, and says once what that one wants. The lock's
/// descriptor, 9, is nobody else's.
const WANTS: &str = r#"if test -n "$none"; then none=; echo none > $d/feed; fi;
  for w in $d/want-*; do if test -e "$w"; then rm -f "$w" 9>&-; echo "$w"; fi; done;"#;
/// What the hold does with that: it passes it on to what puts images, unless there are none.
const ASK: &str = r#"case $told$code in 1*) ;; *want-*) echo "W|${code##*want-}|$node" >&5 ;; esac"#;
/// What the hold does at each beat: it tells all nodes, once, that the agent of its own gives nothing.
const TELL: &str = r#"if [ -z "$told" ] && [ -e "$lease/no-images" ]; then
      told=1
      echo 'broadcast input line [ none ]' >&3
    fi"#;

/// Time without a beat after which a holder ends, and what else the hold has started; above the agents' own limit.
pub const SILENCE: Duration = Duration::from_secs(20);

/// What differs between two holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldScript<'a> {
    /// Root of the leases on the nodes.
    pub lease_root: &'a str,
    /// Name of the slot's directory without the job's id, which the hold appends.
    pub lease_prefix: &'a str,
    /// Command that runs a command on another node of the job, as TakTuk calls it.
    pub connector: &'a str,
    /// Time between two beats.
    pub beat: Duration,
    /// How long the agents may take to appear.
    pub agent_wait: Duration,
    /// How long all its nodes may be without an agent later.
    pub forgotten: Duration,
    /// Whether the nodes are deployed first: the hold then runs on the frontend and knocks until the agents are there.
    pub deployed: bool,
    /// What starts the agents, where no kubelet does.
    pub launcher: Option<LauncherScript<'a>>,
    /// File of the site's user with the launch key, where it is needed; below the home directory, unless it begins with
    /// a slash.
    pub key_file: Option<&'a str>,
    /// Where on a deployed node the token is put by which it joins the cluster, if one is.
    pub token_file: Option<&'a str>,
    /// So many jobs run this one file.
    pub holds: u32,
    /// Whether it puts images to the nodes; not where these are deployed first.
    pub puts_images: bool,
}

/// How a hold starts the launchers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LauncherScript<'a> {
    /// Runs vmdeploy as root on a node.
    pub command: &'a str,
    /// Port of the launchers.
    pub port: u16,
}

/// A value that may not stand in the script.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what} {value:?} may hold only letters, digits{}", besides(.allowed))]
pub struct UnsafeText {
    /// What it is.
    pub what: &'static str,
    /// The text.
    pub value: String,
    /// What is allowed, besides letters and digits.
    pub allowed: &'static str,
}

/// What is allowed besides letters and digits, in words.
fn besides(allowed: &str) -> String {
    let blanks = if allowed.contains(' ') { ", blanks" } else { "" };
    format!("{blanks} and {}", allowed.replace(' ', ""))
}

/// Checks that a text is made of letters, digits and `allowed`; OAR, TakTuk and three shells read it.
pub fn check_text(what: &'static str, value: &str, allowed: &'static str) -> Result<(), UnsafeText> {
    if !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric() || allowed.contains(c)) {
        Ok(())
    } else {
        Err(UnsafeText { what, value: value.into(), allowed })
    }
}

impl HoldScript<'_> {
    /// The script.
    pub fn render(&self) -> Result<String, UnsafeText> {
        check_text("lease root", self.lease_root, "._/-")?;
        check_text("lease prefix", self.lease_prefix, "._-")?;
        check_text("connector", self.connector, CONNECTOR)?;
        let launcher = match &self.launcher {
            None => String::new(),
            Some(LauncherScript { command, port }) => {
                check_text("command", command, CONNECTOR)?;
                format!("{command} launcher --port {port}")
            }
        };
        for (what, text) in [("keyFile", self.key_file), ("tokenFile", self.token_file)] {
            text.map_or(Ok(()), |text| check_text(what, text, "._/-"))?;
        }
        let token = self.token_file.unwrap_or_default();
        let beat = self.beat.as_secs().max(1);
        let connect = if self.deployed { self.agent_wait } else { CONNECT };
        let puts_images = |text: &str| if self.puts_images && !self.deployed { text.to_owned() } else { String::new() };
        let ticks = |time: Duration| (time.as_millis() / TICK.as_millis()).to_string();
        let values = [
            ("@MARK@", puts_images(MARK)),
            ("@WANTS@", puts_images(WANTS)),
            ("@ASK@", puts_images(ASK)),
            ("@TELL@", puts_images(TELL)),
            ("@PUT_IMAGES@", puts_images(include_str!("put.sh"))),
            ("@ARITY@", ARITY.to_string()),
            ("@PUT_CONNECT@", PUT_CONNECT.as_secs().to_string()),
            ("@TICK@", format!("{:.1}", TICK.as_secs_f64())),
            ("@GATHER@", ticks(GATHER)),
            ("@PUT_LIMIT@", ticks(PUT_LIMIT)),
            ("@PUT_IDLE@", ticks(PUT_IDLE)),
            ("@LEASE@", format!("{}/{}", self.lease_root.trim_end_matches('/'), self.lease_prefix)),
            ("@CONNECTOR@", self.connector.into()),
            ("@BEAT@", beat.to_string()),
            ("@WAIT_BEATS@", (self.agent_wait.as_secs() / beat).to_string()),
            ("@FORGOTTEN@", (self.forgotten.as_secs() / beat).to_string()),
            ("@CONNECT@", connect.as_secs().to_string()),
            ("@DEPLOYED@", if self.deployed { "1".into() } else { String::new() }),
            ("@KNOCKS@", (connect.as_secs() / KNOCK.as_secs()).max(1).to_string()),
            ("@KNOCK@", KNOCK.as_secs().to_string()),
            ("@SILENCE@", SILENCE.as_secs().to_string()),
            ("@ROUND@", ROUND.to_string()),
            ("@DONE@", DONE.to_string()),
            ("@SAVED@", SAVED.to_string()),
            ("@NO_AGENT@", NO_AGENT.to_string()),
            ("@LOST_HOLDER@", LOST_HOLDER.to_string()),
            ("@NO_LAUNCHER@", NO_LAUNCHER.to_string()),
            ("@LAUNCHER@", launcher),
            ("@KEY@", self.key_file.unwrap_or_default().into()),
            ("@TOKEN@", token.into()),
            ("@NO_TOKEN@", NO_TOKEN.to_string()),
            ("@TOKEN_DIRECTORY@", token.rsplit_once('/').map_or("", |(directory, _)| directory).into()),
            ("@NO_LAUNCH_KEY@", NO_LAUNCH_KEY.to_string()),
            ("@LEAST_KEY@", LEAST_KEY.to_string()),
            ("@LAUNCHER_LOG@", LAUNCHER_LOG.into()),
            ("@ERROR@", if self.launcher.is_some() { ERRORS.into() } else { "error".into() }),
            ("@HOLDS@", self.holds.to_string()),
            ("@STALE@", ((ARRAY_OVER + self.agent_wait).as_secs() / 60).to_string()),
            ("@FAILED@", FAILED.to_string()),
        ];
        Ok(values.iter().fold(include_str!("hold.sh").to_owned(), |text, (mark, value)| text.replace(mark, value)))
    }
}
