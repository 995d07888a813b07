//! Somebody else's normal OAR job, for which a best-effort job must make room.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::testbed::{TestBed, VM_PROCESS, until};

/// The user who submits it.
const USER: &str = "bob";
/// Its walltime is so much longer than it keeps its nodes: it looks at them first.
const LOOKING: Duration = Duration::from_secs(600);

/// A submitted normal job. It ends with this.
pub struct Rival<'a> {
    bed: &'a TestBed,
    /// Its id at OAR.
    pub id: String,
    /// Where its first process notes what it finds, below bob's home.
    file: String,
}

impl Drop for Rival<'_> {
    fn drop(&mut self) {
        // one that still waits would take a later case's nodes; most have ended by themselves, which OAR calls an error
        let _ = self.bed.oar(USER, &["oardel", &self.id]);
    }
}

/// What the first process of a rival found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// When it began, in seconds of the epoch.
    pub began: u64,
    /// Processes of QEMU by node.
    pub qemu: Vec<(String, u32)>,
}

impl<'a> Rival<'a> {
    /// Submits a job on these nodes that counts the processes of QEMU there, then keeps the nodes for so long. Its
    /// walltime is ten minutes more.
    pub fn submit(bed: &'a TestBed, nodes: &[String], keep: Duration) -> Result<Self> {
        let names: Vec<String> = nodes.iter().map(|node| format!("'{node}'")).collect();
        let filter = format!("network_address in ({})", names.join(","));
        let resources = format!("nodes={},walltime={}", nodes.len(), hours(keep + LOOKING));
        let file = format!("rival-{:x}", jiff::Timestamp::now().as_millisecond());
        let script = format!(
            "for h in $(sort -u $OAR_NODEFILE); do echo $h $(date +%s) $(oarsh $h \"pgrep -c {VM_PROCESS}\"); done > {file}.new; \
             mv {file}.new {file}; sleep {}",
            keep.as_secs()
        );
        let text = bed.oar(USER, &["oarsub", "-l", &resources, "-p", &filter, &script])?;
        let id = text.lines().find_map(|line| line.strip_prefix("OAR_JOB_ID=")).context(text.clone())?;
        Ok(Self { bed, id: id.into(), file })
    }

    /// What its first process found; waits until it has looked.
    pub async fn found(&self, limit: Duration) -> Result<Found> {
        let text =
            until("the rival's first process", limit, async || Ok(self.bed.oar(USER, &["cat", &self.file]).ok()))
                .await?;
        parse(&text)
    }

    /// Its state at OAR.
    pub fn state(&self) -> Result<String> {
        let text = self.bed.oar(USER, &["oarstat", "-s", "-j", &self.id])?;
        Ok(text.split_whitespace().last().unwrap_or_default().to_owned())
    }
}

/// A time as OAR takes it: hours, minutes and seconds.
fn hours(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{}:{}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Lines of node, time and count; no count means that pgrep's answer did not come.
fn parse(text: &str) -> Result<Found> {
    let mut found = Found { began: u64::MAX, qemu: vec![] };
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        ensure!(words.len() == 3, "the rival noted {line:?}");
        found.began = found.began.min(words[1].parse()?);
        found.qemu.push((words[0].into(), words[2].parse()?));
    }
    ensure!(!found.qemu.is_empty(), "the rival noted nothing");
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_count_is_not_zero() {
        assert_eq!(parse("node-1 10 0\nnode-2 9 1\n").unwrap().qemu[1], ("node-2".into(), 1));
        assert_eq!(parse("node-1 10 0\nnode-2 9 1\n").unwrap().began, 9);
        assert!(parse("node-1 10\n").is_err());
        assert!(parse("").is_err());
    }

    #[test]
    fn a_walltime_has_hours_minutes_and_seconds() {
        assert_eq!(hours(Duration::from_secs(601)), "0:10:1");
        assert_eq!(hours(Duration::from_secs(2 * 3600 + 59 * 60)), "2:59:0");
    }
}
