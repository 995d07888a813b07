//! The way into a running job's guests: commands and connections, as their user makes them.

use std::{
    io::{Read as _, Write as _},
    process::{Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    Turn,
    job::{Counting, Job},
    testbed::until,
    world::{BOOT, ends_right, gone},
};

/// Answers each line in capitals, and says goodbye when no more come.
pub(crate) const LISTENER: &str = r#"perl -e 'use IO::Socket::INET;
my $l = IO::Socket::INET->new(LocalPort => 7100, Listen => 1, ReuseAddr => 1) or die "listen: $!";
while (my $c = $l->accept) { while (my $line = <$c>) { print $c uc $line; } print $c "bye\n"; close $c; }
' > /dev/null 2>&1 & true"#;

pub(crate) struct User {
    pub(crate) namespace: String,
}

impl User {
    /// `vmdeploy SUBCOMMAND -n NAMESPACE ARGUMENTS`.
    fn vmdeploy(&self, subcommand: &str, arguments: &[&str]) -> Command {
        let program = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.parent()?.join("vmdeploy")));
        let mut command = Command::new(program.unwrap_or_else(|| "vmdeploy".into()));
        command.args([subcommand, "-n", &self.namespace]).args(arguments);
        command
    }

    pub(crate) fn exec(&self, command: &str) -> Result<Output> {
        Ok(self.vmdeploy("exec", &["count", "--", "sh", "-c", command]).output()?)
    }

    /// What comes back from a port of the guest for what is sent there.
    fn asks(&self, port: &str, question: &str) -> Result<Output> {
        let mut connect = self.vmdeploy("connect", &["count/0", port]);
        let mut connect = connect.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        // standard input ends with this statement, long before all has come back
        connect.stdin.take().context("no input")?.write_all(question.as_bytes())?;
        let mut output = Output { status: ExitStatus::default(), stdout: Vec::new(), stderr: Vec::new() };
        connect.stdout.take().context("no output")?.read_to_end(&mut output.stdout)?;
        connect.stderr.take().context("no output")?.read_to_end(&mut output.stderr)?;
        output.status = connect.wait()?;
        Ok(output)
    }
}

/// Shows what is typed at the console.
const SHOWN: &str = "setsid sh -c 'read line; echo shown $line' < /dev/ttyS0 > /dev/ttyS0 2>&1 & true";

impl User {
    /// What the console shows for a line that is typed there, until the key that leaves.
    fn console(&self, line: &str) -> Result<String> {
        let mut console = self.vmdeploy("console", &["count"]);
        let mut console = console.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let (mut keys, mut screen) =
            (console.stdin.take().context("no input")?, console.stdout.take().context("no output")?);
        keys.write_all(line.as_bytes())?;
        let (mut shown, mut piece) = (String::new(), [0; 256]);
        while !shown.contains("shown ") || !shown.ends_with('\n') {
            let count = screen.read(&mut piece)?;
            ensure!(count > 0, "the console ended after {shown:?}");
            shown.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
        keys.write_all(b"\x1d")?;
        ensure!(console.wait()?.success(), "the console did not end well");
        Ok(shown)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_runs_commands_in_a_guest_and_reaches_its_ports() -> Result<()> {
    let Some(bed) = Turn::with(1).await? else { return Ok(()) };
    let namespace = bed.namespace("access").await?;
    let counting = Counting { ticks: 350, ..Counting::default() };
    let job = Job::create(&bed, &namespace, &counting.object("count")?).await?;
    let user = User { namespace };
    let mut suspended = counting.object("idle")?;
    suspended.spec.suspend = true;
    let idle = Job::create(&bed, &user.namespace, &suspended).await?;
    // the operator may just have been started, and the API server looks for it now and then
    until("a word of a job without guests", Duration::from_secs(60), async || {
        let refused = user.vmdeploy("exec", &["idle", "--", "true"]).output()?;
        ensure!(!refused.status.success(), "{refused:?}");
        Ok(String::from_utf8_lossy(&refused.stderr).contains("no guests").then_some(()))
    })
    .await?;
    gone(&bed, &idle).await?;
    job.wait_tick(3, 1, BOOT).await?;

    let said = user.exec("hostname; echo bad >&2; exit 3")?;
    ensure!(said.status.code() == Some(3), "{said:?}");
    ensure!(said.stdout == b"count-0\n" && said.stderr == b"bad\n", "{said:?}");
    let killed = user.vmdeploy("exec", &["count", "--timeout", "2", "--", "sleep", "1000"]).output()?;
    ensure!(String::from_utf8_lossy(&killed.stderr).contains("killed after 2 s"), "{killed:?}");
    // of all arguments those that are one of the two: few processes, for each takes long where instructions are translated
    let look = "cat /proc/[0-9]*/cmdline 2> /dev/null | tr '\\0' '\\n' | grep -c '^100[01]$'";
    let left = user.exec(&format!("sleep 1001 & sleep 1; {look}; kill $!"))?;
    ensure!(left.stdout == b"1\n", "of two commands the one that was not killed is to be seen: {left:?}");

    let refused = user.asks("7100", "")?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("nothing listens at port 7100"), "{refused:?}");
    let started = user.exec(LISTENER)?;
    ensure!(started.status.success(), "{started:?}");
    let lines = (0..20_000).map(|n| format!("line {n} of many")).collect::<Vec<_>>().join("\n") + "\n";
    let wanted = format!("{}bye\n", lines.to_uppercase());
    until("connecting", Duration::from_secs(60), async || Ok(user.asks("7100", "x\n")?.status.success().then_some(())))
        .await?;
    let answer = user.asks("7100", &lines)?;
    ensure!(answer.status.success(), "{:?}", String::from_utf8_lossy(&answer.stderr));
    ensure!(answer.stdout == wanted.as_bytes(), "{} bytes instead of {}", answer.stdout.len(), wanted.len());
    let started = user.exec(SHOWN)?;
    ensure!(started.status.success(), "{started:?}");
    let shown = user.console("hello\n")?;
    ensure!(shown.contains("shown hello"), "{shown:?}");
    ends_right(&bed, &job, &counting).await?;
    Ok(())
}
