//! Whose turn it is on the test bed. Cases run at the same time as far as its nodes and this machine go;
//! each says how many virtual machines it needs, and one that breaks something for all is alone.

use std::{
    io::Write as _,
    ops::Deref,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::testbed::{TestBed, until};

/// Virtual machines at a time, of all cases together.
pub const SEATS: u32 = 3;

const UNFINISHED: &str = "SELECT job_user, job_id FROM jobs WHERE state NOT IN ('Terminated', 'Error')";

static FREE: Semaphore = Semaphore::const_new(SEATS as usize);

/// The test bed, for one case. Says when the case begins and how long it took; not captured, so that a person who
/// waits sees it.
pub struct Turn {
    bed: TestBed,
    case: String,
    begun: Instant,
    _seats: SemaphorePermit<'static>,
}

impl Turn {
    /// Waits for the seats of so many virtual machines. Nothing if there is no test bed, as in [`TestBed::find`].
    pub async fn with(members: u32) -> Result<Option<Self>> {
        let Some(bed) = TestBed::find().await? else { return Ok(None) };
        let seats = FREE.acquire_many(members.min(SEATS)).await?;
        let case = thread::current().name().unwrap_or("?").to_owned();
        say(&format!("{:12} {case} ...", ""));
        // OAR may suspect nodes of the case before, until somebody looks at them
        bed.run(&["trust"])?;
        Ok(Some(Self { bed, case, begun: Instant::now(), _seats: seats }))
    }

    /// Waits until nobody else is on the test bed.
    pub async fn alone() -> Result<Option<Self>> {
        let Some(turn) = Self::with(SEATS).await? else { return Ok(None) };
        // what a failed case has left at OAR is nobody's
        until("OAR to have no jobs", Duration::from_secs(120), async || {
            let left = turn.bed.run(&["sql", UNFINISHED])?;
            for (user, id) in left.lines().filter_map(|line| line.split_once('|')) {
                // it may be on its way out
                let _ = turn.bed.oar(user, &["oardel", id]);
            }
            Ok(left.trim().is_empty().then_some(()))
        })
        .await?;
        Ok(Some(turn))
    }
}

impl Deref for Turn {
    type Target = TestBed;

    fn deref(&self) -> &TestBed {
        &self.bed
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // a job that a failed case has left would be in the way of the next one
        self.bed.clean();
        say(&line(self.begun.elapsed(), &self.case));
    }
}

/// As the scripts of the test bed show what took how long.
fn line(took: Duration, case: &str) -> String {
    format!("{:10.1} s   {case}", took.as_secs_f64())
}

fn say(line: &str) {
    // nobody may be there to read it
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_looks_like_a_step() {
        assert_eq!(line(Duration::from_millis(12_340), "kills::x"), "      12.3 s   kills::x");
    }
}
