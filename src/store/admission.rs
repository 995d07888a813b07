//! What the repository lets happen to a job: pure rules that the server and its double share.
//!
//! The fence decides (safety B1): what belongs to an incarnation below it is void, for good.

use serde::{Deserialize, Serialize};

use super::manifest::Manifest;
use crate::names::{Generation, Incarnation, JobUid};

/// What is remembered of a job besides its generations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobRecord {
    /// Lowest incarnation that may still write or publish.
    pub fence: Incarnation,
    /// Highest generation number ever seen; numbers are never used twice (safety B2).
    pub highest: Generation,
    /// Generations of the present incarnation that will never be complete.
    #[serde(skip_serializing_if = "std::collections::BTreeSet::is_empty")]
    pub given_up: std::collections::BTreeSet<Generation>,
    /// When the job was removed; nothing is accepted for it any more.
    pub removed: Option<jiff::Timestamp>,
}

/// What to do with a request to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publish {
    /// Read the files back and write the manifest.
    Write,
    /// It is there already, with the same content.
    Already,
    /// Not allowed; why.
    Refuse(String),
}

impl JobRecord {
    /// The record after this incarnation became the only one that may write, if it may.
    pub fn fenced(&self, incarnation: Incarnation) -> Result<Self, String> {
        self.alive()?;
        if incarnation < self.fence {
            return Err(format!("the fence is at incarnation {}, above {incarnation}", self.fence));
        }
        let mut new = Self { fence: incarnation, ..self.clone() };
        if incarnation > self.fence {
            // the fence keeps them out from now on
            new.given_up.clear();
        }
        Ok(new)
    }

    /// The record after a part of this generation arrived, if it may.
    pub fn with_part(&self, generation: Generation, incarnation: Incarnation) -> Result<Self, String> {
        self.writable(incarnation)?;
        if self.given_up.contains(&generation) {
            return Err(format!("generation {generation} was given up"));
        }
        Ok(Self { highest: self.highest.max(generation), ..self.clone() })
    }

    /// The record after a generation was given up.
    #[must_use]
    pub fn without(&self, generation: Generation) -> Self {
        let mut new = self.clone();
        new.given_up.insert(generation);
        new
    }

    /// Whether this incarnation may write anything.
    pub fn writable(&self, incarnation: Incarnation) -> Result<(), String> {
        self.alive()?;
        if incarnation < self.fence {
            return Err(format!("incarnation {incarnation} is older than {}, which has started", self.fence));
        }
        Ok(())
    }

    /// Whether a manifest may be published beside the one that is there, if any.
    pub fn publish(&self, new: &Manifest, published: Option<&Manifest>) -> Publish {
        match published {
            // an answer that was lost is asked for again, also after the fence has moved on
            Some(old) if old == new => Publish::Already,
            Some(_) => Publish::Refuse(format!("generation {} is published with other content", new.generation)),
            None => match self.with_part(new.generation, new.incarnation) {
                Ok(_) => Publish::Write,
                Err(why) => Publish::Refuse(why),
            },
        }
    }

    fn alive(&self) -> Result<(), String> {
        if self.removed.is_some() { Err("the job was removed".into()) } else { Ok(()) }
    }
}

/// Whether a part captured by `incarnation` may still become part of a generation.
pub fn part_is_void(record: &JobRecord, incarnation: Incarnation) -> bool {
    record.writable(incarnation).is_err()
}

/// The text of a refusal for a job whose name cannot be one.
pub fn no_such_uid(job: &JobUid) -> String {
    format!("{:?} is not a job's uid", job.0.chars().take(80).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::manifest::tests::manifest;

    #[test]
    fn b1_a_lower_incarnation_neither_writes_nor_publishes() {
        let record = JobRecord::default().fenced(2).unwrap();
        let mut late = manifest(8);
        late.incarnation = 1;
        assert!(matches!(record.publish(&late, None), Publish::Refuse(_)));
        assert!(record.with_part(8, 1).is_err() && part_is_void(&record, 1));
        late.incarnation = 2;
        assert_eq!(record.publish(&late, None), Publish::Write);
        assert!(record.with_part(8, 2).is_ok());
    }

    #[test]
    fn b1_the_fence_never_falls() {
        let record = JobRecord::default().fenced(5).unwrap();
        assert!(record.fenced(4).is_err());
        assert_eq!(record.fenced(5).as_ref(), Ok(&record));
    }

    #[test]
    fn b2_publishing_never_replaces() {
        let record = JobRecord::default();
        let (first, mut second) = (manifest(3), manifest(3));
        assert_eq!(record.publish(&first, Some(&first)), Publish::Already);
        second.nonce = "another cut".into();
        assert!(matches!(record.publish(&second, Some(&first)), Publish::Refuse(_)));
    }

    #[test]
    fn b2_the_highest_number_never_falls() {
        let record = JobRecord::default().with_part(9, 1).unwrap().with_part(4, 1).unwrap();
        assert_eq!(record.highest, 9);
    }

    #[test]
    fn b2_what_was_given_up_stays_so_until_the_fence_keeps_it_out() {
        let record = JobRecord::default().fenced(1).unwrap().without(7);
        assert!(record.with_part(7, 1).is_err() && record.with_part(8, 1).is_ok());
        assert!(matches!(record.publish(&manifest(7), None), Publish::Refuse(_)));
        assert_eq!(record.fenced(1).unwrap().given_up.len(), 1);
        let later = record.fenced(2).unwrap();
        assert!(later.given_up.is_empty() && later.with_part(7, 1).is_err());
    }

    #[test]
    fn a_removed_job_takes_nothing() {
        let record = JobRecord { removed: Some(jiff::Timestamp::UNIX_EPOCH), ..JobRecord::default() };
        assert!(record.fenced(9).is_err() && record.with_part(1, 9).is_err());
    }
}
