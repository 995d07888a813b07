//! Two jobs beside each other: no address twice, and not one frame of the one is seen by the other.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use e2e::{
    Turn,
    job::{Counting, Job},
    testbed::until,
    world::{BOOT, GONE},
};
use vmdeploy::api::{BestEffortJob, JobPhase};

/// Prints the hardware addresses of all frames on the card of the job's network, its peer's and its own
/// among them. It calls to everybody and, past the routes, to the addresses in `$OTHERS`.
const LISTENER: &str = r#"cat > /tmp/listen.pl <<'END'
use strict; use Socket; $| = 1;
open(my $f, '<', '/sys/class/net/eth1/ifindex') or die; my $card = <$f>;
system('ip link set eth1 promisc on');
system("ip route add $_/32 dev eth1") for split ' ', ($ENV{OTHERS} // '');
socket(my $raw, 17, SOCK_RAW, 0x0300) or die "raw: $!";
bind($raw, pack('S n i S C C a8', 17, 3, $card, 0, 0, 0, '')) or die "bind: $!";
socket(my $udp, AF_INET, SOCK_DGRAM, 0) or die "udp: $!";
setsockopt($udp, SOL_SOCKET, SO_BROADCAST, 1); setsockopt($udp, SOL_SOCKET, 25, "eth1\0") or die "card: $!";
my (%heard, $calls);
while ($calls < $ENV{CALLS}) {
  $calls++;
  send($udp, "call $calls", 0, pack_sockaddr_in(7001, inet_aton($_)))
    for '255.255.255.255', split ' ', ($ENV{OTHERS} // '');
  my $until = time + 1;
  while (time < $until) {
    my $bits = ''; vec($bits, fileno $raw, 1) = 1;
    next unless select($bits, undef, undef, 0.2);
    recv($raw, my $frame, 2048, 0); my $from = join ':', unpack('(H2)6', substr $frame, 6, 6);
    print "heard $from\n" unless $heard{$from}++;
  }
  print "called $calls\n";
}
END
exec perl /tmp/listen.pl"#;

/// Seconds that each member listens.
const CALLS: u32 = 30;

fn object(name: &str, others: &[String]) -> Result<BestEffortJob> {
    let mut job = Counting { members: 2, ..Counting::default() }.object(name)?;
    job.spec.run.command = vec!["sh".into(), "-c".into(), LISTENER.into()];
    job.spec.outputs.clear();
    job.spec.run.env = [("CALLS", CALLS.to_string()), ("OTHERS", others.join(" "))]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
    Ok(job)
}

/// What the members of a job are known by: addresses, hardware addresses.
fn known(job: &BestEffortJob) -> (Vec<String>, BTreeSet<String>) {
    let members = job.status.iter().flat_map(|status| &status.members);
    members.map(|member| (member.address.clone(), member.mac.clone())).unzip()
}

/// Whom a member has heard.
fn heard(log: &str) -> BTreeSet<String> {
    log.lines().filter_map(|line| line.strip_prefix("heard ")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: e2e/test --each"]
async fn no_frame_of_one_job_is_seen_by_another() -> Result<()> {
    let Some(bed) = Turn::with(4).await? else { return Ok(()) };
    let namespace = bed.namespace("isolated").await?;
    let first = Job::create(&bed, &namespace, &object("quiet", &[])?).await?;
    let (addresses, macs) = known(&first.wait_phase(JobPhase::Running, BOOT).await?);
    let second = Job::create(&bed, &namespace, &object("curious", &addresses)?).await?;
    let (its_addresses, its_macs) = known(&second.wait_phase(JobPhase::Running, BOOT).await?);
    ensure!(macs.len() == 2 && its_macs.len() == 2 && macs.is_disjoint(&its_macs), "{macs:?} {its_macs:?}");
    ensure!(!addresses.iter().any(|address| its_addresses.contains(address)), "{addresses:?} {its_addresses:?}");
    // while both run
    for (job, own) in [(&first, &macs), (&second, &its_macs)] {
        for member in 0..2 {
            let all = until("a peer to be heard", Duration::from_secs(60), async || {
                let all = heard(&job.logs(member).await?);
                Ok(all.is_superset(own).then_some(all))
            });
            let all = all.await?;
            ensure!(all.is_subset(own), "member {member} of {own:?} heard {all:?}");
        }
    }
    for (job, own) in [(&first, &macs), (&second, &its_macs)] {
        job.wait_phase(JobPhase::Succeeded, BOOT).await?;
        for member in 0..2 {
            let log = job.logs(member).await?;
            ensure!(heard(&log) == *own, "member {member} of {own:?} heard {:?}", heard(&log));
            ensure!(log.contains(&format!("called {CALLS}\n")), "member {member} did not listen to its end");
        }
        job.delete(GONE).await?;
    }
    Ok(())
}
